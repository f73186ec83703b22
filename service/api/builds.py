"""What is in a build, over HTTP: files, one or all of them, what differs; and restoring it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated

import anyio
from anyio import to_thread
from fastapi import APIRouter, Header, HTTPException, Path, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from generator import ArtifactStore
from generator.artifacts import StoredFile
from generator.difference import (
    MAX_PATCH_CHARS,
    Change,
    Changed,
    binary_patch,
    changed_files,
    is_comparable,
    patch_of,
)
from generator.errors import ArtifactMissing, ArtifactsUnavailable
from generator.packing import Format, packed
from projector import BuildRow
from schemas import is_id
from schemas.commands import RequestBuild
from schemas.events import Tier
from service.api.bases import Base, find_build, with_files
from service.api.jobs import LAST_NUMBER, Accepted, IdempotencyKey, accepted, request_once
from service.api.parts import OwnParts, Tenant
from service.api.reading import Reader, ReadModel
from service.problems import Gone
from service.refusals import Unusable

router = APIRouter(prefix="/v1/projects/{project_id}/builds/{number}")
Number = Annotated[int, Path(ge=1, le=LAST_NUMBER)]

STORE_S = 60.0
"""For a question to the artifact store; an archive may take that for each of its files."""
MAX_SHOWN_GOAL_CHARS = 200


class FileRow(BaseModel):
    """A file of a build. `mode` is octal, as `chmod` takes it."""

    path: str
    size_bytes: int
    sha256: str
    mode: str


class FileList(BaseModel):
    """All files of a build, by path; `manifest` names exactly these."""

    manifest: str
    files: list[FileRow]


class FileDiff(BaseModel):
    """What became of one file. `patch` is null where it is not shown, and `note` says why."""

    path: str
    change: Change
    before: FileRow | None
    after: FileRow | None
    patch: str | None
    note: str | None


class BuildDiff(BaseModel):
    """What build `number` has otherwise than `against`; `is_cut`: some patches are left out."""

    number: int
    against: int
    is_cut: bool
    files: list[FileDiff]


@router.get("/files")
async def files(
    parts: OwnParts, owner: Tenant, reader: ReadModel, project_id: str, number: Number
) -> FileList:
    """The files of a build."""
    base = await _base(reader, owner, project_id, number)
    listed = await _listed(parts.artifacts, base)
    return FileList(
        manifest=base.manifest, files=[_row(path, file) for path, file in listed.items()]
    )


@router.get("/files/{path:path}")
async def file(
    parts: OwnParts, owner: Tenant, reader: ReadModel, project_id: str, number: Number, path: str
) -> Response:
    """The content of one file, as it is; never as a page of ours."""
    base = await _base(reader, owner, project_id, number)
    listed = await _listed(parts.artifacts, base)
    if path not in listed:
        raise reader.missing(f"file {path[:200]!r} in {base.build.version} of project {project_id}")
    with _stored():
        content = await parts.artifacts.read(path, listed[path])
    return Response(
        content,
        media_type="text/plain; charset=utf-8" if _is_text(content) else "application/octet-stream",
        headers={
            "ETag": f'"{listed[path].sha256}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


@router.get("/archive")
async def archive(
    parts: OwnParts,
    owner: Tenant,
    reader: ReadModel,
    project_id: str,
    number: Number,
    form: Annotated[Format, Query(alias="format")] = Format.ZIP,
) -> Response:
    """All files of a build in one; the same build gives the same bytes."""
    base = await _base(reader, owner, project_id, number)
    listed = await _listed(parts.artifacts, base)
    folder = f"{project_id}-{base.build.version}"

    async def read(path: str, file: StoredFile) -> bytes:
        with anyio.fail_after(STORE_S):
            return await parts.artifacts.read(path, file)

    pieces = packed(listed, read, folder=folder, at=base.build.ready_at, form=form)
    # What is missing from the start is told in an answer; later the answer can only break off.
    with _stored():
        first = await anext(pieces)
    return StreamingResponse(
        _with_first(first, pieces),
        media_type=form.media_type,
        headers={
            "Content-Disposition": f'attachment; filename="{folder}.{form}"',
            "ETag": f'"{base.manifest}.{form}"',
        },
    )


@router.get("/diff")
async def diff(
    parts: OwnParts,
    owner: Tenant,
    reader: ReadModel,
    project_id: str,
    number: Number,
    against: Annotated[int | None, Query(ge=1, le=LAST_NUMBER)] = None,
    form: Annotated[str | None, Query(alias="format", pattern="^(json|patch)$")] = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """What a build has otherwise than another; than its parent, or the one before, by default."""
    new = await _base(reader, owner, project_id, number)
    other = against or new.build.parent or number - 1
    if not other:
        raise Unusable("against", f"{new.build.version} is the first: name another build")
    old = await _base(reader, owner, project_id, other, "against")
    found = changed_files(await _listed(parts.artifacts, old), await _listed(parts.artifacts, new))
    compared = await _compared(parts.artifacts, found)
    document = BuildDiff(
        number=number,
        against=other,
        is_cut=any(one.note == _CUT for one in compared),
        files=compared,
    )
    if form == "patch" or (form is None and _prefers_text(accept)):
        return Response(_patch(document, found), media_type="text/plain; charset=utf-8")
    return Response(document.model_dump_json(), media_type="application/json")


@router.post("/restore", status_code=202)
async def restore(
    parts: OwnParts,
    owner: Tenant,
    reader: ReadModel,
    response: Response,
    project_id: str,
    number: Number,
    tier: Tier | None = None,
    key: IdempotencyKey = None,
) -> Accepted:
    """Queue a new build with exactly the files of this one; nobody writes any code."""

    async def made() -> RequestBuild:
        base = await _base(reader, owner, project_id, number)
        return RequestBuild(
            tenant=owner,
            user_id="anonymous",
            project_id=project_id,
            goal=_restoring(base.build),
            base_build=number,
            base_manifest=base.manifest,
            base_job=base.build.job_id,
            restore=True,
        )

    asked = {"project_id": project_id, "restore": number, "tier": tier}
    handled = await request_once(parts, owner, made, key=key, asked=asked, tier=tier)
    return accepted(handled.job, handled.position, response)


_CUT = "not shown: the patch has become too long"
_BINARY = "not shown: not a text, or too long to compare line by line"


async def _compared(artifacts: ArtifactStore, found: list[Changed]) -> list[FileDiff]:
    compared, left = [], MAX_PATCH_CHARS
    for changed in found:
        patch, note = None, None
        if left <= 0:
            note = _CUT
        elif is_comparable(changed):
            patch = await to_thread.run_sync(patch_of, changed, *await _sides(artifacts, changed))
            if patch is None:
                note = _BINARY
            elif len(patch) > left:
                patch, note, left = None, _CUT, 0
            else:
                left -= len(patch)
        else:
            note = _BINARY
        compared.append(
            FileDiff(
                path=changed.path,
                change=changed.change,
                before=_row(changed.path, changed.before) if changed.before else None,
                after=_row(changed.path, changed.after) if changed.after else None,
                patch=patch,
                note=note,
            )
        )
    return compared


async def _sides(artifacts: ArtifactStore, changed: Changed) -> tuple[bytes, bytes]:
    with _stored(), anyio.fail_after(STORE_S):
        before, after = [
            await artifacts.read(changed.path, side) if side else b""
            for side in (changed.before, changed.after)
        ]
    return before, after


def _patch(document: BuildDiff, found: list[Changed]) -> str:
    parts = []
    for changed, shown in zip(found, document.files, strict=True):
        if shown.patch is not None:
            parts.append(shown.patch)
        elif shown.note == _BINARY:
            parts.append(binary_patch(changed))
    cut = sum(shown.note == _CUT for shown in document.files)
    if cut:
        parts.append(
            f"headrace: {cut} more files differ and are not shown: the patch is too long\n"
        )
    return "".join(parts)


async def _base(
    reader: Reader, owner: str, project_id: str, number: int, field: str = "number"
) -> Base:
    if not is_id(project_id):
        raise reader.missing(f"project {project_id[:80]}")
    return with_files(await find_build(reader, owner, project_id, number), field)


async def _listed(artifacts: ArtifactStore, base: Base) -> dict[str, StoredFile]:
    with _stored(), anyio.fail_after(STORE_S):
        return await artifacts.files(base.manifest)


@contextmanager
def _stored() -> Iterator[None]:
    """Says of what is missing or damaged that it cannot be had any more, else when to ask again."""
    try:
        yield
    except ArtifactMissing as error:
        raise Gone(str(error)) from error
    except (ArtifactsUnavailable, TimeoutError) as error:
        raise HTTPException(503, "The store of files does not answer: try again") from error


async def _with_first(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in others:
        yield piece


def _row(path: str, file: StoredFile) -> FileRow:
    return FileRow(path=path, size_bytes=file.size_bytes, sha256=file.sha256, mode=f"{file.mode:o}")


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _prefers_text(accept: str) -> bool:
    kinds = [kind.partition(";")[0].strip() for kind in accept.split(",")]
    return "text/plain" in kinds and "application/json" not in kinds


def _restoring(build: BuildRow) -> str:
    goal = " ".join(build.goal.split())
    shown = goal if len(goal) <= MAX_SHOWN_GOAL_CHARS else f"{goal[:MAX_SHOWN_GOAL_CHARS]}…"
    return f"Restore build {build.number}: {shown}"
