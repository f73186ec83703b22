"""The API on a port of this machine."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from service.api import Parts, create_api
from service.errors import SettingsInvalid

__all__ = ["ApiServer", "Parts", "api_server", "listen"]

BACKLOG = 128


class ApiServer(uvicorn.Server):
    """uvicorn without its signal handlers: the CLI owns Ctrl-C."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsInvalid(
            f"HEADRACE_PORT: {host}:{port} cannot be used ({error.strerror}); choose another, or 0 "
            "for a free one"
        ) from error
    listener.listen(BACKLOG)  # before anybody is told where
    return listener


def api_server(parts: Parts) -> ApiServer:
    """A server of the API over these parts, not serving yet."""
    config = uvicorn.Config(
        create_api(parts),
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    return ApiServer(config)
