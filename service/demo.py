"""The demo: one goal from nothing to a preview that has answered."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import httpx
import structlog

from eventstore import EventStoreError
from generator import GenerationError
from schemas import JobRef
from schemas.commands import ExpirePreview
from service.client import Client
from service.errors import ApiError
from service.instance import LOCAL_TENANT, Instance
from service.settings import Settings
from service.watching import Screen, Watched, watch
from service.wiring import Log, make_sandbox_runtime

ANSWER_S = 10.0
END_S = 15.0
CANCEL_S = 2.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `--json` prints: every field always, None where there is nothing to say."""

    job_id: str | None = None
    project_id: str | None = None
    status: str = "error"
    build_version: str | None = None
    preview_url: str | None = None
    sandbox_id: str | None = None
    workspace_path: str | None = None
    debug_id: str | None = None
    events: int = 0
    duration_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        return asdict(self)


async def demo(
    instance: Instance,
    goal: str,
    *,
    project: str,
    screen: Screen,
    base: int | str | None = None,
) -> tuple[Watched, Outcome]:
    """Submit a goal and show its build to the end. Raises `ApiError` when the goal is refused."""
    began = time.monotonic()
    async with Client(instance.url, instance.key) as client:
        accepted = await client.submit(goal, project=project, base=base)
        watched = Watched(accepted["job_id"], goal, accepted["project_id"])
        try:
            await watch(client, watched, screen)
        except anyio.get_cancelled_exc_class():
            # Whoever ends the demo does not want the app any more, nor the next start to build it.
            with anyio.move_on_after(CANCEL_S, shield=True), suppress(ApiError):
                await client.cancel(watched.job_id)
            raise
    result = watched.result
    return watched, Outcome(
        job_id=watched.job_id,
        project_id=watched.project,
        status=watched.status,
        build_version=result.get("build_version"),
        preview_url=result.get("preview_url"),
        sandbox_id=result.get("sandbox_id"),
        workspace_path=result.get("workspace_path"),
        debug_id=result.get("debug_id"),
        events=watched.events,
        duration_s=round(time.monotonic() - began, 3),
    )


async def see_preview(url: str) -> None:
    """Open the preview as a browser would. Raises `ApiError`."""
    try:
        async with httpx.AsyncClient(
            timeout=ANSWER_S, trust_env=False, verify=not url.startswith("http:")
        ) as visitor:
            response = await visitor.get(url)
            response.raise_for_status()
    except httpx.HTTPError as error:
        raise ApiError(0, f"the preview {url} does not answer: {error}") from error


async def end_preview(settings: Settings, running: Log, outcome: Outcome) -> None:
    """End the demo's own sandbox and say so in the log."""
    if outcome.sandbox_id is None or outcome.job_id is None:
        return
    with anyio.move_on_after(END_S, shield=True):
        try:
            await make_sandbox_runtime(settings).kill(outcome.sandbox_id)
            await running.handler.handle(
                JobRef(LOCAL_TENANT, outcome.job_id), ExpirePreview("the demo ended")
            )
        except (GenerationError, EventStoreError) as error:
            log.warning("preview_not_ended", job=outcome.job_id, error=str(error))
