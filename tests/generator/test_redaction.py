"""Secrets in texts: found in every form and however cut; texts without them stay as they are."""

import json
import time
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.redaction import MAX_HELD_CHARS, MIN_CHARS, REPLACEMENT, Redactor
from generator.secret_forms import forms
from schemas import Phase
from schemas.commands import CompletePhase

SECRET = 'S3cr/t+val"ue~with ü & ?more'

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "percent": lambda value: quote(value, safe=""),
    "percent, slashes kept": quote,
    "percent in small letters": lambda value: _lowered(quote(value, safe="")),
    "query": quote_plus,
    "json": lambda value: json.dumps(value)[1:-1],
    "json in unicode": lambda value: json.dumps(value, ensure_ascii=False)[1:-1],
    "base64": lambda value: b64encode(value.encode()).decode(),
    "base64 behind one byte": lambda value: b64encode(b"=" + value.encode() + b"&x").decode(),
    "base64 behind two bytes": lambda value: b64encode(b"a=" + value.encode() + b"!").decode(),
    "urlsafe base64": lambda value: urlsafe_b64encode(b"k=" + value.encode()).decode(),
    "wrapped base64": lambda value: encodebytes((f"KEY={value};" * 5).encode()).decode(),
}

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    "Proc-Type: 4,ENCRYPTED\n\n"
    + "MIIEpAIBAAKCAQEA7bq3vZ0rJ8cV5n2Qy1sT4uW6xY9zA1bC3dE5fG7hI9jK1lM3\n"
    * 24
    + "nO5pQ7rS9tU=\n"
    "-----END RSA PRIVATE KEY-----"
)

KEYS = {
    "openai": "sk-proj-4fJ8kL2mN6pQ0rS4tU8vW2xY",
    "anthropic": "sk-ant-api03-4fJ8kL2m_N6pQ0rS4-tU8vW2xY",
    "e2b": "e2b_0123456789abcdef0123456789abcdef01234567",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "github": "ghp_0123456789abcdefABCDEF0123456789abcd",
    "github oauth": "gho_0123456789abcdefABCDEF0123456789abcd",
    "github server": "ghs_0123456789abcdefABCDEF0123456789abcd",
    "github fine-grained": "github_pat_11ABCDEFG0abcdefghijkl_0123456789abcdef",
    "slack": "xoxb-123456789012-abcdefghijkl",
    "headrace": "hr_0123456789abcdefghijklmnopqrstuvwxyzABCDEF-",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1g",
    "pem": PEM,
    "pem on one line": PEM.replace("\n", "\\n"),
}


def _lowered(text: str) -> str:
    head, *rest = text.split("%")
    return "%".join([head, *(part[:2].lower() + part[2:] for part in rest)])


def cut(text: str, chars: int) -> list[str]:
    return [text[begin : begin + chars] for begin in range(0, len(text), chars)]


def streamed(redactor: Redactor, pieces: list[str]) -> str:
    stream = redactor.stream()
    return "".join([*map(stream.feed, pieces), stream.end()])


# Known values


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("chars", [1, 2, 3, 7, 64, 10_000])
def test_a_known_value_is_found_in_each_form_however_it_is_cut(
    form: Callable[[str], str], chars: int
) -> None:
    redactor = Redactor([SECRET])
    said = f"before {form(SECRET)} behind\n"
    shown = streamed(redactor, cut(said, chars))
    assert not any(one in shown.replace("\n", "") for one in forms(SECRET))
    assert shown.startswith("before ")
    assert shown.endswith(" behind\n")
    assert REPLACEMENT in shown
    assert shown == redactor.text(said)


VALUES = st.text(
    st.characters(codec="utf-8", exclude_characters="[]", exclude_categories=["Cc", "Cs"]),
    min_size=MIN_CHARS,
    max_size=60,
).filter(lambda value: len(value.strip()) >= MIN_CHARS)
AROUND = st.text(st.characters(codec="utf-8", exclude_characters="[]"), max_size=40)


@given(VALUES, st.sampled_from(list(FORMS.values())), AROUND, AROUND, st.data())
def test_any_value_in_any_form_cut_anywhere_is_gone(
    value: str, form: Callable[[str], str], before: str, behind: str, data: st.DataObject
) -> None:
    redactor = Redactor([value])
    said = before + form(value) + behind
    places = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=8)))
    pieces = [said[a:b] for a, b in zip([0, *places], [*places, len(said)], strict=True)]
    for shown in (streamed(redactor, pieces), redactor.text(said)):
        assert not any(one in shown for one in forms(value))
        assert redactor.text(shown) == shown


@given(st.text(st.characters(codec="utf-8"), max_size=400), st.data())
def test_a_text_without_secrets_is_as_it_was_however_it_is_cut(
    said: str, data: st.DataObject
) -> None:
    redactor = Redactor([SECRET, KEYS["openai"]])
    places = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=8)))
    pieces = [said[a:b] for a, b in zip([0, *places], [*places, len(said)], strict=True)]
    assert streamed(redactor, pieces) == said
    assert redactor.text(said) is said


PIECES = [
    *(key for name, key in KEYS.items() if not name.startswith("pem")),
    *PEM.split("\n")[:4],
    *(PEM.split("\n")[-1], "\n", "\\n", " ", SECRET, "://", "u:p@", "sk-", "eyJ", "ghp_", "AKIA"),
    *("-----BEGIN ", "PRIVATE KEY-----", "Authorization: ", "Bearer ", "a" * 24, "@"),
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(1, 50))
def test_redacting_twice_is_redacting_once(parts: list[str], chars: int) -> None:
    redactor, said = Redactor([SECRET]), "".join(parts)
    for shown in (redactor.text(said), streamed(redactor, cut(said, chars))):
        assert redactor.text(shown) == shown


@pytest.mark.parametrize("chars", [1, 7, 1_000])
def test_a_token_behind_the_beginning_of_a_private_key_is_gone_as_a_whole(chars: int) -> None:
    said = f"-----BEGIN RSA PRIVATE KEY----- {KEYS['jwt']} and more"
    for found in (Redactor().text(said), streamed(Redactor(), cut(said, chars))):
        assert not any(part in found for part in KEYS["jwt"].split("."))
        assert found.endswith(" and more")


def test_each_line_of_a_value_is_known_but_those_that_are_too_short() -> None:
    redactor = Redactor(["first-line-4711\nend\nlast-line-0815"])
    assert redactor.text("a last-line-0815, b") == f"a {REPLACEMENT}, b"
    assert redactor.text("first-line-4711\nother\n") == f"{REPLACEMENT}\nother\n"
    assert redactor.text("the end") == "the end"


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(1, 50), st.sampled_from(" \n"))
def test_a_stream_says_what_the_whole_says(parts: list[str], chars: int, between: str) -> None:
    redactor, said = Redactor([SECRET]), between.join(parts)
    assert streamed(redactor, cut(said, chars)) == redactor.text(said)


def test_values_with_less_than_eight_characters_are_not_looked_for() -> None:
    assert Redactor(["hunter2", ""]).text("hunter2") == "hunter2"
    assert Redactor(["hunter22"]).text("hunter22") == REPLACEMENT


def test_a_value_is_found_as_terminals_and_strippers_leave_it() -> None:
    redactor = Redactor(["  first line\r\nsecond\x1b[0m line\n"])
    assert redactor.text("<first line\nsecond line>") == f"<{REPLACEMENT}>"


def test_of_a_value_that_is_cut_off_what_is_there_is_replaced() -> None:
    redactor = Redactor(["correct horse battery"])
    assert redactor.text("it is correct horse b") == f"it is {REPLACEMENT}"
    assert redactor.text("it is correct") == "it is correct"


def test_values_that_overlap_are_both_gone() -> None:
    shown = Redactor(["aaaabbbb", "bbbbcccc"]).text("aaaabbbbcccc")
    assert shown == REPLACEMENT


def test_the_longer_of_two_values_is_waited_for() -> None:
    redactor = Redactor(["password-1", "password-1-and-more"])
    assert streamed(redactor, ["x password-1", "-and-more y"]) == f"x {REPLACEMENT} y"


def test_a_redactor_that_knows_more_knows_what_it_knew() -> None:
    first = Redactor(["first-value"])
    both = first.knowing(["second-value"])
    assert both.text("first-value second-value") == f"{REPLACEMENT} {REPLACEMENT}"
    assert first.text("second-value") == "second-value"
    assert both.knowing(["first-value"]) is both
    assert "value" not in repr(both).replace("values", "")


def test_every_text_within_a_thing_is_redacted() -> None:
    @dataclass(frozen=True)
    class Told:
        text: str
        facts: dict[str, object]

    redactor = Redactor(["first-value"])
    told = Told("a first-value", {"n": 1, "said": ("first-value", 2.5, None)})
    assert redactor.within(told) == Told(
        f"a {REPLACEMENT}", {"n": 1, "said": (REPLACEMENT, 2.5, None)}
    )


def test_what_has_no_secret_within_stays_the_same_object() -> None:
    told = [{"n": 1, "said": ("a value", 2.5, None)}, CompletePhase(Phase.CODE, 3, {"files": 2})]
    assert Redactor(["first-value"]).within(told) is told


# Patterns


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("chars", [1, 5, 64, 10_000])
def test_what_looks_like_a_key_is_replaced_however_it_is_cut(key: str, chars: int) -> None:
    said = f"the key is {key}\nand more\n"
    assert streamed(Redactor(), cut(said, chars)) == f"the key is {REPLACEMENT}\nand more\n"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {REPLACEMENT}"),
        ('{"authorization": "Basic dXNlcjpw"}', f'{{"authorization": "Basic {REPLACEMENT}"}}'),
        ("redis://:pass@host/0", f"redis://:{REPLACEMENT}@host/0"),
        ("postgresql://u:p@ss:w@h:5432/db", f"postgresql://u:{REPLACEMENT}@h:5432/db"),
    ],
)
def test_of_headers_and_urls_only_the_secret_is_replaced(said: str, shown: str) -> None:
    assert Redactor().text(said) == shown
    assert streamed(Redactor(), cut(said, 1)) == shown


@pytest.mark.parametrize(
    "said",
    [
        "a task-management-system-for-two in disk-usage-of-this-machine",
        "http://127.0.0.1:8080/healthz and mailto:ann@example.org, git@example.org:a/b.git",
        "no password in postgresql://user@host/db",
        "expected -----BEGIN PRIVATE KEY----- at the beginning of the file\nit failed",
        "-----BEGIN CERTIFICATE-----\n" + "MIIEpAIBAAKCAQEA7bq3vZ0rJ8cV5n2Qy1sT\n" * 3,
        "e2b_sandbox, chr_of, eyJ is how a token begins; Authorization: Bearer is missing",
        "test_ghp_is_short (tests.test_sk-1) ... ok",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ],
)
def test_what_only_resembles_a_key_stays(said: str) -> None:
    assert Redactor([SECRET]).text(said) == said
    assert streamed(Redactor([SECRET]), cut(said, 3)) == said


def test_patterns_stay_where_only_known_values_are_asked_for() -> None:
    said = f'KEY = "{KEYS["openai"]}"  # or first-value\n'
    assert Redactor(["first-value"]).without_values(said) == said.replace(
        "first-value", REPLACEMENT
    )


# Streams


def test_a_whole_line_is_not_held_back() -> None:
    stream = Redactor([SECRET]).stream()
    for line in ("Collecting fastapi\n", "S3cr is how it begins, S3\n", "\n", "-----\n"):
        assert stream.feed(line) == line


def test_a_question_is_not_held_back() -> None:
    assert Redactor([SECRET]).stream().feed("Continue? [y/N] ") == "Continue? [y/N] "


@pytest.mark.parametrize(
    "begin",
    ["sk-", "xoxb-", "eyJ", "-----BEGIN PRIVATE KEY-----\n", "Authorization: Bearer ", "://u:"],
)
def test_of_a_key_without_end_a_bounded_piece_is_held_and_the_rest_dropped(begin: str) -> None:
    stream, given_out, is_key = Redactor().stream(), "", begin not in ("eyJ", "://u:")
    for _ in range(200):
        given_out += stream.feed(begin + "A" * 1_000)
        begin = ""
        assert len(stream._held) <= MAX_HELD_CHARS
    given_out += stream.feed(" and on\n") + stream.end()
    assert given_out.endswith(" and on\n")
    if is_key:  # the others need more behind them
        assert given_out.count("A" * 64) == 0
        assert given_out.count(REPLACEMENT) == 1


def test_a_block_that_is_longer_than_what_is_held_is_replaced_once() -> None:
    block = PEM.replace("nO5pQ7rS9tU=\n", "MIIEpAIBAAKCAQEA7bq3vZ0rJ8cV5n2Qy1sT4uW6xY9z\n" * 500)
    said = f"a\n{block}\nb\n"
    assert streamed(Redactor(), said.splitlines(keepends=True)) == f"a\n{REPLACEMENT}\nb\n"
    assert Redactor().text(said) == f"a\n{REPLACEMENT}\nb\n"


# Time

MB = 1_000_000
HOSTILE = {
    "heads": "sk-",
    "heads apart": "-sk-.ghp_ ",
    "short keys": "sk-aaaaaaaaaaaaaaa.",
    "tokens": "eyJaaaaaaaaaaa.",
    "one token": "eyJ",
    "urls": "://",
    "users": "://a:b:c",
    "passwords without end": "//:" + ":@a" * 9 + "b",
    "passwords": "://a:" + "b" * 300,
    "blocks": "-----BEGIN PRIVATE KEY-----\n",
    "headers in blocks": "-----BEGIN PRIVATE KEY-----" + "\nabc: abc: abc: abc: " * 40,
    "gaps in blocks": "-----BEGIN PRIVATE KEY-----" + "\\\\n \n" * 40,
    "words in blocks": "-----BEGIN PRIVATE KEY-----\n" + "A" * 900 + " B\n",
    "authorization": "Authorization: ",
    "quotes": "Authorization\\\\\\\\",
    "beginnings": "S3cr/t+v",
    "the value": SECRET,
    "wrapped": "A" * 64 + "\n",
    "a's": "a",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_take_a_time_linear_in_their_length(piece: str) -> None:
    redactor = Redactor([SECRET, "aaaaaaaab", KEYS["openai"]])
    text = piece * (2 * MB // len(piece))

    def seconds(work: Callable[[str], object], text: str = text) -> float:
        begun = time.process_time()
        work(text)
        return time.process_time() - begun

    plain = min(seconds(lambda text: sum(map(ord, text))) for _ in range(2))
    assert seconds(redactor.text) < 20 * plain
    assert seconds(lambda text: streamed(redactor, cut(text, 4_000)), text[: MB // 2]) < 10 * plain
