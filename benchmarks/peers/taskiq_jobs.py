"""Jobs of taskiq that do nothing, through a Redis stream on which each is acknowledged.

Run by a Python of its own, with one JSON object. Prints as JSON how many ended a second; or, with
`waits`, how long so many of them waited in the median for a worker in a process of its own that had
nothing to do, one after the other.
"""

import asyncio
import json
import os
import sys
import time
from statistics import median
from typing import Any

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


async def wait_p50_ms(asked: dict[str, Any], queue: str) -> float:
    """From just before a job is sent to just after it began."""
    broker = RedisStreamBroker(asked["redis_url"], queue_name=queue)

    @broker.task(task_name="waited")  # type: ignore[untyped-decorator]
    async def waited(sent: float) -> None: ...

    await broker.startup()
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        __file__,
        json.dumps({**asked, "receives": queue}),
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None  # noqa: S101 - it was made with one
    await worker.stdout.readline()  # it listens
    waits_ms: list[float] = []
    for _ in range(asked["waits"]):
        await waited.kiq(time.time())
        waits_ms.append(float(await worker.stdout.readline()))
    worker.kill()
    await worker.wait()
    return median(waits_ms)


async def receive(redis_url: str, queue: str, at_once: int) -> None:
    """Print how long each job has waited, in ms, until killed."""
    broker = RedisStreamBroker(redis_url, queue_name=queue)

    @broker.task(task_name="waited")  # type: ignore[untyped-decorator]
    async def waited(sent: float) -> None:
        say((time.time() - sent) * 1000)

    say("listening")
    await run_receiver_task(broker, max_async_tasks=at_once, run_startup=True)


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


async def main() -> None:
    asked = json.loads(sys.argv[1])
    queue = f"peer:taskiq:{time.time_ns()}"
    if "receives" in asked:
        await receive(asked["redis_url"], asked["receives"], asked["at_once"])
    elif "waits" in asked:
        say(json.dumps({"wait_p50_ms": await wait_p50_ms(asked, queue)}))
    else:
        per_s = await rate(asked["redis_url"], queue, asked["jobs"], asked["at_once"])
        say(json.dumps({"per_s": per_s}))
    os._exit(0)  # a receiver in the middle of a blocking read does not end when it is cancelled


asyncio.run(main())
