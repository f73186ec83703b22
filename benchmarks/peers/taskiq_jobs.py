"""Jobs of taskiq that do nothing, through a Redis stream on which each is acknowledged.

Run by a Python of its own, with one JSON object; prints how many ended a second, as JSON.
"""

import asyncio
import json
import os
import sys
import time

from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker


async def rate(redis_url: str, queue: str, jobs: int, at_once: int) -> float:
    broker = RedisStreamBroker(redis_url, queue_name=queue)
    ended, all_ended = 0, asyncio.Event()

    @broker.task(task_name="nothing")  # type: ignore[untyped-decorator]
    async def nothing() -> None:
        nonlocal ended
        ended += 1
        if ended == jobs:
            all_ended.set()

    await broker.startup()
    for _ in range(jobs):
        await nothing.kiq()
    began = time.perf_counter()
    receiver = asyncio.create_task(run_receiver_task(broker, max_async_tasks=at_once))
    await all_ended.wait()
    took_s = time.perf_counter() - began
    receiver.cancel()
    return jobs / took_s


async def main() -> None:
    asked = json.loads(sys.argv[1])
    queue = f"peer:taskiq:{time.time_ns()}"
    per_s = await rate(asked["redis_url"], queue, asked["jobs"], asked["at_once"])
    sys.stdout.write(json.dumps({"per_s": per_s}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a receiver in the middle of a blocking read does not end when it is cancelled


asyncio.run(main())
