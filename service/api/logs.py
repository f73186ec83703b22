"""A job's log over HTTP: what its commands, its app and its model have said."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Annotated, Literal

import anyio
import structlog
from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import StreamingResponse
from obstore.exceptions import BaseError as ObstoreError

from eventstore import START, read_progress
from generator import ArtifactMissing, LogLine, kept_lines, log_lines
from schemas import Job, JobRef, Phase
from service.api.parts import OwnParts, Parts, Tenant, load

STORE_S = 20.0
MOST_LINES = 10_000
ENTRY = "Headrace-Entry"
KEPT = "Headrace-Log"
_PIECE_LINES = 500

log = structlog.get_logger()
router = APIRouter()

Source = Literal["command", "stdout", "stderr", "server", "model", "note"]


@router.get("/v1/jobs/{job_id}/logs", response_class=StreamingResponse)
async def logs(
    parts: OwnParts,
    job_id: str,
    owner: Tenant,
    phase: Phase | None = None,
    stream: Annotated[list[Source] | None, Query()] = None,
    tail: Annotated[int | None, Query(ge=0, le=MOST_LINES)] = None,
    accept: Annotated[str, Header()] = "",
) -> StreamingResponse:
    """The job's log, a JSON object a line, or plain text if that is what the caller accepts.

    The whole of it once the job has ended; until then what was shown so far.
    """
    job = await load(parts, owner, job_id)
    headers, lines = await _lines(parts, JobRef(owner, job_id), job)
    wanted: Iterable[LogLine] = (
        line
        for line in lines
        if (phase is None or line.phase == phase) and (not stream or line.stream in stream)
    )
    if tail is not None:
        wanted = deque(wanted, maxlen=tail)
    is_plain = "text/plain" in accept
    return StreamingResponse(
        _pieces(wanted, is_plain),
        headers=headers,
        media_type="text/plain; charset=utf-8" if is_plain else "application/x-ndjson",
    )


async def _lines(parts: Parts, ref: JobRef, job: Job) -> tuple[dict[str, str], Iterable[LogLine]]:
    """The whole log of a job that has ended, else what its stream still has of it."""
    if job.log is not None:
        return {KEPT: "whole"}, kept_lines(await _kept(parts, job.log))
    shown = [one async for one in read_progress(parts.handler.store, ref)]
    # Whoever goes on live begins behind the last entry that was looked at.
    return {KEPT: "shown", ENTRY: shown[-1].id if shown else START}, log_lines(shown)


async def _kept(parts: Parts, digest: str) -> bytes:
    try:
        with anyio.fail_after(STORE_S):
            return await parts.artifacts.get_blob(digest)
    except ArtifactMissing as error:
        raise HTTPException(410, "The log of this job was erased, or is lost") from error
    except (ObstoreError, OSError, TimeoutError) as error:
        log.warning("artifacts_away", exc_info=error)
        raise HTTPException(503, "The store of the artifacts is not reachable") from error


def _pieces(lines: Iterable[LogLine], is_plain: bool) -> Iterator[str]:
    """The answer's body, many lines at a time."""
    piece: list[str] = []
    for line in lines:
        piece.append(_plain(line) if is_plain else _json(line))
        if len(piece) == _PIECE_LINES:
            yield "\n".join(piece) + "\n"
            piece = []
    if piece:
        yield "\n".join(piece) + "\n"


def _json(line: LogLine) -> str:
    return json.dumps(asdict(line), ensure_ascii=False, separators=(",", ":"))


def _plain(line: LogLine) -> str:
    return f"$ {line.text}" if line.stream == "command" else line.text
