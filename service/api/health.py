"""Whether the servers answer, and whether the read model keeps up. Asked without a key."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import text

from eventstore import EventStoreError, postgres_errors, redis_errors
from projector import parked_jobs, standing
from service.api.parts import OwnParts, Parts

HEALTH_S = 2.0
router = APIRouter()


@dataclass(slots=True)
class Look:
    """What was seen. `servers`: what is wrong with each, "" for nothing.

    `lag`, by partition, and `parked` are None where they could not be asked; `read_model` says why.
    `left_out`: the tables that wait for a backfill.
    """

    servers: Mapping[str, str]
    trouble: Mapping[int, str]
    partitions: int
    lag: Mapping[int, int] | None = None
    parked: int | None = None
    left_out: tuple[str, ...] = ()
    read_model: str = ""


async def look(parts: Parts) -> Look:
    """Look at everything, each for two seconds at most."""
    seen = Look(await _servers(parts), parts.trouble, parts.handler.store.partitions)

    async def read_model(parts: Parts) -> None:
        seen.lag, seen.parked, seen.left_out = await _read_model(parts)

    seen.read_model = await _fault(parts, read_model)
    return seen


@router.get("/healthz")
async def healthz(parts: OwnParts) -> JSONResponse:
    """Whether both servers answer."""
    servers = await _servers(parts)
    return _answer(any(servers.values()), **{name: said or "ok" for name, said in servers.items()})


@router.get("/readyz")
async def readyz(parts: OwnParts) -> JSONResponse:
    """Whether what is written can also be read: nothing holds the projector up.

    `lag` is, by partition, how many events are not folded yet; `left_out` names the tables that
    wait for a backfill. Parked jobs are only counted: they hold nobody up.
    """
    seen = await look(parts)
    known: dict[str, Any] = {}
    if seen.lag is not None:
        known = {"lag": {str(number): lag for number, lag in seen.lag.items()}}
        known["parked"] = seen.parked
        known["left_out"] = seen.left_out
    trouble = {
        str(number): parts.redactor.text(said) for number, said in sorted(seen.trouble.items())
    }
    is_late = bool(seen.read_model or trouble or seen.left_out)
    return _answer(is_late, read_model=seen.read_model or "ok", projector=trouble, **known)


async def _servers(parts: Parts) -> dict[str, str]:
    return {
        "redis": await _fault(parts, _ask_redis),
        "postgres": await _fault(parts, _ask_postgres),
    }


async def _fault(parts: Parts, check: Callable[[Parts], Awaitable[None]]) -> str:
    """What a check says went wrong, "" for nothing."""
    try:
        with anyio.fail_after(HEALTH_S):
            await check(parts)
    except (EventStoreError, TimeoutError) as error:
        return parts.redactor.text(str(error)) or "no answer in time"
    return ""


def _answer(is_failing: bool, **members: Any) -> JSONResponse:
    status = "failing" if is_failing else "ok"
    return JSONResponse({"status": status, **members}, 503 if is_failing else 200)


async def _read_model(parts: Parts) -> tuple[dict[int, int], int, tuple[str, ...]]:
    """How far the read model is behind the log, how many jobs are parked, what is left out."""
    store = parts.handler.store
    with postgres_errors():
        async with parts.engine.connect() as connection:
            found = await standing(connection)
            parked = [job for job in await parked_jobs(connection) if job.state == "parked"]
    lag = {}
    for partition in range(store.partitions):
        at = found.folded.get(partition)
        end = await store.log_end(partition)
        # Events may have been folded between the two questions.
        lag[partition] = max(0, end.seq - (at.seq if at else 0))
    return lag, len(parked), tuple(sorted(found.left_out))


async def _ask_redis(parts: Parts) -> None:
    with redis_errors():
        await parts.handler.store.redis.ping()


async def _ask_postgres(parts: Parts) -> None:
    with postgres_errors():
        async with parts.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
