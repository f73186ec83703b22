"""The application: its parts, and the routes of each noun."""

from fastapi import FastAPI

from service import problems
from service.api import (
    builds,
    health,
    history,
    jobs,
    logs,
    metrics,
    previews,
    projects,
    secrets,
    stats,
    stream,
    usage,
)
from service.api.parts import Parts
from service.api.reading import Folded
from service.body_limit import BodyLimit

MAX_BODY_BYTES = 256 * 1024


def create_api(parts: Parts) -> FastAPI:
    """The API over these parts."""
    app = FastAPI(title="Headrace", version="0.1.0", docs_url=None, redoc_url=None)
    app.state.parts = parts
    app.state.folded = Folded(parts.engine)
    problems.install(app, parts.redactor)
    app.add_middleware(BodyLimit, most_bytes=MAX_BODY_BYTES)
    for noun in (
        jobs,
        history,
        logs,
        stream,
        projects,
        builds,
        previews,
        secrets,
        stats,
        usage,
        health,
        metrics,
    ):
        app.include_router(noun.router)
    return app
