"""All that is said during a build: by its commands, by its app, by the model that writes it.

Shown live as lines of progress, a flood of them put together and cut off, and kept whole as an
artifact when the job ends. Secrets are taken out before either.
"""

import json
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import anyio

from eventstore import EventStoreError, ProgressLine, RedisUnavailable
from generator.output import MAX_LINE_CHARS, clean
from generator.redaction import KEYS_ONLY, Redactor, Stream
from schemas import format_time

Source = Literal["command", "stdout", "stderr", "server", "model", "note"]
"""Who says it: a command that is run, what it prints, the started app, the model, or we ourselves.

Called `stream` outside.
"""

SOURCES: tuple[Source, ...] = get_args(Source)

PAUSE_S = 0.1
"""What comes within it is shown as one line of progress, if it is not too much."""

UNFINISHED_S = 1.0
"""A line without an end is shown when nothing was added to it for so long: it may be a question."""

MAX_SHOWN_CHARS = 256 * 1024
"""How much of one phase is shown live."""

MAX_KEPT_BYTES = 10 * 1024 * 1024
_IN_MEMORY_BYTES = 256 * 1024

NOT_SHOWN = "left out from here on: too much to be shown live"
CUT = "the log ends here: it has as many bytes as are kept of one job"

Show = Callable[[Mapping[str, Any]], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log."""

    time: str
    attempt: int
    phase: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class _Rest:
    """The beginning of a line, its phase, and when something was last added to it."""

    text: str
    phase: str
    said_at: float


@dataclass(frozen=True, slots=True)
class _Redacting:
    """What a source says in a phase, on its way through a redactor."""

    stream: Stream
    redactor: Redactor
    phase: str


class Transcript:
    """Takes what is said, shows it line by line, and keeps it.

    `take` never waits for the log: `run` shows what has come, every tenth of a second. A line that
    does not end is shown in parts of `MAX_LINE_CHARS`.
    """

    def __init__(
        self,
        show: Show,
        *,
        attempt: int = 1,
        phase: Callable[[], str] = lambda: "",
        redactor: Callable[[], Redactor] = lambda: KEYS_ONLY,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`show` gives False once nothing more of the job is shown.

        When it raises `RedisUnavailable` it is asked again, later; what else it raises is final.
        `redactor` gives the one to use from now on.
        """
        self._show = show
        self._attempt = attempt
        self._phase = phase
        self._redactor = redactor
        self._redacting: dict[Source, _Redacting] = {}
        self._clock = clock
        self._rest: dict[Source, _Rest] = {}
        self._waiting: dict[tuple[str, Source], str] = {}
        self._shown_of: str = ""
        self._shown_chars = 0
        self._is_shown = True
        self._news = anyio.Event()
        self._showing = anyio.Lock()
        self._lost: EventStoreError | None = None
        self._kept = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - see `close`
        self._kept_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever said."""
        return not (self._kept_bytes or self._rest or self._redacting)

    async def take(self, source: Source, text: str) -> None:
        """Take what came. Raises what `run` met that cannot pass."""
        if self._lost:
            raise self._lost
        phase = self._phase()
        if source in self._rest and self._rest[source].phase != phase:
            self._end_line(source, is_last=True)
        before = self._rest.pop(source, None)
        lines, newline, rest = ((before.text if before else "") + text).rpartition("\n")
        if len(rest) > MAX_LINE_CHARS:
            lines, rest = lines + newline + rest, ""
        if rest:
            self._rest[source] = _Rest(rest, phase, anyio.current_time())
        if lines or newline:
            self._say(source, lines + newline, phase)
        self._news.set()

    async def say(self, source: Source, line: str) -> None:
        """Take a whole line."""
        await self.take(source, f"{line}\n")

    async def run(self) -> None:
        """Show what comes until cancelled."""
        while True:
            if not self._rest and not self._waiting:
                await self._news.wait()
            self._news = anyio.Event()
            await anyio.sleep(PAUSE_S)
            self._end_lines(said_before=anyio.current_time() - UNFINISHED_S)
            try:
                await self._show_waiting()
            except EventStoreError as error:
                # The job is another's, or its log is no more to be written: its next step will say.
                self._lost = error
                return

    async def flush(self) -> None:
        """Show all that has come, unfinished lines too, unless Redis is away.

        What comes then begins anew: no secret reaches over a flush. Raises what else `show` raises.
        """
        self._end_all()
        await self._show_waiting()

    def whole(self, earlier: Iterable[LogLine] = ()) -> bytes:
        """Everything that was said, as JSON lines, behind what `earlier` attempts have left.

        Empty if nothing was. No more than some `MAX_KEPT_BYTES`.
        """
        self._end_all()
        self._kept.seek(0)
        own = self._kept.read()
        self._kept.seek(0, 2)
        before = b"".join(_record(line) for line in earlier)
        room = MAX_KEPT_BYTES - len(own)
        if before and len(before) > room:
            cut = before.rfind(b"\n", 0, max(room, 0)) + 1
            before = before[:cut] + self._note(CUT)
        return before + own

    def close(self) -> None:
        """Give back what it takes on this machine."""
        self._kept.close()

    def _end_all(self) -> None:
        for source in dict.fromkeys([*self._rest, *self._redacting]):
            self._end_line(source, is_last=True)

    def _end_lines(self, *, said_before: float) -> None:
        for source, rest in list(self._rest.items()):
            if rest.said_at <= said_before:
                self._end_line(source)

    def _end_line(self, source: Source, *, is_last: bool = False) -> None:
        """Say what there is of a line; with `is_last` nothing is held back for what may come."""
        if rest := self._rest.pop(source, None):
            self._say(source, rest.text, rest.phase, is_last=is_last)
        elif is_last:
            self._end_redacting(source)

    def _say(self, source: Source, text: str, phase: str, *, is_last: bool = False) -> None:
        """Say what is decided of it: the end may be held back until more has come."""
        redactor, before = self._redactor(), self._redacting.get(source)
        if before and (before.phase != phase or before.redactor is not redactor):
            self._end_redacting(source)
            before = None
        if before is None:
            before = self._redacting[source] = _Redacting(redactor.stream(), redactor, phase)
        # Behind the cleaning: a value with an escape in the middle is whole only then.
        said = before.stream.feed(clean(text))
        if is_last:
            said += self._redacting.pop(source).stream.end()
        self._show_and_keep(source, said, phase)

    def _end_redacting(self, source: Source) -> None:
        ended = self._redacting.pop(source)
        self._show_and_keep(source, ended.stream.end(), ended.phase)

    def _show_and_keep(self, source: Source, text: str, phase: str) -> None:
        rest = text.strip("\n")
        while rest:
            part, rest = _cut(rest)
            self._keep(source, part, phase)
            self._wait(source, part, phase)

    def _keep(self, source: Source, text: str, phase: str) -> None:
        if self._kept_bytes > MAX_KEPT_BYTES:
            return
        line = LogLine(format_time(self._clock()), self._attempt, phase, source, text)
        record = _record(line)
        self._kept_bytes += len(record)
        self._kept.write(self._note(CUT) if self._kept_bytes > MAX_KEPT_BYTES else record)

    def _wait(self, source: Source, text: str, phase: str) -> None:
        """Put aside what is to be shown next, as far as the phase may still show anything."""
        if phase != self._shown_of:
            self._shown_of, self._shown_chars = phase, 0
        if not self._is_shown or self._shown_chars > MAX_SHOWN_CHARS:
            return
        self._shown_chars += len(text)
        if self._shown_chars > MAX_SHOWN_CHARS:
            source, text = "note", NOT_SHOWN
        before = self._waiting.get((phase, source))
        self._waiting[phase, source] = text if before is None else f"{before}\n{text}"

    async def _show_waiting(self) -> None:
        async with self._showing:
            while self._waiting:
                (phase, source), text = next(iter(self._waiting.items()))
                first, rest = _cut(text)
                # Taken away first: twice would be worse than once, and in the whole log it is.
                del self._waiting[phase, source]
                if rest:
                    self._waiting = {(phase, source): rest, **self._waiting}
                said = {"attempt": self._attempt, "phase": phase, "stream": source, "text": first}
                try:
                    self._is_shown = await self._show(said)
                except RedisUnavailable:
                    behind = self._waiting.pop((phase, source), None)
                    again = first if behind is None else f"{first}\n{behind}"
                    self._waiting = {(phase, source): again, **self._waiting}
                    return
                if not self._is_shown:
                    self._waiting.clear()

    def _note(self, text: str) -> bytes:
        return _record(
            LogLine(format_time(self._clock()), self._attempt, self._phase(), "note", text)
        )


def log_lines(said: Iterable[ProgressLine]) -> Iterator[LogLine]:
    """The lines of a job's log among its progress, as they were shown live."""
    for one in said:
        if one.kind == "log":
            data = json.loads(one.data)
            yield from _lines(one.time, data)
        elif one.kind == "capped":
            yield LogLine(one.time, 0, "", "note", NOT_SHOWN)


def kept_lines(content: bytes) -> Iterator[LogLine]:
    """The lines of a whole log."""
    for record in content.splitlines():
        data = json.loads(record)
        yield from _lines(data["time"], data)


def _lines(time: str, said: Mapping[str, Any]) -> Iterator[LogLine]:
    for text in said["text"].split("\n"):
        yield LogLine(
            time, said.get("attempt", 1), said.get("phase", ""), said.get("stream", "stdout"), text
        )


def _record(line: LogLine) -> bytes:
    return json.dumps(asdict(line), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _cut(text: str) -> tuple[str, str]:
    """What fits into one line of progress, whole lines if possible, and what comes after it."""
    if len(text) <= MAX_LINE_CHARS:
        return text, ""
    end = text.rfind("\n", 0, MAX_LINE_CHARS + 1)
    if end > 0:
        return text[:end], text[end + 1 :]
    return text[:MAX_LINE_CHARS], text[MAX_LINE_CHARS:]
