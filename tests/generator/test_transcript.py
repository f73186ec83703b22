"""What a person sees of a command's output."""

from generator.output import MAX_LINE_CHARS, clean, last_line, tail
from generator.sandbox import Stream
from generator.transcript import Transcript


class Shown(list[tuple[str, str]]):
    async def show(self, stream: Stream, text: str) -> None:
        self.append((stream, text))


async def test_dots_that_come_one_by_one_are_one_line() -> None:
    shown = Shown()
    transcript = Transcript(shown.show)
    for _ in range(16):
        await transcript.take("stderr", ".")
    assert shown == []
    await transcript.take("stderr", "\nOK\n")
    assert shown == [("stderr", "................\nOK")]


async def test_the_streams_do_not_break_into_each_others_lines() -> None:
    shown = Shown()
    transcript = Transcript(shown.show)
    await transcript.take("stdout", "hel")
    await transcript.take("stderr", "warning\n")
    await transcript.take("stdout", "lo\n")
    assert shown == [("stderr", "warning"), ("stdout", "hello")]


async def test_a_last_line_without_end_is_shown_at_the_end() -> None:
    shown = Shown()
    transcript = Transcript(shown.show)
    await transcript.take("stdout", "no newline")
    await transcript.flush()
    await transcript.flush()
    assert shown == [("stdout", "no newline")]


async def test_a_line_that_never_ends_is_shown_in_parts() -> None:
    shown = Shown()
    transcript = Transcript(shown.show)
    for _ in range(10):
        await transcript.take("stdout", "x" * 1_000)
    await transcript.flush()
    assert "".join(text for _, text in shown) == "x" * 10_000
    assert max(len(text) for _, text in shown) <= MAX_LINE_CHARS + 1_000


def test_terminal_escapes_and_control_characters_are_taken_out() -> None:
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07done\0\ud800\r\nnext\rover") == (
        "red done\nnext\nover"
    )


def test_the_tail_begins_with_a_whole_line() -> None:
    assert tail("first line\nsecond line\n", 15) == "second line\n"
    assert tail("short", 15) == "short"
    assert tail("x" * 20, 15) == "x" * 15


def test_the_last_line_that_says_something_ends_a_sentence() -> None:
    assert last_line("one\ntwo\n\n") == ": two"
    assert last_line(" \n") == ""
