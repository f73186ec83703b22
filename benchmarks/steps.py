"""Where the time of a build goes: from the request to a preview that was checked, step by step.

Whole builds by the template runner in local sandboxes, one after the other, on an instance as `up`
runs it, asked as the command line asks it.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from statistics import median

import anyio

from benchmarks.builds import EVENTS_A_BUILD
from benchmarks.rows import ROUNDS, Row, Say, silent
from benchmarks.servers import PARTITIONS, Target
from eventstore import EventStore
from generator import SandboxRuntime
from schemas import JobRef, Phase, RecordedEvent
from schemas.events import JobQueued, JobReady, JobStarted, PhaseCompleted, PhaseStarted
from service.client import Client
from service.demo import see_preview
from service.embedded import Servers
from service.instance import LOCAL_TENANT
from service.logging import configure_logging
from service.settings import RunnerKind, SandboxKind, Settings
from service.wiring import Log, make_sandbox_runtime, running

EVENTS = 120
GOAL = "a todo list for two"
READY_S = 1.5
OWN_S = 0.3
END_S = 30.0

OF_THE_APP = ("install", "tests", "probe")
STEPS = {
    Phase.DEPS: {"sandbox": "create_ms", "files": "upload_ms", "install": "install_ms"},
    Phase.CHECKS: {"tests": "tests_ms", "start": "start_ms", "probe": "probe_ms"},
}
"""By phase what its evidence says of its steps."""

Took = Mapping[str, float]
"""Seconds by what took them."""


def bench_build(target: Target, say: Say = silent, *, events: int = EVENTS) -> list[Row]:
    """What a person waits for who asks for an app, and for what; medians of `events` / 12 builds.

    One more before them is not counted: it finds nothing imported and nothing in a cache.

    - ready_s: from the request until a follower has `JobReady`, by HTTP and SSE, beside a limit.
    - own_s: what of it is not the app's own work, beside a limit: all but its install command, its
      tests, and the time from its start until it answered (install_ms, tests_ms, probe_ms below).
      What a sandbox takes to begin a command is the app's in this, and the probe's pauses are, too.
    - queue_ms: from `JobQueued` to `JobStarted`; scaffold_ms and code_ms: from a phase's start to
      its end, in the log's own times.
    - sandbox_ms, files_ms, install_ms (of deps), tests_ms, start_ms, probe_ms (of checks): the
      steps of the other two phases, as their evidence tells them.
    - rest_ms: what is left of ready_s: requests, appends, the artifact of the log, the number.

    Steps stand beside the whole.
    """
    return target.measure(partial(_measure, max(events // EVENTS_A_BUILD, ROUNDS), say))


async def _measure(builds: int, say: Say, store: EventStore, servers: Servers) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="headrace-build-") as folder,
        (Path(folder) / "headrace.log").open("w") as log_file,
    ):
        configure_logging(log_file)  # as an instance does
        settings = Settings(
            home=Path(folder) / "home",
            runner=RunnerKind.TEMPLATE,
            sandbox=SandboxKind.LOCAL,
            partitions=PARTITIONS,
            drain_s=0,
        )
        settings.make_home()
        found = []
        async with (
            running(settings, servers, port=0) as (instance, log),
            Client(instance.url, instance.key) as client,
        ):
            runtime = make_sandbox_runtime(settings)
            for number in range(builds + 1):
                say(f"build {number} of {builds}" if number else "a build to warm up")
                found.append(await _built(client, log, runtime))
    return rows_of(found[1:])


async def _built(client: Client, log: Log, runtime: SandboxRuntime) -> Took:
    """What a build took, whose preview answers."""
    try:
        began = time.perf_counter()
        job = (await client.submit(GOAL, project="p"))["job_id"]
        async with aclosing(client.follow(job)) as entries:
            async for entry in entries:
                if entry.name == "JobReady":
                    break
        ready_s = time.perf_counter() - began
        events = await log.store.read_job(JobRef(LOCAL_TENANT, job))
        ready = events[-1].payload
        if not isinstance(ready, JobReady) or ready.preview_url is None:
            raise RuntimeError(f"the build did not become READY: {ready}")
        await see_preview(ready.preview_url)
    finally:
        with anyio.move_on_after(END_S, shield=True):
            for info in await runtime.list({}):
                await runtime.kill(info.sandbox_id)
    return took_by(events, ready_s)


def took_by(events: Sequence[RecordedEvent], ready_s: float) -> Took:
    """Seconds by what took them: the whole, its steps, and what is left."""
    steps: dict[str, float] = {}
    began = events[0].time
    for event in events:
        match event.payload:
            case JobQueued() | PhaseStarted():
                began = event.time
            case JobStarted():
                steps["queue"] = (event.time - began).total_seconds()
            case PhaseCompleted(phase=phase, evidence=said) if phase in STEPS:
                steps |= {name: _s(said[fact]) for name, fact in STEPS[phase].items()}
            case PhaseCompleted(phase=phase):
                steps[phase] = (event.time - began).total_seconds()
    return {"ready": ready_s, **steps, "rest": ready_s - sum(steps.values())}


def _s(milliseconds: object) -> float:
    assert isinstance(milliseconds, int)  # noqa: S101 - as the phases write it
    return milliseconds / 1000


def rows_of(found: Sequence[Took]) -> list[Row]:
    """The rows of so many builds."""

    def own_s(took: Took) -> float:
        return took["ready"] - sum(took[name] for name in OF_THE_APP)

    ready_s = median(took["ready"] for took in found)
    rows = [
        Row("ready_s", round(ready_s, 3), "s", "the limit", READY_S),
        Row("own_s", round(median(map(own_s, found)), 3), "s", "the limit", OWN_S),
    ]
    for name in found[0]:
        if name != "ready":
            took_ms = median(took[name] for took in found) * 1000
            rows.append(
                Row(f"{name}_ms", round(took_ms, 1), "ms", "the whole", round(ready_s * 1000, 1))
            )
    return rows
