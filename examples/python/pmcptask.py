"""PMCPTASK commands for redis-py, with types. Copy this file into your program.

`Tasks` makes calls, `run` and `run_async` make a client send them. The client must not have `decode_responses`,
because a record is bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Generic, Literal, NamedTuple, TypeVar

import redis
import redis.asyncio

Reply = TypeVar("Reply")


class Task(NamedTuple):
    version: int
    data: bytes


class Written(NamedTuple):
    """OK and the new version, CONFLICT and the actual version, or MISSING and 0."""

    outcome: Literal["OK", "CONFLICT", "MISSING"]
    version: int


class Listed(NamedTuple):
    task_id: str
    version: int
    created_ms: int
    data: bytes


class Waited(NamedTuple):
    """OK and the new record, MISSING if the task is gone, or UNCHANGED if the time is over."""

    outcome: Literal["OK", "MISSING", "UNCHANGED"]
    task: Task | None


@dataclass(frozen=True)
class Call(Generic[Reply]):
    key: str
    words: tuple[str | bytes | int, ...]
    read: Callable[[Any], Reply]


class Tasks:
    """A cluster needs `hash_tags`: they put all keys of an owner on one node."""

    def __init__(self, prefix: str = "pmcp", hash_tags: bool = False) -> None:
        self._prefix = prefix
        self._hash_tags = hash_tags

    def put(self, owner: str, task_id: str, data: str | bytes) -> Call[int]:
        """Writes a task, whatever its version. The reply is the new version."""
        task, index = self._task_key(owner, task_id), self._index_key(owner)
        return Call(task, ("PMCPTASK.PUT", task, index, data), int)

    def cas(self, owner: str, task_id: str, expected: int, data: str | bytes) -> Call[Written]:
        """Writes a task if it is at the expected version."""
        task, index = self._task_key(owner, task_id), self._index_key(owner)
        return Call(task, ("PMCPTASK.CAS", task, index, expected, data), _written)

    def get(self, owner: str, task_id: str) -> Call[Task | None]:
        task = self._task_key(owner, task_id)
        return Call(task, ("PMCPTASK.GET", task), lambda reply: reply and Task(*reply))

    def page(self, owner: str, count: int, after: Listed | None = None) -> Call[list[Listed]]:
        """A page of an owner's tasks, the oldest first. The next page comes after the last task of this one."""
        index = self._index_key(owner)
        position = ("AFTER", after.created_ms, after.task_id) if after else ()
        return Call(index, ("PMCPTASK.LIST", index, *position, "COUNT", count), _page)

    def wait(self, owner: str, task_id: str, version: int, timeout_ms: int) -> Call[Waited]:
        """Waits until the task's version is another. The client's `socket_timeout` must be longer."""
        task = self._task_key(owner, task_id)
        return Call(task, ("PMCPTASK.WAIT", task, version, timeout_ms), _waited)

    def trim(self, owner: str, keep: int) -> Call[int]:
        """Removes an owner's tasks but the newest, at most 1,000 in a call. The reply is how many."""
        index = self._index_key(owner)
        return Call(index, ("PMCPTASK.TRIM", index, "KEEP", keep), int)

    def _task_key(self, owner: str, task_id: str) -> str:
        return f"{self._prefix}:tasks:{self._part(owner)}:{task_id}"

    def _index_key(self, owner: str) -> str:
        return f"{self._prefix}:idx:{self._part(owner)}"

    def _part(self, owner: str) -> str:
        if not self._hash_tags:
            return owner
        # Such an owner would make an empty hash tag, which has no effect.
        if owner == "" or owner.startswith("}"):
            return "_{_}" + owner
        return "{" + owner + "}"


def run(client: redis.Redis | redis.RedisCluster, call: Call[Reply]) -> Reply:
    if isinstance(client, redis.RedisCluster):
        # Without a node, redis-py would ask a server for the keys of each PUT.
        node = client.get_node_from_key(call.key)
        return call.read(client.execute_command(*call.words, target_nodes=node))
    return call.read(client.execute_command(*call.words))


async def run_async(client: redis.asyncio.Redis | redis.asyncio.RedisCluster, call: Call[Reply]) -> Reply:
    if isinstance(client, redis.asyncio.RedisCluster):
        # Before, the client knows no node.
        await client.initialize()
        node = client.get_node_from_key(call.key)
        return call.read(await client.execute_command(*call.words, target_nodes=node))
    return call.read(await client.execute_command(*call.words))


def _written(reply: Any) -> Written:
    outcome, version = reply
    return Written(outcome.decode(), version)


def _page(reply: Any) -> list[Listed]:
    return [Listed(task_id.decode(), *others) for task_id, *others in reply]


def _waited(reply: Any) -> Waited:
    if reply is None:
        return Waited("UNCHANGED", None)
    outcome, *task = reply
    return Waited("OK", Task(*task)) if outcome == b"OK" else Waited("MISSING", None)
