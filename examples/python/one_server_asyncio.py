"""Tasks on one server, with asyncio. Usage: python one_server_asyncio.py redis://127.0.0.1:6380"""

from __future__ import annotations

import asyncio
import sys
from uuid import uuid4

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from check import check
from pmcptask import Listed, Task, Tasks, Waited, Written, run_async

Client = redis.asyncio.Redis | redis.asyncio.RedisCluster
WORKING, COMPLETED = b'{"status":"working"}', b'{"status":"completed"}'


async def show_waiting(client: Client, waiting: Client, tasks: Tasks, owner: str) -> None:
    version = await run_async(client, tasks.put(owner, "t1", WORKING))
    check("put", version, 1)
    change, _ = await asyncio.gather(
        run_async(waiting, tasks.wait(owner, "t1", version, timeout_ms=30_000)),
        run_async(client, tasks.cas(owner, "t1", version, COMPLETED)),  # usually, another process
    )
    check("wait, until another client writes", change, Waited("OK", Task(2, COMPLETED)))
    unchanged = await run_async(waiting, tasks.wait(owner, "t1", 2, timeout_ms=50))
    check("wait, while nobody writes", unchanged, Waited("UNCHANGED", None))


async def show_versions(client: Client, tasks: Tasks, owner: str) -> None:
    lost = await run_async(client, tasks.cas(owner, "t1", 1, WORKING))
    check("cas of an older version", lost, Written("CONFLICT", 2))
    check("get", await run_async(client, tasks.get(owner, "t1")), Task(2, COMPLETED))


async def show_pages(client: Client, tasks: Tasks, owner: str) -> None:
    for number in range(2, 6):
        await run_async(client, tasks.put(owner, f"t{number}", WORKING))
    last: Listed | None = None
    for expected in (["t1", "t2"], ["t3", "t4"], ["t5"], []):
        page = await run_async(client, tasks.page(owner, count=2, after=last))
        check("list a page", [task.task_id for task in page], expected)
        last = page[-1] if page else None


async def show_all(client: Client, waiting: Client, tasks: Tasks) -> None:
    owner = f"example-{uuid4()}"
    await show_waiting(client, waiting, tasks, owner)
    await show_versions(client, tasks, owner)
    await show_pages(client, tasks, owner)
    check("trim", await run_async(client, tasks.trim(owner, keep=0)), 5)


async def main(url: str) -> None:
    # one_server.py says why these clients differ from the default ones.
    async with (
        redis.asyncio.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client,
        redis.asyncio.Redis.from_url(url, socket_timeout=40) as waiting,
    ):
        await show_all(client, waiting, Tasks())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
