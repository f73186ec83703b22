"""OpenAI's Chat Completions API: https://platform.openai.com/docs/api-reference/chat-streaming."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.llm_server.turns import (
    Asked,
    Call,
    Called,
    Flood,
    Refused,
    Returned,
    Say,
    Spoken,
    Status,
    Turn,
    check_calls,
    pieces,
    sse,
)

PATH = "/v1/chat/completions"


def key(headers: Mapping[str, str]) -> str | None:
    return headers.get("authorization", "").removeprefix("Bearer ")


def error(status: Status) -> dict[str, Any]:
    kinds = {401: "invalid_request_error", 429: "tokens", 500: "server_error", 503: "server_error"}
    kind = kinds.get(status.status, "invalid_request_error")
    return {"error": {"message": status.message, "type": kind, "param": None, "code": status.code}}


def read(body: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
    del headers
    messages: list[Spoken | Called | Returned] = []
    for message in body["messages"]:
        match message["role"]:
            case "system" | "developer":
                messages.append(Spoken("system", _text(message["content"])))
            case "user":
                messages.append(Spoken("user", _text(message["content"])))
            case "tool":
                messages.append(
                    Returned(message["tool_call_id"], _text(message["content"]), failed=False)
                )
            case "assistant":
                if not message.get("content") and not message.get("tool_calls"):
                    raise Refused("content or tool_calls must be set")
                if message.get("content"):
                    messages.append(Spoken("assistant", _text(message["content"])))
                for call in message.get("tool_calls") or []:
                    function = call["function"]
                    messages.append(Called(call["id"], function["name"], function["arguments"]))
            case role:
                raise Refused(f"invalid role {role}")
    if not messages:
        raise Refused("messages must not be empty")
    check_calls(tuple(messages))
    return Asked(
        model=body["model"],
        stream=bool(body.get("stream")),
        max_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
        tools=tuple(tool["function"]["name"] for tool in body.get("tools", [])),
        messages=tuple(messages),
    )


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def stream(turn: Turn, asked: Asked) -> Iterator[bytes]:
    yield _chunk(asked, {"role": "assistant", "content": None})
    calls = 0
    for part in turn.parts:
        match part:
            case Say(text=text, refuses=refuses):
                for piece in pieces(text):
                    yield _chunk(asked, {"refusal" if refuses else "content": piece})
            case Flood(piece=piece):
                while True:
                    yield _chunk(asked, {"content": piece})
            case Call(id=id, tool=tool):
                function = {"name": tool, "arguments": ""}
                first = {"index": calls, "id": id, "type": "function", "function": function}
                yield _chunk(asked, {"tool_calls": [first]})
                for piece in pieces(part.json):
                    more = {"index": calls, "function": {"arguments": piece}}
                    yield _chunk(asked, {"tool_calls": [more]})
                calls += 1
    yield _chunk(asked, {}, finish_reason=_stop(turn))
    yield sse({**_head(asked, "chat.completion.chunk"), "choices": [], "usage": _usage(turn)})
    yield b"data: [DONE]\n\n"


def overloaded() -> bytes:
    message = "The server is overloaded"
    return sse({"error": {"message": message, "type": "server_error", "code": "overloaded"}})


def whole(turn: Turn, asked: Asked) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    for part in turn.parts:
        match part:
            case Say(text=text, refuses=refuses):
                message["refusal" if refuses else "content"] = text
            case Call(id=id, tool=tool):
                function = {"name": tool, "arguments": part.json}
                call = {"id": id, "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
    choice = {"index": 0, "message": message, "finish_reason": _stop(turn), "logprobs": None}
    return {**_head(asked, "chat.completion"), "choices": [choice], "usage": _usage(turn)}


def _chunk(asked: Asked, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return sse({**_head(asked, "chat.completion.chunk"), "choices": [choice]})


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_795_000_000, "model": asked.model}


def _usage(turn: Turn) -> dict[str, Any]:
    return {
        "prompt_tokens": turn.input_tokens,
        "completion_tokens": turn.output_tokens,
        "total_tokens": turn.input_tokens + turn.output_tokens,
        "prompt_tokens_details": {"cached_tokens": turn.cached_tokens, "audio_tokens": 0},
    }


def _stop(turn: Turn) -> str:
    if turn.stop == "filter":
        return "content_filter"
    if turn.stop == "length":
        return "length"
    return "tool_calls" if turn.calls else "stop"
