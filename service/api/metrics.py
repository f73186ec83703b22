"""What a monitor watches, in the text format of Prometheus. Asked without a key: it names nobody.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from service.api.health import Look, look
from service.api.parts import OwnParts

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(parts: OwnParts) -> PlainTextResponse:
    """Servers, lag and trouble of the projector, parked jobs. A server that is away is a 0."""
    seen = await look(parts)
    return PlainTextResponse("".join(_lines(seen)), media_type="text/plain; version=0.0.4")


def _lines(seen: Look) -> Iterator[str]:
    yield from _gauge("headrace_server_up", "1 when the server answers.")
    for name, fault in seen.servers.items():
        yield f'headrace_server_up{{server="{name}"}} {0 if fault else 1}\n'
    if seen.lag is not None:
        yield from _gauge("headrace_projector_lag_events", "Events that are not folded yet.")
        for partition, events in seen.lag.items():
            yield f'headrace_projector_lag_events{{partition="{partition}"}} {events}\n'
    yield from _gauge("headrace_projector_held_up", "1 when the projector waits or is stuck.")
    for partition in range(seen.partitions):
        held_up = int(partition in seen.trouble)
        yield f'headrace_projector_held_up{{partition="{partition}"}} {held_up}\n'
    if seen.parked is not None:
        yield from _gauge("headrace_parked_jobs", "Jobs that could not be folded.")
        yield f"headrace_parked_jobs {seen.parked}\n"
        yield from _gauge("headrace_tables_left_out", "Tables that wait for a backfill.")
        yield f"headrace_tables_left_out {len(seen.left_out)}\n"


def _gauge(name: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {name} {help_text}\n"
    yield f"# TYPE {name} gauge\n"
