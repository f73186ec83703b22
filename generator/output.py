"""What programs print, made fit to be shown and kept."""

import re

MAX_LINE_CHARS = 4_000
MAX_MESSAGE_CHARS = 2_000

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def clean(text: str) -> str:
    """Without terminal escapes, control characters and lone surrogates; line ends are `\\n`."""
    return _CONTROL.sub("", _ANSI.sub("", text)).replace("\r\n", "\n").replace("\r", "\n")


def for_people(error: Exception) -> str:
    """What an error says, fit to stand in an event."""
    return clean(str(error))[:MAX_MESSAGE_CHARS]


def tail(text: str, chars: int) -> str:
    """The last `chars` characters, beginning with a whole line where that is possible."""
    if len(text) <= chars:
        return text
    cut = text[-chars:]
    newline = cut.find("\n")
    return cut[newline + 1 :] if 0 <= newline < len(cut) - 1 else cut


def last_line(text: str) -> str:
    """`: …` with the last line that says something, to end a sentence with; "" without one."""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return f": {line[:200]}" if line else ""
