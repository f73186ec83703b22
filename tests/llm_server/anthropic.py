"""Anthropic's Messages API: https://docs.anthropic.com/en/api/messages-streaming."""

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

PATH = "/v1/messages"
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


def key(headers: Mapping[str, str]) -> str | None:
    return headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")


def error(status: Status) -> dict[str, Any]:
    kind = status.code or _KINDS.get(status.status, "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": status.message},
        "request_id": "req_1",
    }


def read(body: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
    if "anthropic-version" not in headers:
        raise Refused("anthropic-version: header is required")
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        raise Refused("max_tokens: Field required")
    messages: list[Spoken | Called | Returned] = []
    if body.get("system"):
        messages.append(Spoken("system", _text(body["system"])))
    if not body["messages"] or body["messages"][0]["role"] != "user":
        raise Refused("messages: first message must use the user role")
    for message in body["messages"]:
        blocks = message["content"]
        if isinstance(blocks, str):
            blocks = [{"type": "text", "text": blocks}]
        if not blocks:
            raise Refused("messages: content must not be empty")
        messages += [_read_block(message["role"], block) for block in blocks]
    check_calls(tuple(messages))
    tools = body.get("tools", [])
    if any(tool["input_schema"].get("type") != "object" for tool in tools):
        raise Refused("tools: input_schema must be an object")
    return Asked(
        model=body["model"],
        stream=bool(body.get("stream")),
        max_tokens=body["max_tokens"],
        tools=tuple(tool["name"] for tool in tools),
        messages=tuple(messages),
    )


def _read_block(role: Any, block: Mapping[str, Any]) -> Spoken | Called | Returned:
    match block["type"]:
        case "text":
            if not block["text"].strip():
                raise Refused("messages: text content blocks must be non-empty")
            return Spoken(role, block["text"])
        case "tool_use" if role == "assistant":
            if not isinstance(block["input"], dict):
                raise Refused("tool_use.input: Input should be a valid dictionary")
            return Called(block["id"], block["name"], block["input"])
        case "tool_result" if role == "user":
            failed = bool(block.get("is_error"))
            return Returned(block["tool_use_id"], _text(block["content"]), failed)
        case kind:
            raise Refused(f"messages: {kind} is not allowed for {role}")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def stream(turn: Turn, asked: Asked) -> Iterator[bytes]:
    message = {**_message(asked.model), "content": [], "stop_reason": None}
    message["usage"] = {**_usage(turn), "output_tokens": 1}
    yield sse({"type": "message_start", "message": message}, "message_start")
    yield sse({"type": "ping"}, "ping")
    for index, part in enumerate(turn.parts):
        started, deltas = _block(part)
        yield _event("content_block_start", index=index, content_block=started)
        for delta in deltas:
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    delta = {"stop_reason": _stop(turn), "stop_sequence": None}
    yield _event("message_delta", delta=delta, usage={"output_tokens": turn.output_tokens})
    yield _event("message_stop")


def _block(part: Say | Call | Flood) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    match part:
        case Say(text=text):
            return {"type": "text", "text": ""}, (
                {"type": "text_delta", "text": piece} for piece in pieces(text)
            )
        case Flood(piece=piece):
            return {"type": "text", "text": ""}, iter(
                lambda: {"type": "text_delta", "text": piece}, None
            )
        case Call(id=id, tool=tool):
            return {"type": "tool_use", "id": id, "name": tool, "input": {}}, (
                {"type": "input_json_delta", "partial_json": piece} for piece in pieces(part.json)
            )


def overloaded() -> bytes:
    return sse(error(Status(529, "Overloaded")), "error")


def whole(turn: Turn, asked: Asked) -> dict[str, Any]:
    content = [
        {"type": "tool_use", "id": part.id, "name": part.tool, "input": dict(part.arguments)}
        if isinstance(part, Call)
        else {"type": "text", "text": part.text if isinstance(part, Say) else part.piece}
        for part in turn.parts
    ]
    usage = {**_usage(turn), "output_tokens": turn.output_tokens}
    return {
        **_message(asked.model),
        "content": content,
        "stop_reason": _stop(turn),
        "usage": usage,
    }


def _message(model: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_sequence": None,
    }


def _usage(turn: Turn) -> dict[str, Any]:
    return {
        "input_tokens": turn.input_tokens - turn.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": turn.cached_tokens,
    }


def _stop(turn: Turn) -> str:
    if turn.refuses or turn.stop == "filter":
        return "refusal"
    if turn.stop == "length":
        return "max_tokens"
    return "tool_use" if turn.calls else "end_turn"


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)
