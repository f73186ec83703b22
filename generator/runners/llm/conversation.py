"""Model and tools, turn by turn, until the model says that it is done.

A loop of its own over pydantic-ai's models, not its agent: a call of a tool is carried out as soon
as its arguments have arrived, in the middle of the stream. A stream that is cut off then costs the
file that was not finished, and nothing else (see docs/decisions).
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

import anyio
import structlog
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    SystemPromptPart,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings

from generator.errors import RunnerBusy, RunnerFailed
from generator.runner import Listener
from generator.runners.llm.failures import ProviderError, failure_of, is_worth_a_retry, refusal
from generator.runners.llm.meter import Meter
from generator.runners.llm.prompts import prompt
from generator.runners.llm.tools import Toolbox

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one run takes at most, beside what its job may use."""

    responses: int = 100
    output_tokens: int = 32_000
    """Of one response."""
    response_chars: int = 12_000_000
    """Of one response, whatever its provider counts."""
    files: int = 500
    vain: int = 5
    """Responses in a row that achieve nothing."""
    cuts: int = 5
    """Requests that break off or do not get through."""
    pause_s: float = 1.0
    """After the first of them; twice as long after each."""
    silence_s: float = 60.0
    """Without a byte, within a response."""
    first_event_s: float = 120.0
    response_s: float = 600.0


@dataclass(slots=True)
class Turn:
    """One response as it comes: its finished calls are carried out at once."""

    toolbox: Toolbox
    listener: Listener
    max_chars: int
    chars: int = 0
    returned: dict[str, ToolReturnPart] = field(default_factory=dict)
    """By the id of the call."""

    async def take(self, event: ModelResponseStreamEvent) -> None:
        """Take the next event of the stream."""
        match event:
            case PartStartEvent(part=TextPart(content=text)):
                await self._hear(text)
            case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                await self._hear(text)
            case PartDeltaEvent(delta=ToolCallPartDelta(args_delta=str(text))):
                self._count(text)
            case PartEndEvent(part=TextPart(content=text)) if not text.endswith("\n"):
                await self.listener.said("\n")
            case PartEndEvent(part=ToolCallPart() as call) if _has_arrived(call):
                await self.carry_out(call)

    async def carry_out(self, call: ToolCallPart) -> None:
        """Carry out a call, unless that has happened."""
        if call.tool_call_id in self.returned:
            return
        answer = await self.toolbox.call(call.tool_name, call.args)
        self.returned[call.tool_call_id] = ToolReturnPart(
            call.tool_name,
            answer.text,
            call.tool_call_id,
            outcome="success" if answer.ok else "failed",
        )

    @property
    def achieved(self) -> bool:
        """Whether one of its calls had an effect."""
        return any(one.outcome == "success" for one in self.returned.values())

    async def _hear(self, text: str) -> None:
        self._count(text)
        if text:
            await self.listener.said(text)

    def _count(self, text: str) -> None:
        self.chars += len(text)
        if self.chars > self.max_chars:
            raise RunnerFailed(
                f"the model did not stop writing: {self.chars:,} characters in one answer. Try "
                "again, or set HEADRACE_MODEL to another model"
            )


class Conversation:
    """One run with a model."""

    def __init__(
        self,
        model: Model,
        toolbox: Toolbox,
        meter: Meter,
        listener: Listener,
        bounds: Bounds,
        *,
        names: Mapping[str, str],
        task: str,
    ) -> None:
        """`names`: a model's own name to `provider:model`. `task`: what the model is told to do."""
        self._model = model
        self._toolbox = toolbox
        self._meter = meter
        self._listener = listener
        self._bounds = bounds
        self._names = names
        self._messages: list[ModelMessage] = [
            ModelRequest(parts=[SystemPromptPart(prompt("system")), UserPromptPart(task)])
        ]
        self._vain = 0
        self._cuts = 0

    async def run(self) -> None:
        """Until the model is done. Raises `RunnerFailed`."""
        for _ in range(self._bounds.responses):
            await self._respond()
            if self._toolbox.is_done:
                return
        raise RunnerFailed(
            f"the model was not done after {self._bounds.responses} answers: ask for less at a time"
        )

    async def _respond(self) -> None:
        """One response of the model, and what it does."""
        turn = Turn(self._toolbox, self._listener, self._bounds.response_chars)
        response, error = None, None
        try:
            async with self._stream() as stream:
                try:
                    async for event in stream:
                        await turn.take(event)
                finally:
                    # Also of a response that breaks off or is cancelled: it is paid for.
                    response = stream.get()
                    self._meter.add(response)
                    with anyio.CancelScope(shield=True):
                        await self._listener.used(self._meter.usage)
        except ProviderError as raised:
            error = raised
        if response is not None and error is None and _is_whole(response):
            await self._conclude(turn, response)
        else:
            await self._go_on_after_cut(turn, response, error)

    def _stream(self) -> AbstractAsyncContextManager[StreamedResponse]:
        bounds = self._bounds
        return model_request_stream(
            self._model,
            self._messages,
            model_settings=ModelSettings(
                max_tokens=self._meter.output_tokens(bounds.output_tokens),
                max_retries=0,  # when to try again is ours to say
                cache=True,
                timeout=bounds.silence_s,
                first_event_timeout=bounds.first_event_s,
                request_timeout=bounds.response_s,
            ),
            model_request_parameters=ModelRequestParameters(
                function_tools=self._toolbox.definitions
            ),
        )

    async def _conclude(self, turn: Turn, response: ModelResponse) -> None:
        """After a response that is whole: answer its calls."""
        if response.finish_reason == "content_filter":
            details = response.provider_details or {}
            raise refusal(str(details.get("refusal") or response.text or ""))
        calls = [part for part in response.parts if isinstance(part, ToolCallPart)]
        for call in calls:
            await turn.carry_out(call)
        self._vain = 0 if turn.achieved else self._vain + 1
        if self._vain > self._bounds.vain:
            raise RunnerFailed(_in_vain(turn, response))
        asked: list[ModelRequestPart] = [turn.returned[call.tool_call_id] for call in calls]
        if response.finish_reason == "length":
            asked.append(UserPromptPart(prompt("too_long")))
        elif not calls:
            asked.append(UserPromptPart(prompt("continue")))
        if calls or (response.text or "").strip():  # providers refuse a history with empty answers
            self._messages.append(response)
        self._messages.append(ModelRequest(parts=asked))

    async def _go_on_after_cut(
        self, turn: Turn, response: ModelResponse | None, error: Exception | None
    ) -> None:
        """After a request that failed: keep what has arrived whole, and go on from there."""
        kept = _arrived(response) if response else []
        calls = [part for part in kept if isinstance(part, ToolCallPart)]
        for call in calls:
            await turn.carry_out(call)
        self._cuts += 1
        if error is not None and not (is_worth_a_retry(error) and self._cuts <= self._bounds.cuts):
            raise failure_of(error, self._names) from error
        if self._cuts > self._bounds.cuts:
            raise RunnerBusy(f"the model's answers broke off {self._cuts} times")
        log.warning(
            "model_response_cut", cuts=self._cuts, kept_calls=len(calls), error=type(error).__name__
        )
        if response and calls:
            self._messages += [
                replace(response, parts=kept, state="complete", finish_reason="tool_call"),
                ModelRequest(
                    parts=[
                        *(turn.returned[call.tool_call_id] for call in calls),
                        UserPromptPart(prompt("cut")),
                    ]
                ),
            ]
        if not self._toolbox.is_done:
            await anyio.sleep(self._bounds.pause_s * 2 ** (self._cuts - 1))


def _is_whole(response: ModelResponse) -> bool:
    """Whether its provider said that it ends there."""
    return response.state == "complete" and response.finish_reason not in (None, "error")


def _has_arrived(call: ToolCallPart) -> bool:
    """Whether the arguments are whole: a JSON object says itself where it ends."""
    try:
        call.args_as_dict(raise_if_invalid=True)
    except (ValueError, AssertionError):
        return False
    return bool(call.args)


def _arrived(response: ModelResponse) -> list[ModelResponsePart]:
    """Everything up to the last call that is whole."""
    parts = list(response.parts)
    while parts and not (isinstance(parts[-1], ToolCallPart) and _has_arrived(parts[-1])):
        parts.pop()
    return parts


def _in_vain(turn: Turn, response: ModelResponse) -> str:
    refused = [str(one.content) for one in turn.returned.values()]
    said = " ".join((response.text or "").split())
    reason = refused[-1] if refused else f"it said {said[:200]!r}" if said else "it said nothing"
    return f"the model gets no further: {reason}. Try again, or word the goal differently"
