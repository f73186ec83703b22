"""The loopback server, in a thread of its own."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from tests.llm_server import anthropic, openai_chat, openai_responses
from tests.llm_server.turns import Asked, Refused, Status, Turn

PROTOCOLS: dict[str, Any] = {
    module.PATH: module for module in (anthropic, openai_chat, openai_responses)
}
PATIENCE_S = 20.0

Answer = Turn | Status
Model = Callable[[Asked], Answer]


class _Cut(Exception):
    """Makes the server drop the connection."""


def silent(asked: Asked) -> Answer:
    """The model of a server that was not told what to say."""
    return Status(500, f"nothing in the script for {asked.model}")


class LLMServer:
    """`with LLMServer() as server:` serves on a free loopback port.

    Answers come from the script (`say`) in its order, then from `model`.
    """

    def __init__(self, model: Model = silent) -> None:
        self.api_key = "sk-loopback-0123456789abcdef"
        self.url = ""
        self.model = model
        self.asked: list[Asked] = []
        self.broken: list[Exception] = []
        """Faults of the server itself, which nobody ordered."""
        self._script: list[Answer] = []
        self._holding = threading.Event()
        self._gone = threading.Event()
        self._uvicorn: uvicorn.Server
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="llm")

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()

    def say(self, *answers: Answer) -> None:
        """Answer the next requests so, one after the other."""
        self._script += answers

    def reset(self) -> None:
        """Forget the script and what was asked."""
        self.model = silent
        self._script.clear()
        self.asked.clear()
        self._holding.clear()
        self._gone.clear()

    @property
    def is_spent(self) -> bool:
        """Whether everything of the script has been said."""
        return not self._script

    async def holds(self) -> None:
        """Wait until an answer has come to its `hold_before`."""
        assert await asyncio.to_thread(self._holding.wait, PATIENCE_S), "no answer was held"

    async def client_gone(self) -> None:
        """Wait until a client has closed its connection in the middle of an answer."""
        assert await asyncio.to_thread(self._gone.wait, PATIENCE_S), "the client has stayed"

    async def _serve(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            config = uvicorn.Config(
                self._app,
                interface="asgi3",
                lifespan="off",
                log_level="critical",
                timeout_graceful_shutdown=1,
            )
            self._uvicorn = uvicorn.Server(config)
            serving = asyncio.create_task(self._uvicorn.serve([listener]))
            self._ready.set()
            await serving

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except _Cut:
            raise
        except Exception as error:
            self.broken.append(error)
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body = await _body(receive)
        protocol = PROTOCOLS.get(scope["path"])
        if protocol is None:
            await _send_json(send, 404, {"error": {"message": f"no {scope['path']} here"}})
            return
        if protocol.key(headers) != self.api_key:
            wrong = protocol.error(Status(401, "invalid x-api-key"))
            await _send_json(send, 401, wrong)
            return
        try:
            asked = protocol.read(json.loads(body), headers)
        except Refused as refused:
            await _send_json(send, 400, protocol.error(Status(400, str(refused))))
            return
        self.asked.append(asked)
        answer = self._script.pop(0) if self._script else self.model(asked)
        if isinstance(answer, Status):
            content = answer.body if answer.body is not None else protocol.error(answer)
            await _send_json(send, answer.status, content, answer.headers)
        elif asked.stream:
            await self._stream(protocol, answer, asked, receive, send)
        else:
            await _send_json(send, 200, protocol.whole(answer, asked))

    async def _stream(
        self, protocol: Any, turn: Turn, asked: Asked, receive: Receive, send: Send
    ) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for event in protocol.stream(turn, asked):
            if turn.cut_before and turn.cut_before in event:
                gone.cancel()
                raise _Cut
            if turn.end_before and turn.end_before in event:
                break
            if turn.fail_before and turn.fail_before in event:
                await _send_piece(send, protocol.overloaded())
                break
            if turn.hold_before and turn.hold_before in event:
                self._holding.set()
                await gone
            if gone.done():
                self._gone.set()
                return
            await _send_piece(send, event)
            await asyncio.sleep(0)
        gone.cancel()
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _disconnected(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def _send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _send_json(send: Send, status: int, content: Any, headers: Any = None) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(name.encode(), value.encode()) for name, value in {**named, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
