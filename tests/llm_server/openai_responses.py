"""OpenAI's Responses API: https://platform.openai.com/docs/api-reference/responses-streaming."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from tests.llm_server.openai_chat import error, key
from tests.llm_server.turns import (
    Asked,
    Call,
    Called,
    Flood,
    Refused,
    Returned,
    Say,
    Spoken,
    Turn,
    check_calls,
    pieces,
    sse,
)

__all__ = ["PATH", "error", "key", "overloaded", "read", "stream", "whole"]

PATH = "/v1/responses"


def read(body: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
    del headers
    if body.get("max_output_tokens", 16) < 16:
        raise Refused("max_output_tokens: expected a value >= 16")
    messages: list[Spoken | Called | Returned] = []
    if body.get("instructions"):
        messages.append(Spoken("system", body["instructions"]))
    items = body["input"]
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    for item in items:
        match item.get("type", "message"):
            case "message":
                role: Any = "system" if item["role"] == "developer" else item["role"]
                messages.append(Spoken(role, _text(item["content"])))
            case "function_call":
                messages.append(Called(item["call_id"], item["name"], item["arguments"]))
            case "function_call_output":
                messages.append(Returned(item["call_id"], _text(item["output"]), failed=False))
            case kind:
                raise Refused(f"input: unexpected {kind}")
    check_calls(tuple(messages))
    return Asked(
        model=body["model"],
        stream=bool(body.get("stream")),
        max_tokens=body.get("max_output_tokens"),
        tools=tuple(tool["name"] for tool in body.get("tools", [])),
        messages=tuple(messages),
    )


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def stream(turn: Turn, asked: Asked) -> Iterator[bytes]:
    numbers = itertools.count()

    def event(kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    yield event("response.created", response=_response(asked, "in_progress", []))
    yield event("response.in_progress", response=_response(asked, "in_progress", []))
    for index, part in enumerate(turn.parts):
        item = _item(part, index, whole=False)
        at = {"output_index": index, "item_id": item["id"]}
        yield event("response.output_item.added", output_index=index, item=item)
        if isinstance(part, Call):
            for piece in pieces(part.json):
                yield event("response.function_call_arguments.delta", **at, delta=piece)
            yield event("response.function_call_arguments.done", **at, arguments=part.json)
        else:
            kind, texts = _texts(part)
            at["content_index"] = 0
            yield event("response.content_part.added", **at, part=_content(part, ""))
            for piece in texts:
                more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
                yield event(f"response.{kind}.delta", **at, delta=piece, **more)
            said = part.text if isinstance(part, Say) else ""
            done = {"refusal": said} if kind == "refusal" else {"text": said, "logprobs": []}
            yield event(f"response.{kind}.done", **at, **done)
            yield event("response.content_part.done", **at, part=_content(part, said))
        done_item = _item(part, index, whole=True)
        yield event("response.output_item.done", output_index=index, item=done_item)
    response = whole(turn, asked)
    yield event(f"response.{response['status']}", response=response)


def overloaded() -> bytes:
    message = "The server is overloaded"
    return sse(
        {"type": "error", "code": "server_is_overloaded", "message": message, "param": None}
        | {"sequence_number": 99},
        "error",
    )


def whole(turn: Turn, asked: Asked) -> dict[str, Any]:
    output = [_item(part, index, whole=True) for index, part in enumerate(turn.parts)]
    reasons = {"length": "max_output_tokens", "filter": "content_filter", "auto": None}
    reason = reasons[turn.stop]
    response = _response(asked, "incomplete" if reason else "completed", output)
    response["incomplete_details"] = {"reason": reason} if reason else None
    response["usage"] = {
        "input_tokens": turn.input_tokens,
        "input_tokens_details": {"cached_tokens": turn.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": turn.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": turn.input_tokens + turn.output_tokens,
    }
    return response


def _response(asked: Asked, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_795_000_000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": asked.model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }


def _item(part: Say | Call | Flood, index: int, *, whole: bool) -> dict[str, Any]:
    status = "completed" if whole else "in_progress"
    if isinstance(part, Call):
        return {
            "id": f"fc_{part.id}",
            "type": "function_call",
            "status": status,
            "call_id": part.id,
            "name": part.tool,
            "arguments": part.json if whole else "",
        }
    said = part.text if isinstance(part, Say) else ""
    return {
        "id": f"msg_{index}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_content(part, said)] if whole else [],
    }


def _content(part: Say | Flood, text: str) -> dict[str, Any]:
    if isinstance(part, Say) and part.refuses:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _texts(part: Say | Flood) -> tuple[str, Iterator[str]]:
    match part:
        case Say(text=text, refuses=refuses):
            return "refusal" if refuses else "output_text", pieces(text)
        case Flood(piece=piece):
            return "output_text", itertools.repeat(piece)
