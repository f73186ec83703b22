"""What killed workers have left: it goes once the job has ended, but not the files of a build."""

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import Projector
from schemas.events import JobCancelled, JobReady, Known, PreviewRequested
from service import workspaces
from service.workspaces import sweep, sweep_often
from tests.histories import all_completed, failed, queued, ready, started
from tests.projector.writing import write

pytestmark = pytest.mark.anyio


async def attempts_at(store: EventStore, root: Path, history: Sequence[Known]) -> Path:
    """The folder of a job with such a history: two attempts at it have left their workspaces."""
    folder = root / (await write(store, history)).job
    for attempt in ("1", "2"):
        (folder / attempt).mkdir(parents=True)
        (folder / attempt / "app.py").write_text("")
    return folder


def ready_in(path: str) -> JobReady:
    return ready().model_copy(update={"workspace_path": path})


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


async def test_nothing_is_left_of_jobs_that_failed_or_were_cancelled(
    store: EventStore, engine: AsyncEngine, tmp_path: Path
) -> None:
    await attempts_at(store, tmp_path, [queued(), started(), failed()])
    await attempts_at(store, tmp_path, [queued(), JobCancelled(by="ann")])
    await Projector(store, engine).catch_up()
    await sweep(engine, tmp_path)
    assert left_in(tmp_path) == []


async def test_the_files_of_a_build_stay_also_where_the_home_was_moved(
    store: EventStore, engine: AsyncEngine, tmp_path: Path
) -> None:
    history = [*all_completed(), ready_in("/a/home/before/workspaces/a-job/2")]
    folder = await attempts_at(store, tmp_path, history)
    await Projector(store, engine).catch_up()
    await sweep(engine, tmp_path)
    assert left_in(folder) == ["2"]


async def test_jobs_that_have_not_ended_or_are_not_known_keep_what_they_have(
    store: EventStore, engine: AsyncEngine, tmp_path: Path
) -> None:
    running = await attempts_at(store, tmp_path, [queued(), started()])
    await Projector(store, engine).catch_up()
    unknown = tmp_path / "unknown" / "1"
    unknown.mkdir(parents=True)
    await sweep(engine, tmp_path)
    assert (left_in(running), unknown.exists()) == (["1", "2"], True)


async def test_a_build_whose_preview_is_being_made_again_keeps_what_it_has(
    store: EventStore, engine: AsyncEngine, tmp_path: Path
) -> None:
    history = [*all_completed(), ready_in("/home/workspaces/a-job/1"), PreviewRequested(by="ann")]
    folder = await attempts_at(store, tmp_path, history)
    await Projector(store, engine).catch_up()
    await sweep(engine, tmp_path)
    assert left_in(folder) == ["1", "2"]


async def test_a_sweep_that_failed_is_made_again(
    engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept, again = list[Path](), anyio.Event()

    async def stumbling(_: AsyncEngine, root: Path) -> None:
        swept.append(root)
        if len(swept) == 1:
            raise OSError("the disk is away")
        again.set()

    monkeypatch.setattr(workspaces, "SWEEP_EVERY_S", 0)
    monkeypatch.setattr(workspaces, "sweep", stumbling)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sweep_often, engine, tmp_path)
            await again.wait()
            tasks.cancel_scope.cancel()
    assert set(swept) == {tmp_path}
