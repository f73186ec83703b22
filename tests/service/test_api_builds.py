"""What is in a build, going on from one and restoring one, over HTTP."""

import io
import zipfile
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import httpx
import obstore
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import CommandHandler, Hub
from projector.erasing import erase
from schemas import JobRef
from schemas.events import JobReady, Known
from service.problems import MEDIA_TYPE
from tests.histories import all_completed, build, queued, ready
from tests.projector.writing import write
from tests.service.quiet_api import QuietApi, quiet_api

pytestmark = pytest.mark.anyio

FIRST = {"app.py": b"print(1)\n", "old.txt": b"old\n", "logo.png": b"\x89PNG\0one"}
SECOND = {"app.py": b"print(2)\n", "new.txt": b"new\n", "logo.png": b"\x89PNG\0two!"}
BUILDS = "/v1/projects/shop/builds"


@pytest.fixture
async def api(handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> AsyncIterator[QuietApi]:
    async with quiet_api(handler, hub, engine) as made:
        yield made


async def built(
    api: QuietApi, files: Mapping[str, bytes], number: int = 1, *, parent: int | None = None
) -> JobRef:
    """A build with these files, folded."""
    manifest = await api.artifacts.put(files)
    history: list[Known] = [*all_completed(), ready(number, manifest=manifest)]
    history[0] = queued(f"a shop, try {number}").model_copy(update={"base_build": parent})
    ref = await write(api.store, history)
    await api.fold()
    return ref


async def post(
    api: QuietApi, path: str, body: Any = None, *, key: str | None = None, status: int = 202
) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    response = await api.client.post(path, json=body, headers=headers)
    assert response.status_code == status, response.text
    if status >= 400:
        assert response.headers["Content-Type"] == MEDIA_TYPE
    return response.json()


# --- what is in it -------------------------------------------------------------------------------


async def test_the_files_of_a_build_are_listed_and_read(api: QuietApi) -> None:
    await built(api, {**FIRST, "run me": b"#!/bin/sh\n"})
    listed = await api.get(f"{BUILDS}/1/files")
    assert [file["path"] for file in listed["files"]] == ["app.py", "logo.png", "old.txt", "run me"]
    assert [file["mode"] for file in listed["files"]] == ["644", "644", "644", "755"]
    text = await api.client.get(f"{BUILDS}/1/files/app.py")
    assert (text.text, text.headers["Content-Type"]) == ("print(1)\n", "text/plain; charset=utf-8")
    image = await api.client.get(f"{BUILDS}/1/files/logo.png")
    assert image.content == FIRST["logo.png"]
    assert image.headers["Content-Type"] == "application/octet-stream"


async def test_a_file_never_becomes_a_page_of_ours(api: QuietApi) -> None:
    await built(api, {"index.html": b"<script>alert(document.domain)</script>"})
    answer = await api.client.get(f"{BUILDS}/1/files/index.html")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox")


async def test_a_path_leads_nowhere_but_into_the_build(api: QuietApi) -> None:
    await built(api, FIRST)
    for path in ("nothing", "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", ""):
        answer = await api.client.get(f"{BUILDS}/1/files/{path}")
        assert answer.status_code in (404, 307), path


async def test_an_archive_holds_the_build_under_a_name_that_says_which(api: QuietApi) -> None:
    await built(api, FIRST)
    first = await api.client.get(f"{BUILDS}/1/archive")
    assert first.headers["Content-Type"] == "application/zip"
    assert first.headers["Content-Disposition"] == 'attachment; filename="shop-build_v0_1.zip"'
    with zipfile.ZipFile(io.BytesIO(first.content)) as whole:
        assert {name: whole.read(f"shop-build_v0_1/{name}") for name in FIRST} == FIRST
    again = await api.client.get(f"{BUILDS}/1/archive")
    assert (again.content, again.headers["ETag"]) == (first.content, first.headers["ETag"])
    other = await api.client.get(f"{BUILDS}/1/archive", params={"format": "tar.gz"})
    assert other.headers["Content-Disposition"].endswith('"shop-build_v0_1.tar.gz"')
    await api.refused(f"{BUILDS}/1/archive", format="rar")


async def test_a_diff_tells_of_every_file_what_became_of_it(api: QuietApi) -> None:
    await built(api, FIRST)
    await built(api, SECOND, 2)
    found = await api.get(f"{BUILDS}/2/diff", against=1)
    assert (found["number"], found["against"], found["is_cut"]) == (2, 1, False)
    rows = {file["path"]: file for file in found["files"]}
    assert {path: row["change"] for path, row in rows.items()} == {
        "app.py": "changed",
        "logo.png": "changed",
        "new.txt": "added",
        "old.txt": "removed",
    }
    assert rows["app.py"]["patch"].splitlines()[-2:] == ["-print(1)", "+print(2)"]
    assert (rows["logo.png"]["patch"], rows["logo.png"]["note"][:9]) == (None, "not shown")
    sizes = [rows["logo.png"][side]["size_bytes"] for side in ("before", "after")]
    assert sizes == [8, 9]
    assert (await api.get(f"{BUILDS}/1/diff", against=1))["files"] == []


async def test_a_diff_comes_as_a_patch_to_whoever_prefers_text(api: QuietApi) -> None:
    await built(api, FIRST)
    await built(api, SECOND, 2)
    asked = await api.client.get(f"{BUILDS}/2/diff", params={"against": 1, "format": "patch"})
    assert "--- a/app.py\n+++ b/app.py\n@@ -1 +1 @@\n-print(1)\n+print(2)\n" in asked.text
    assert "Binary files a/logo.png and b/logo.png differ\n" in asked.text
    accepted = await api.client.get(
        f"{BUILDS}/2/diff", params={"against": 1}, headers={"Accept": "text/plain"}
    )
    assert accepted.text == asked.text
    assert accepted.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_a_build_is_compared_with_its_parent_unless_another_is_named(api: QuietApi) -> None:
    await built(api, FIRST)
    await built(api, SECOND, 2)
    await built(api, FIRST, 3, parent=1)
    assert (await api.get(f"{BUILDS}/3/diff"))["against"] == 1
    assert (await api.get(f"{BUILDS}/2/diff"))["against"] == 1
    assert "is the first" in (await api.refused(f"{BUILDS}/1/diff"))["detail"]


async def test_a_diff_has_bounds_and_says_so(
    api: QuietApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.builds.MAX_PATCH_CHARS", 200)
    await built(api, {"k": b"k"})
    await built(api, {"k": b"k", "a": b"a\n" * 90, "b": b"short", "c": b"c"}, 2)
    found = await api.get(f"{BUILDS}/2/diff")
    assert found["is_cut"]
    assert {file["path"] for file in found["files"]} == {"a", "b", "c"}
    patch = await api.client.get(f"{BUILDS}/2/diff", params={"format": "patch"})
    assert patch.text.endswith("more files differ and are not shown: the patch is too long\n")


async def test_what_is_missing_in_the_store_is_gone_and_named(api: QuietApi) -> None:
    await built(api, FIRST)
    blob = (await api.get(f"{BUILDS}/1/files"))["files"][0]["sha256"]
    await obstore.delete_async(api.artifacts._store, f"blobs/{blob[:2]}/{blob}")
    for path in ("files/app.py", "archive"):
        assert "the file 'app.py'" in (await api.refused(f"{BUILDS}/1/{path}", 410))["detail"]


async def test_what_is_not_there_or_anothers_is_not_found(api: QuietApi) -> None:
    await built(api, FIRST)
    for what in ("files", "files/app.py", "archive", "diff"):
        assert (await api.refused(f"{BUILDS}/7/{what}", 404))["detail"].endswith("of project shop")
        await api.refused(f"/v1/projects/none/builds/1/{what}", 404)
        await api.refused(f"/v1/projects/No%20id/builds/1/{what}", 404)
        assert (await api.rival.get(f"{BUILDS}/1/{what}")).status_code == 404
    assert (await api.rival.post(f"{BUILDS}/1/restore")).status_code == 404


async def test_a_build_without_files_says_why(api: QuietApi, engine: AsyncEngine) -> None:
    ref = await built(api, FIRST)
    await write(api.store, simulated(2))
    await api.fold()
    await erase(engine, api.store.partition(ref.tenant), [ref.job])
    for number, why in ((1, "were erased"), (2, "only walked through it")):
        for what in ("files", "archive", "diff"):
            assert why in (await api.refused(f"{BUILDS}/{number}/{what}"))["detail"]
        assert why in (await post(api, f"{BUILDS}/{number}/restore", status=422))["detail"]
        body = {"goal": "bluer", "project_id": "shop", "base_build": number}
        problem = await post(api, "/v1/jobs", body, status=422)
        assert why in problem["detail"]
        assert problem["errors"][0]["field"] == "base_build"


def simulated(number: int) -> list[Known]:
    return [
        payload.model_copy(update={"manifest": None})
        if isinstance(payload, JobReady) or payload.type == "PhaseCompleted"
        else payload
        for payload in build(number)
    ]


# --- going on from it ----------------------------------------------------------------------------


async def test_a_job_goes_on_from_the_build_that_it_names(api: QuietApi) -> None:
    ref = await built(api, FIRST)
    await built(api, SECOND, 2)
    body = {"goal": "make it blue", "project_id": "shop", "base_build": 1, "in_place": True}
    accepted = await post(api, "/v1/jobs", body)
    (event,) = (await api.get(f"/v1/jobs/{accepted['job_id']}/events"))["events"]
    manifest = (await api.get(f"{BUILDS}/1/files"))["manifest"]
    told = event["data"]
    assert (told["base_build"], told["base_manifest"], told["base_job"]) == (1, manifest, ref.job)
    assert (told["in_place"], told["restore"]) == (True, False)
    assert (await api.get(f"/v1/jobs/{accepted['job_id']}"))["base_build"] == 1


async def test_the_latest_build_is_the_one_of_the_highest_number(api: QuietApi) -> None:
    await built(api, FIRST)
    ref = await built(api, SECOND, 2)
    body = {"goal": "make it blue", "project_id": "shop", "base_build": "latest"}
    accepted = await post(api, "/v1/jobs", body)
    (event,) = (await api.get(f"/v1/jobs/{accepted['job_id']}/events"))["events"]
    assert (event["data"]["base_build"], event["data"]["base_job"]) == (2, ref.job)


async def test_a_repeated_request_gives_the_first_answer_also_when_another_is_the_latest(
    api: QuietApi, engine: AsyncEngine
) -> None:
    ref = await built(api, FIRST)
    body = {"goal": "make it blue", "project_id": "shop", "base_build": "latest"}
    first = await post(api, "/v1/jobs", body, key="once")
    await built(api, SECOND, 2)
    assert (await post(api, "/v1/jobs", body, key="once"))["job_id"] == first["job_id"]
    await post(api, "/v1/jobs", {**body, "base_build": 2}, key="once", status=422)
    restored = await post(api, f"{BUILDS}/1/restore", key="back")
    await erase(engine, api.store.partition(ref.tenant), [ref.job])
    assert (await post(api, f"{BUILDS}/1/restore", key="back"))["job_id"] == restored["job_id"]
    await post(api, f"{BUILDS}/2/restore", key="back", status=422)


async def test_a_build_that_is_not_there_is_no_base(api: QuietApi) -> None:
    await built(api, FIRST)
    for project, base, missing in (
        ("shop", 7, "build 7 of project shop"),
        ("none", "latest", "build of project none"),
    ):
        body = {"goal": "bluer", "project_id": project, "base_build": base}
        problem = await post(api, "/v1/jobs", body, status=404)
        assert problem["detail"] == f"there is no {missing}"
    for bad in (0, -1, "first", "1", 1.5, True, 2**31):
        asked: dict[str, object] = {"goal": "bluer", "project_id": "shop", "base_build": bad}
        problem = await post(api, "/v1/jobs", asked, status=422)
        assert problem["detail"].startswith("base_build: give the number of a build")
    problem = await post(api, "/v1/jobs", {"goal": "bluer", "in_place": True}, status=422)
    assert "in_place needs a base_build" in problem["detail"]


async def test_whoever_saw_a_build_become_ready_can_go_on_from_it_at_once(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine
) -> None:
    async with quiet_api(handler, hub, engine, read_wait_s=30) as api:
        manifest = await api.artifacts.put(FIRST)
        await write(api.store, [*all_completed(), ready(1, manifest=manifest)])
        answers: list[httpx.Response] = []

        async def submit() -> None:
            body = {"goal": "bluer", "project_id": "shop", "base_build": 1}
            answers.append(await api.client.post("/v1/jobs", json=body))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit)
            await api.fold()
        assert answers[0].status_code == 202, answers[0].text


# --- going back to it ----------------------------------------------------------------------------


async def test_a_restore_is_a_job_on_the_files_of_the_old_build(api: QuietApi) -> None:
    ref = await built(api, FIRST)
    await built(api, SECOND, 2)
    accepted = await post(api, f"{BUILDS}/1/restore?tier=pro")
    (event,) = (await api.get(f"/v1/jobs/{accepted['job_id']}/events"))["events"]
    told = event["data"]
    assert told["goal"] == "Restore build 1: a shop, try 1"
    assert (told["restore"], told["base_build"], told["base_job"]) == (True, 1, ref.job)
    assert told["tier"] == "pro"
    assert told["base_manifest"] == (await api.get(f"{BUILDS}/1/files"))["manifest"]
