"""Workflows of DBOS whose steps do nothing but are recorded, started by the process that runs them.

Run by a Python of its own, with one JSON object; prints how many ended a second, as JSON.
"""

import asyncio
import json
import sys
import time

from dbos import DBOS, DBOSConfig


@DBOS.step()  # type: ignore[untyped-decorator]
async def step(number: int) -> int:
    return number


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def workflow(steps: int) -> int:
    for number in range(steps):
        await step(number)
    return steps


async def rate(workflows: int, steps: int, at_once: int) -> float:
    slots = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with slots:
            handle = await DBOS.start_workflow_async(workflow, steps)
            await handle.get_result()

    await one()  # it prepares what it needs
    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(workflows)))
    return workflows / (time.perf_counter() - began)


def main() -> None:
    asked = json.loads(sys.argv[1])
    config: DBOSConfig = {
        "name": "peer",
        "system_database_url": asked["database_url"],
        "sys_db_pool_size": asked["at_once"],
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()
    per_s = asyncio.run(rate(asked["jobs"], asked["steps"], asked["at_once"]))
    sys.stdout.write(json.dumps({"per_s": per_s}) + "\n")
    DBOS.destroy()


main()
