import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.app_manifest import AppCommands, app_commands
from generator.errors import ManifestInvalid

WHOLE = b"""
[commands]
install = "python3 app.py init"
test = "python3 -m unittest"
start = "sh start.sh"
"""


def test_the_three_commands_are_read() -> None:
    assert app_commands({"headrace.toml": WHOLE}) == AppCommands(
        install="python3 app.py init", test="python3 -m unittest", start="sh start.sh"
    )


def test_an_app_may_have_nothing_to_install() -> None:
    commands = app_commands({"headrace.toml": b'[commands]\ntest = "t"\nstart = "s"'})
    assert commands == AppCommands(install=None, test="t", start="s")


def test_keys_that_mean_nothing_here_are_passed_over() -> None:
    more = b'title = "x"\n' + WHOLE + b"lint = 7\n[sizes]\nram = 1\n"
    assert app_commands({"headrace.toml": more}) == app_commands({"headrace.toml": WHOLE})


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (b"[commands", "is not valid TOML"),
        (b"\xff", "is not valid TOML"),
        (b"", "has no table \\[commands\\]"),
        (b'commands = "make"', "has no table \\[commands\\]"),
        (b'[commands]\nstart = "s"', "lacks the command 'test'"),
        (b'[commands]\ntest = "t"', "lacks the command 'start'"),
        (b'[commands]\ntest = "t"\nstart = ""', "the command 'start' is empty"),
        (b'[commands]\ntest = " \\n"\nstart = "s"', "the command 'test' is empty"),
        (b'[commands]\ninstall = ""\ntest = "t"\nstart = "s"', "the command 'install' is empty"),
        (b'[commands]\ntest = ["t"]\nstart = "s"', "'test' must be a text, not list"),
        (b'[commands]\ninstall = 1\ntest = "t"\nstart = "s"', "'install' must be a text, not int"),
        (b'[commands]\ntest = "t"\nstart = "a\\u0000b"', "'start' contains a NUL character"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_with_the_reason(
    manifest: bytes, sentence: str
) -> None:
    with pytest.raises(ManifestInvalid, match=sentence):
        app_commands({"headrace.toml": manifest})


def test_an_app_without_manifest_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match=r"the app has no headrace\.toml"):
        app_commands({"app.py": b"", "sub/headrace.toml": WHOLE})


def test_brackets_nested_without_end_are_refused_like_any_other_damage() -> None:
    with pytest.raises(ManifestInvalid):
        app_commands({"headrace.toml": b"a = " + b"[" * 100_000})


@given(st.binary(max_size=200))
def test_no_bytes_whatever_lead_to_another_error(manifest: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        app_commands({"headrace.toml": manifest})
