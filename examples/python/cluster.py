"""Tasks in a cluster, without and with asyncio. Usage: python cluster.py redis://127.0.0.1:7000"""

from __future__ import annotations

import asyncio
import sys
from uuid import uuid4

import redis
import redis.asyncio

import one_server
import one_server_asyncio
from check import check
from pmcptask import Tasks, run, run_async

TASKS = Tasks(hash_tags=True)
# Enough for every node to get many.
OWNERS = [f"example-{uuid4()}" for _ in range(300)]


def without_asyncio(url: str) -> None:
    # A client of a cluster does not repeat a call that names its node, as those of `run` do.
    client = redis.RedisCluster.from_url(url)
    waiting = redis.RedisCluster.from_url(url, socket_timeout=40)
    one_server.show_all(client, waiting, TASKS)
    versions = [run(client, TASKS.put(owner, "t1", "{}")) for owner in OWNERS]
    check("puts of 300 owners", sum(versions), 300)
    removed = [run(client, TASKS.trim(owner, keep=0)) for owner in OWNERS]
    check("trims of 300 owners", sum(removed), 300)


async def with_asyncio(url: str) -> None:
    async with (
        redis.asyncio.RedisCluster.from_url(url) as client,
        redis.asyncio.RedisCluster.from_url(url, socket_timeout=40) as waiting,
    ):
        await one_server_asyncio.show_all(client, waiting, TASKS)
        versions = [await run_async(client, TASKS.put(owner, "t1", "{}")) for owner in OWNERS]
        check("puts of 300 owners, with asyncio", sum(versions), 300)
        removed = [await run_async(client, TASKS.trim(owner, keep=0)) for owner in OWNERS]
        check("trims of 300 owners, with asyncio", sum(removed), 300)


if __name__ == "__main__":
    without_asyncio(sys.argv[1])
    asyncio.run(with_asyncio(sys.argv[1]))
