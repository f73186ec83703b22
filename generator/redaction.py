"""Takes secrets out of texts before they leave the worker. Pure.

Known values are found in every form of `secret_forms`, also where base64 is wrapped into lines;
what looks like a key is found by `key_patterns`. Of a known value that is cut off at the end of a
text, what is there is replaced, from `MIN_CHARS` characters on.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar, cast

from generator.key_patterns import (
    REPLACEMENT,
    may_have_keys,
    open_key,
    stand_in,
    without_keys,
)
from generator.secret_forms import MIN_CHARS, forms, known

__all__ = ["KEYS_ONLY", "MAX_HELD_CHARS", "MIN_CHARS", "REPLACEMENT", "Redactor", "Stream"]

MAX_HELD_CHARS = 8 * 1024
"""How much of what looks like a key is waited for, unless a known value is longer still."""

# A line of base64 that goes on in the next one: encoders wrap at 64 or 76 characters.
_IN_BASE64 = "[A-Za-z0-9+/_-]"
_LEAST_WRAPPED = 40
_LONGEST_LINE_END = _LEAST_WRAPPED + len("\r")
_WRAP = re.compile(
    rf"\n(?:(?<={_IN_BASE64}{{{_LEAST_WRAPPED}}}\n)|(?<={_IN_BASE64}{{{_LEAST_WRAPPED}}}\r\n))"
    rf"(?={_IN_BASE64}|\Z)"
)

_WITHOUT_TEXT = frozenset({type(None), bool, int, float})

T = TypeVar("T")


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass; of anything else none."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


class Redactor:
    """Knows secrets, and replaces them. Immutable; takes a time linear in the text."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        """Values with less than `MIN_CHARS` characters are not looked for."""
        self._values = frozenset(value for value in known(values) if value not in REPLACEMENT)
        self._forms = sorted(frozenset().union(*map(forms, self._values)))
        self._longest = max(map(len, self._forms), default=0)
        # What a form begins with: it must be there if the form is. A few strings are found sooner
        # one by one than by a regular expression.
        self._stems = tuple(sorted({form[:MIN_CHARS] for form in self._forms}))
        self._beginnings = frozenset(
            stem[:chars] for stem in self._stems for chars in range(1, MIN_CHARS + 1)
        )
        self._chars = frozenset("".join(self._forms))

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._values)} values>"

    def knowing(self, values: Iterable[str]) -> "Redactor":
        """One that knows these as well."""
        more = known(values) - self._values
        return Redactor(self._values | more) if more else self

    def text(self, text: str) -> str:
        """`text` without secrets; the same object where there are none."""
        if self._is_clear(text):
            return text
        stream = self.stream()
        return stream.feed(text) + stream.end()

    def without_values(self, text: str) -> str:
        """`text` without known values; what only looks like a key stays."""
        return self._without(text, self._found(text, is_all=True))

    def within(self, whole: T) -> T:
        """The same with every text in it redacted: dataclasses, mappings, sequences.

        The same object where there are no secrets.
        """
        if type(whole) in _WITHOUT_TEXT:
            return whole
        redacted: Any = whole
        if isinstance(whole, str):
            redacted = self.text(whole)
        elif isinstance(whole, (list, tuple)):
            redacted = type(whole)(map(self.within, whole))
        elif names := _field_names(cast("type", type(whole))):
            changed = {
                name: told
                for name in names
                if (told := self.within(value := getattr(whole, name))) is not value
            }
            redacted = replace(cast("Any", whole), **changed) if changed else whole
        elif isinstance(whole, Mapping):
            redacted = {self.within(key): self.within(value) for key, value in whole.items()}
        return whole if redacted is whole or redacted == whole else cast("T", redacted)

    def stream(self) -> "Stream":
        """For a text that comes in pieces."""
        return Stream(self)

    def _is_clear(self, text: str) -> bool:
        """Whether no secret is in `text`, nor `MIN_CHARS` of one. Cheap: most texts are clear."""
        for stem in self._stems:
            if stem in text:
                return False
        return not (may_have_keys(text) or (self._stems and _WRAP.search(text)))

    def _is_closed(self, text: str) -> bool:
        """Whether nothing at the end of a clear text may begin a secret."""
        return text.endswith("\n") and "\n" not in self._chars

    def _found(self, text: str, before: str = "", *, is_all: bool) -> list[tuple[int, int]]:
        """Where known values stand, from left to right; one that `is_all` cuts off, too.

        `before` is what stood before `text`.
        """
        if not self._stems:
            return []
        found = self._found_in(text, is_all=is_all)
        if unwrapped := _unwrapped(text, before):
            found += [
                (unwrapped.place(begin), unwrapped.place(end - 1) + 1)
                for begin, end in self._found_in(unwrapped.text, is_all=is_all)
            ]
        return _merged(found)

    def _found_in(self, text: str, *, is_all: bool) -> list[tuple[int, int]]:
        found = []
        for form in self._forms:
            begin = text.find(form)
            while begin >= 0:
                found.append((begin, begin + len(form)))
                begin = text.find(form, begin + len(form))
        if is_all:
            begin = self._open_value(text)
            if len(text) - begin >= MIN_CHARS:
                found.append((begin, len(text)))
        return found

    @staticmethod
    def _without(text: str, found: Sequence[tuple[int, int]]) -> str:
        parts, behind = [], 0
        for begin, end in found:
            parts += [text[behind:begin], REPLACEMENT]
            behind = end
        return "".join([*parts, text[behind:]]) if found else text

    def _open(self, text: str, before: str) -> int:
        """From where on what follows `text` decides; its length for nowhere."""
        begins = [open_key(text), self._open_value(text)]
        if unwrapped := _unwrapped(text, before):
            begin = self._open_value(unwrapped.text)
            if begin < len(unwrapped.text):
                begins.append(unwrapped.place(begin))
        return min(begins)

    def _open_value(self, text: str) -> int:
        """Where a form begins that ends behind `text`."""
        end = len(text)
        if not end or text[-1] not in self._chars:
            return end
        for begin in range(max(0, end - self._longest + 1), end):
            if text[begin : begin + MIN_CHARS] in self._beginnings:
                beginning = text[begin:]
                next_form = bisect_right(self._forms, beginning)
                if next_form < len(self._forms) and self._forms[next_form].startswith(beginning):
                    return begin
        return end


KEYS_ONLY = Redactor()
"""Knows no value: finds what looks like a key."""


class Stream:
    """Redacts a text that comes in pieces, however it is cut.

    Held back is the end of what came that may be the beginning of a secret, and no more than
    `MAX_HELD_CHARS`, or the longest form of a known value. A key that is longer (only a pattern
    can be) is replaced when so much of it has come; the rest is dropped as it comes.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""
        self._before = ""
        """The last character that was given out: some patterns begin with a word only."""
        self._line = ""
        """The end of the line before, not redacted: it may be base64 that goes on."""
        self._told = ""
        """What has been given out already of what is held."""

    def feed(self, chunk: str) -> str:
        """What is decided by now, redacted."""
        redactor, text = self._redactor, self._held + chunk
        if not text:
            return ""
        if redactor._is_clear(self._line + text) and redactor._is_closed(text):
            self._held, self._before, self._line = "", text[-1], ""
            return text
        found = redactor._found(text, self._line, is_all=False)
        cut = redactor._open(text, self._line)
        for begin, end in found:
            if begin < cut < end:
                cut = end
        said = self._said(text[:cut], [one for one in found if one[1] <= cut])
        self._held = text[cut:]
        if len(self._held) > max(MAX_HELD_CHARS, redactor._longest):
            said += self._let_go()
        return said

    def end(self) -> str:
        """The rest. The stream may be fed again, with another text."""
        text, self._held = self._held, ""
        said = self._said(text, self._redactor._found(text, self._line, is_all=True))
        self._before = self._line = ""
        return said

    def _let_go(self) -> str:
        """Hold less: of a key what goes on like it, of anything else nothing."""
        short = stand_in(self._before + self._held, len(self._before))
        if short is None:
            return self.end()
        told = without_keys(short)
        said, self._told = ("" if self._told else told), told
        self._held = short
        return said

    def _said(self, text: str, found: Sequence[tuple[int, int]]) -> str:
        if not text:
            return ""
        before = self._before
        shown = self._redactor._without(text, found)
        said = without_keys(before + shown, len(before))
        self._before = shown[-1]
        self._line = (self._line + text)[-_LONGEST_LINE_END:].rpartition("\n")[2]
        if self._told:
            said, self._told = said.removeprefix(self._told), ""
        return said


class _Unwrapped:
    """A text with wrapped base64 put together, and where its characters stood before."""

    def __init__(self, text: str, wraps: Sequence[int]) -> None:
        self._old, parts = [0], []
        for wrap in wraps:
            parts.append(text[self._old[-1] : wrap].removesuffix("\r"))
            self._old.append(wrap + 1)
        self.text = "".join([*parts, text[self._old[-1] :]])
        self._new = [0, *accumulate(map(len, parts))]

    def place(self, at: int) -> int:
        """Where the character at `at` stood."""
        part = bisect_right(self._new, at) - 1
        return self._old[part] + at - self._new[part]


def _unwrapped(text: str, before: str) -> _Unwrapped | None:
    """None where nothing is wrapped."""
    wraps = [found.start() - len(before) for found in _WRAP.finditer(before + text, len(before))]
    return _Unwrapped(text, wraps) if wraps else None


def _merged(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(found):
        if merged and begin < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
