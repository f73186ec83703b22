"""What a scripted model hears and says, whichever protocol carries it."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_ids = itertools.count(1)


@dataclass(frozen=True)
class Spoken:
    """A text of the conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Called:
    """A call that the model has made before."""

    id: str
    tool: str
    arguments: Any


@dataclass(frozen=True)
class Returned:
    """What a tool answered."""

    id: str
    text: str
    failed: bool


@dataclass(frozen=True)
class Asked:
    """A request, checked and in one form for all protocols."""

    model: str
    stream: bool
    max_tokens: int | None
    tools: tuple[str, ...]
    messages: tuple[Spoken | Called | Returned, ...]

    @property
    def texts(self) -> list[str]:
        """What the user side said, without what tools answered."""
        return [one.text for one in self.messages if isinstance(one, Spoken) and one.role == "user"]

    @property
    def returned(self) -> list[Returned]:
        return [one for one in self.messages if isinstance(one, Returned)]

    @property
    def called(self) -> list[Called]:
        return [one for one in self.messages if isinstance(one, Called)]


class Refused(Exception):
    """The provider would answer this request with a 400."""


def check_calls(messages: tuple[Spoken | Called | Returned, ...]) -> None:
    """Every call has its answer right behind its message, and no answer stands alone."""
    opened: set[str] = set()
    for one in messages:
        match one:
            case Called(id=called):
                opened.add(called)
            case Returned(id=returned):
                if returned not in opened:
                    raise Refused(f"no call with the id {returned}")
                opened.discard(returned)
            case Spoken():
                if opened:
                    raise Refused(f"calls without an answer: {', '.join(sorted(opened))}")
    if opened:
        raise Refused(f"calls without an answer: {', '.join(sorted(opened))}")


@dataclass(frozen=True)
class Say:
    """The model says something; `refuses` where a protocol has a form of its own for that."""

    text: str
    refuses: bool = False


@dataclass(frozen=True)
class Call:
    """The model calls a tool. `raw` stands in place of the arguments' JSON."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    raw: str | None = None
    id: str = field(default_factory=lambda: f"call_{next(_ids)}")

    @property
    def json(self) -> str:
        return json.dumps(self.arguments) if self.raw is None else self.raw


@dataclass(frozen=True)
class Flood:
    """The model never stops talking."""

    piece: str = "and so on, " * 1_000


Part = Say | Call | Flood
Stop = Literal["auto", "length", "filter"]


@dataclass(frozen=True)
class Turn:
    """One answer.

    `cut_before`, `end_before`, `fail_before`, `hold_before` are bytes of an event before which the
    connection breaks off, the answer ends as if it were whole, the provider reports that it is
    overloaded, or everything waits until the client is gone.
    """

    parts: tuple[Part, ...]
    stop: Stop = "auto"
    input_tokens: int = 100
    output_tokens: int = 50
    cached_tokens: int = 0
    cut_before: bytes | None = None
    end_before: bytes | None = None
    fail_before: bytes | None = None
    hold_before: bytes | None = None

    @property
    def calls(self) -> bool:
        return any(isinstance(part, Call) for part in self.parts)

    @property
    def refuses(self) -> bool:
        return any(isinstance(part, Say) and part.refuses for part in self.parts)


@dataclass(frozen=True)
class Status:
    """An answer that is an error. `body` stands in place of the protocol's own."""

    status: int
    message: str = "a fault by order"
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str | None = None
    body: bytes | None = None


def pieces(text: str) -> Iterator[str]:
    """As a stream would carry it: some characters at a time."""
    step = max(24, len(text) // 64)
    for start in range(0, len(text), step):
        yield text[start : start + step]


def sse(data: Mapping[str, Any], event: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()
