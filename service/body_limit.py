"""Bounds the bodies of requests, also of those that do not say how long they are."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import problem


class BodyLimit:
    """Refuses a body of more than `most_bytes`, at the latest when that much of it has come."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        title = f"The request is too large: a body has at most {self._most_bytes} bytes"
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise HTTPException(413, title)
            return message

        if int(Headers(scope=scope).get("content-length", "0")) > self._most_bytes:
            await problem(413, title)(scope, receive, send)
        else:
            await self._app(scope, receive_limited, send)
