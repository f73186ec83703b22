"""The forms in which a known value may stand in a text. Pure."""

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

from generator.output import clean

MIN_CHARS = 8
"""A shorter value is no known one: it would be found in half of all texts, and guessed anyway."""

_UNESCAPED = ("", "/", "!~*'()", "!~*'();/?:@&=+$,#")
"""What encoders of URLs leave as it is: Python's, `quote`, encodeURIComponent, encodeURI."""

_PARTLY_BEFORE = (0, 2, 3)
"""How many characters of base64 say something of the 0, 1 or 2 bytes before."""


def known(values: Iterable[str]) -> frozenset[str]:
    """The values that are long enough to be looked for, each also as output shows it: by lines."""
    shown = {one for value in values for one in (value, value.strip(), clean(value).strip())}
    shown |= {line.strip() for value in shown for line in value.splitlines()}
    return frozenset(value for value in shown if len(value) >= MIN_CHARS)


def forms(value: str) -> frozenset[str]:
    """As it is, percent-encoded, escaped in JSON, and what of it stands in any base64 around it."""
    data = value.encode(errors="replace")
    return frozenset({value, *_in_urls(value, data), *_in_json(value), *_in_base64(data)})


def _in_urls(value: str, data: bytes) -> Iterator[str]:
    encoded = [quote(value, safe, errors="replace") for safe in _UNESCAPED]
    encoded += [quote_plus(value, errors="replace"), "".join(f"%{byte:02X}" for byte in data)]
    for one in encoded:
        yield one
        head, *escaped = one.split("%")
        yield "%".join([head, *(part[:2].lower() + part[2:] for part in escaped)])


def _in_json(value: str) -> Iterator[str]:
    for is_ascii in (True, False):
        escaped = json.dumps(value, ensure_ascii=is_ascii)[1:-1]
        yield escaped
        yield escaped.replace("/", "\\/")


def _in_base64(data: bytes) -> Iterator[str]:
    """What is the same whatever stands before and behind, for each place in a group of three."""
    for before, begin in enumerate(_PARTLY_BEFORE):
        bits = (before + len(data)) * 8
        core = b64encode(bytes(before) + data).decode()[begin : bits // 6]
        yield core
        yield core.replace("+", "-").replace("/", "_")
