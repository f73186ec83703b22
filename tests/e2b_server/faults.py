"""Faults that a test orders: the next matching request goes wrong as told."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATIENCE_S = 20


class Hold:
    """A request that has arrived whole and waits until it is released."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._released = threading.Event()
        self._answered = threading.Event()

    async def arrived(self) -> None:
        assert await asyncio.to_thread(self._arrived.wait, PATIENCE_S), "no request came"

    def release(self) -> None:
        self._released.set()

    async def answered(self) -> None:
        """The request has had its effect, whether or not its client was still there."""
        assert await asyncio.to_thread(self._answered.wait, PATIENCE_S), "no answer was given"

    async def pass_through(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _whole(receive)

        async def replay() -> Message:
            return body.pop(0) if body else await receive()

        self._arrived.set()
        await asyncio.to_thread(self._released.wait)
        try:
            await app(scope, replay, send)
        finally:
            self._answered.set()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in place of the real one; with `late`, the request has its effect first."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    late: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks off before the answer's piece that contains `before`."""

    before: bytes


Fault = Answer | Cut | Hold


class _Cut(Exception):
    """Makes the server drop the connection."""


class Faults:
    """ASGI middleware. Orders come from the test's thread, requests from the server's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._orders: list[tuple[str, Fault]] = []
        self._holds: list[Hold] = []

    def order(self, path_prefix: str, fault: Fault) -> None:
        """The next request whose path starts with `path_prefix` meets `fault`; in order."""
        self._orders.append((path_prefix, fault))
        if isinstance(fault, Hold):
            self._holds.append(fault)

    def clear(self) -> None:
        """Forget what nobody met, and let go of who still waits."""
        self._orders.clear()
        while self._holds:
            self._holds.pop().release()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match self._taken(scope.get("path", "")):
            case None:
                await self._app(scope, receive, send)
            case Hold() as hold:
                await hold.pass_through(self._app, scope, receive, send)
            case Answer() as answer:
                if answer.late:
                    await self._app(scope, receive, _nowhere)
                else:
                    await _whole(receive)  # an answer in mid-request would cut the connection
                await _send_answer(answer, send)
            case Cut(before=before):

                async def send_until(message: Message) -> None:
                    if before in message.get("body", b""):
                        raise _Cut
                    await send(message)

                await self._app(scope, receive, send_until)

    def _taken(self, path: str) -> Fault | None:
        for order in self._orders:
            if path.startswith(order[0]):
                self._orders.remove(order)
                return order[1]
        return None


async def _whole(receive: Receive) -> list[Message]:
    """The request with all of its body."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


async def _nowhere(message: Message) -> None:
    del message


async def _send_answer(answer: Answer, send: Send) -> None:
    length = str(len(answer.body))
    headers = {"content-type": "application/json", "content-length": length, **answer.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": answer.body})
