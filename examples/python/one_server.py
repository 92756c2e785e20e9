"""Tasks on one server. Usage: python one_server.py redis://127.0.0.1:6380"""

from __future__ import annotations

import sys
from threading import Thread
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from check import check
from pmcptask import Listed, Task, Tasks, Waited, Written, run

Client = redis.Redis | redis.RedisCluster
WORKING, COMPLETED = b'{"status":"working"}', b'{"status":"completed"}'


def show_waiting(client: Client, waiting: Client, tasks: Tasks, owner: str) -> None:
    version = run(client, tasks.put(owner, "t1", '{"status":"working"}'))
    completed = tasks.cas(owner, "t1", version, '{"status":"completed"}')
    Thread(target=run, args=(client, completed)).start()  # usually, another process
    change = run(waiting, tasks.wait(owner, "t1", version, timeout_ms=30_000))

    check("put", version, 1)
    check("wait, until another client writes", change, Waited("OK", Task(2, COMPLETED)))
    unchanged = run(waiting, tasks.wait(owner, "t1", 2, timeout_ms=50))
    check("wait, while nobody writes", unchanged, Waited("UNCHANGED", None))
    gone = run(waiting, tasks.wait(owner, "none", 1, timeout_ms=30_000))
    check("wait for a task that does not exist", gone, Waited("MISSING", None))


def show_versions(client: Client, tasks: Tasks, owner: str) -> None:
    won = run(client, tasks.cas(owner, "t1", 2, WORKING))
    check("cas of the version that was read", won, Written("OK", 3))
    lost = run(client, tasks.cas(owner, "t1", 2, COMPLETED))
    check("cas of an older version", lost, Written("CONFLICT", 3))
    missing = run(client, tasks.cas(owner, "none", 1, WORKING))
    check("cas of a task that does not exist", missing, Written("MISSING", 0))
    check("get", run(client, tasks.get(owner, "t1")), Task(3, WORKING))
    check("get of a task that does not exist", run(client, tasks.get(owner, "none")), None)


def show_pages(client: Client, tasks: Tasks, owner: str) -> None:
    for number in range(2, 6):
        run(client, tasks.put(owner, f"t{number}", WORKING))
    last: Listed | None = None
    for expected in (["t1", "t2"], ["t3", "t4"], ["t5"], []):
        page = run(client, tasks.page(owner, count=2, after=last))
        check("list a page", [task.task_id for task in page], expected)
        last = page[-1] if page else None


def show_all(client: Client, waiting: Client, tasks: Tasks) -> None:
    owner = f"example-{uuid4()}"
    show_waiting(client, waiting, tasks, owner)
    show_versions(client, tasks, owner)
    show_pages(client, tasks, owner)
    check("trim", run(client, tasks.trim(owner, keep=0)), 5)


def main(url: str) -> None:
    tasks = Tasks()
    # redis-py would send a write again whose reply is lost. A cas can then conflict with itself.
    client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))
    # A wait holds a connection of its own. redis-py gives up after 5 seconds unless told.
    waiting = redis.Redis.from_url(url, socket_timeout=40)

    show_all(client, waiting, tasks)


if __name__ == "__main__":
    main(sys.argv[1])
