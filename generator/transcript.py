"""What a command prints, shown as whole lines while it runs."""

from collections.abc import Awaitable, Callable

from generator.output import MAX_LINE_CHARS, clean
from generator.sandbox import Stream

Show = Callable[[Stream, str], Awaitable[None]]


class Transcript:
    """Collects output per stream and shows it line by line, many that come at once as one.

    A line that does not end is shown in parts of `MAX_LINE_CHARS`; what is left without an end is
    shown by `flush`.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._rest: dict[Stream, str] = {"stdout": "", "stderr": ""}

    async def take(self, stream: Stream, text: str) -> None:
        """Take what came; shows the lines that are complete now."""
        lines, newline, rest = (self._rest[stream] + text).rpartition("\n")
        if len(rest) > MAX_LINE_CHARS:
            lines, newline, rest = lines + newline + rest, "", ""
        self._rest[stream] = rest
        await self._say(stream, lines)

    async def flush(self) -> None:
        """Show what is left."""
        for stream, rest in self._rest.items():
            self._rest[stream] = ""
            await self._say(stream, rest)

    async def _say(self, stream: Stream, text: str) -> None:
        shown = clean(text).strip("\n")
        for start in range(0, len(shown), MAX_LINE_CHARS):
            await self._show(stream, shown[start : start + MAX_LINE_CHARS])
