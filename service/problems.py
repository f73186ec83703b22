"""Errors over HTTP: RFC 9457 problem documents. The only place where statuses meet our errors."""

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from eventstore import (
    CommandIdReused,
    EventStoreError,
    LogDamaged,
    LogMissing,
    LogUnverified,
    PayloadRefused,
    PostgresUnavailable,
    QuotaSpent,
    RedisUnavailable,
    TooManyWaiting,
    VersionConflict,
)
from generator import Redactor
from schemas import CommandRefused, JobUnknown, UndecodableEvent, format_time
from service.errors import SecretKeyMissing, SettingsInvalid
from service.refusals import NotAllowed, Unusable

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = "2"

_STATUS: dict[type[Exception], tuple[int, str]] = {
    JobUnknown: (404, "No such job"),
    CommandRefused: (409, "Not possible in the job's state"),
    CommandIdReused: (422, "Idempotency-Key used for another request"),
    TooManyWaiting: (429, "Too many jobs wait"),
    PayloadRefused: (422, "The request cannot be kept"),
    LogDamaged: (503, "The log cannot be used"),
    VersionConflict: (409, "The job changed meanwhile"),
    RedisUnavailable: (503, "The log is not reachable"),
    PostgresUnavailable: (503, "The read model is not reachable"),
    LogMissing: (503, "The log cannot be used"),
    LogUnverified: (503, "The log cannot be used"),
    SecretKeyMissing: (503, "Secrets cannot be kept here"),
    SettingsInvalid: (503, "A setting cannot be used"),
    UndecodableEvent: (500, "An event of the job cannot be read"),
}

log = structlog.get_logger()


class NothingMore(Exception):
    """A follower has everything and nothing will come: 204, which ends an EventSource."""


class NotThere(Exception):
    """What was asked for is not there, or another's: 404, with these headers."""

    def __init__(self, what: str, headers: Mapping[str, str]) -> None:
        self.headers = headers
        super().__init__(f"there is no {what}")


class Gone(Exception):
    """What was asked for was here and cannot be had any more; the message says why: 410."""


def problem(status: int, title: str, detail: str = "", **members: Any) -> JSONResponse:
    """A problem document; `detail` says what to do."""
    content = {"type": "about:blank", "title": title, "status": status, **members}
    if detail:
        content["detail"] = detail
    headers = {"Retry-After": RETRY_AFTER_S} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(content, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI, redactor: Redactor) -> None:
    """Turn every error of an app's routes into a problem document without secrets."""

    async def known(_: Request, error: Exception) -> Response:
        for kind in type(error).__mro__:
            if kind in _STATUS:
                status, title = _STATUS[kind]
                return problem(status, title, redactor.text(str(error)))
        log.error("request_failed", exc_info=error)
        return problem(500, "Something went wrong on our side")

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
        answer = problem(error.status_code, redactor.text(str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
        return _unusable([_fault(found) for found in error.errors()[:20]])

    async def unusable(_: Request, error: Exception) -> Response:
        assert isinstance(error, Unusable)  # noqa: S101 - registered for it
        return _unusable([{"field": error.field, "problem": error.problem}])

    async def not_there(_: Request, error: Exception) -> Response:
        assert isinstance(error, NotThere)  # noqa: S101 - registered for it
        answer = problem(404, "Not found", redactor.text(str(error)))
        answer.headers.update(error.headers)
        return answer

    async def not_allowed(_: Request, error: Exception) -> Response:
        return problem(403, "Not allowed", redactor.text(str(error)))

    async def quota_spent(_: Request, error: Exception) -> Response:
        assert isinstance(error, QuotaSpent)  # noqa: S101 - registered for it
        answer = problem(
            429,
            "The quota of the day is used up",
            redactor.text(str(error)),
            quota=error.what,
            limit=error.limit,
            used=error.used,
            resets_at=format_time(error.resets_at),
        )
        answer.headers["Retry-After"] = str(error.wait_s)
        return answer

    async def gone(_: Request, error: Exception) -> Response:
        log.error("artifact_missing", error=str(error))
        return problem(410, "Gone", redactor.text(str(error)))

    async def nothing_more(_: Request, __: Exception) -> Response:
        return Response(status_code=204)

    for kind in (
        EventStoreError,
        CommandRefused,
        UndecodableEvent,
        SecretKeyMissing,
        SettingsInvalid,
        Exception,
    ):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Unusable, unusable)
    app.add_exception_handler(NotAllowed, not_allowed)
    app.add_exception_handler(QuotaSpent, quota_spent)
    app.add_exception_handler(NotThere, not_there)
    app.add_exception_handler(Gone, gone)
    app.add_exception_handler(NothingMore, nothing_more)


def _unusable(faults: list[dict[str, str]]) -> JSONResponse:
    detail = "; ".join(f"{fault['field']}: {fault['problem']}" for fault in faults)
    return problem(422, "The request cannot be used", detail, errors=faults)


def _fault(found: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong where. Without the input: it may not be encodable, and is the caller's own."""
    if found["type"] == "json_invalid":
        where = f"character {found['loc'][1]}"
        return {"field": "body", "problem": f"not JSON at {where}: {found['ctx']['error']}"}
    return {
        "field": ".".join(map(str, found["loc"][1:])) or "body",
        "problem": found["msg"].removeprefix("Value error, "),
    }
