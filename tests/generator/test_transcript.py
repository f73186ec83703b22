"""What a person sees of a build's output, and what is kept of it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from eventstore import Fenced, ProgressLine, RedisUnavailable
from generator import transcript as transcript_module
from generator.output import MAX_LINE_CHARS, clean, last_line, tail
from generator.redaction import KEYS_ONLY, Redactor
from generator.transcript import CUT, NOT_SHOWN, LogLine, Transcript, kept_lines, log_lines

pytestmark = pytest.mark.anyio

KNOWING = Redactor(["correct-horse"])
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Shown(list[tuple[str, str]]):
    """What was shown, by stream. Does not answer while `away`; takes no more than `most`."""

    def __init__(self) -> None:
        super().__init__()
        self.news = anyio.Event()
        self.away: Exception | None = None
        self.most = 1_000_000
        self.asked = 0

    async def show(self, said: Mapping[str, Any]) -> bool:
        self.asked += 1
        if self.away:
            raise self.away
        if len(self) >= self.most:
            return False
        self.append((said["stream"], said["text"]))
        self.news.set()
        return True


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def transcript(shown: Shown) -> Transcript:
    return Transcript(shown.show, phase=lambda: "deps", clock=lambda: NOON)


async def test_dots_that_come_one_by_one_are_one_line(shown: Shown, transcript: Transcript) -> None:
    for _ in range(16):
        await transcript.take("stderr", ".")
    await transcript.take("stderr", "\nOK\n")
    await transcript.flush()
    assert shown == [("stderr", "................\nOK")]


async def test_the_streams_do_not_break_into_each_others_lines(
    shown: Shown, transcript: Transcript
) -> None:
    await transcript.take("stdout", "hel")
    await transcript.take("stderr", "warning\n")
    await transcript.take("stdout", "lo\n")
    await transcript.flush()
    assert shown == [("stderr", "warning"), ("stdout", "hello")]


async def test_a_last_line_without_end_is_shown_at_the_end(
    shown: Shown, transcript: Transcript
) -> None:
    await transcript.take("stdout", "no newline")
    await transcript.flush()
    await transcript.flush()
    assert shown == [("stdout", "no newline")]


async def test_what_comes_at_once_is_one_line_of_progress_per_stream_up_to_four_thousand_characters(
    shown: Shown, transcript: Transcript
) -> None:
    for number in range(1_000):
        await transcript.take("stdout", f"line {number}\n")
        await transcript.take("stderr", "!\n")
    await transcript.flush()
    of_stdout = [text for stream, text in shown if stream == "stdout"]
    assert "\n".join(of_stdout).split("\n") == [f"line {number}" for number in range(1_000)]
    assert len(of_stdout) == 3
    assert max(map(len, of_stdout)) <= MAX_LINE_CHARS
    assert len(shown) == 4


async def test_a_line_that_never_ends_is_shown_in_parts(
    shown: Shown, transcript: Transcript
) -> None:
    for _ in range(10):
        await transcript.take("stdout", "x" * 1_000)
    await transcript.flush()
    assert "".join(text for _, text in shown).replace("\n", "") == "x" * 10_000
    assert max(len(text) for _, text in shown) <= MAX_LINE_CHARS


async def test_a_long_output_that_comes_in_one_piece_is_cut_between_its_lines(
    shown: Shown, transcript: Transcript
) -> None:
    lines = [f"line {number}" for number in range(2_000)]
    await transcript.take("stdout", "\n".join(lines))
    await transcript.flush()
    assert [line for _, text in shown for line in text.split("\n")] == lines
    assert [line.text for line in kept_lines(transcript.whole())] == lines


async def test_a_line_is_shown_soon_without_being_asked_for(
    shown: Shown, transcript: Transcript
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transcript.run)
        await transcript.take("stdout", "Collecting a\n")
        await shown.news.wait()
        tasks.cancel_scope.cancel()
    assert shown == [("stdout", "Collecting a")]


async def test_a_question_that_waits_for_an_answer_is_shown_although_its_line_has_no_end(
    shown: Shown, transcript: Transcript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_module, "UNFINISHED_S", 0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transcript.run)
        await transcript.take("stdout", "Continue? [y/N] ")
        await shown.news.wait()
        tasks.cancel_scope.cancel()
    assert shown == [("stdout", "Continue? [y/N] ")]


async def test_pieces_of_what_the_model_says_are_put_together(
    shown: Shown, transcript: Transcript
) -> None:
    for piece in ("I ", "will ", "write ", "a list.\n", "First ", "the ", "page."):
        await transcript.take("model", piece)
    await transcript.flush()
    assert shown == [("model", "I will write a list.\nFirst the page.")]


async def test_a_phase_that_floods_is_cut_off_with_a_word_and_the_next_one_is_shown_again(
    shown: Shown,
) -> None:
    phase = "deps"
    transcript = Transcript(shown.show, phase=lambda: phase, clock=lambda: NOON)
    for number in range(30_000):
        await transcript.take("stdout", f"flood {number}\n")
        if not number % 1_000:
            await transcript.flush()
    await transcript.flush()
    assert shown[-1] == ("note", NOT_SHOWN)
    assert [stream for stream, _ in shown].count("note") == 1
    assert len(shown) < 120
    phase = "checks"
    await transcript.say("stdout", "tests begin")
    await transcript.flush()
    assert shown[-1] == ("stdout", "tests begin")
    kept = [line.text for line in kept_lines(transcript.whole())]
    assert kept == [*(f"flood {number}" for number in range(30_000)), "tests begin"]


async def test_once_the_log_takes_no_more_of_the_job_nothing_more_is_offered(
    shown: Shown, transcript: Transcript
) -> None:
    shown.most = 1
    for number in range(5):
        await transcript.say("stdout", f"{number}")
        await transcript.flush()
    assert shown == [("stdout", "0")]
    assert shown.asked == 2


async def test_lines_wait_for_a_redis_that_is_away_and_the_command_does_not(
    shown: Shown, transcript: Transcript
) -> None:
    shown.away = RedisUnavailable("gone")
    await transcript.say("stdout", "one")
    await transcript.flush()
    await transcript.say("stdout", "two")
    await transcript.flush()
    assert shown == []
    shown.away = None
    await transcript.flush()
    assert shown == [("stdout", "one\ntwo")]


async def test_a_command_of_a_superseded_worker_is_told_so_by_its_next_output(
    shown: Shown, transcript: Transcript
) -> None:
    shown.away = Fenced("job", "w2", 2)
    await transcript.say("stdout", "ghost")
    await transcript.run()  # ends by itself
    with pytest.raises(Fenced):
        await transcript.say("stdout", "another")


async def test_the_whole_log_says_when_where_and_what(transcript: Transcript) -> None:
    await transcript.say("command", "pip install x")
    await transcript.take("stdout", "\x1b[32mok\x1b[0m\nünd")
    (first, *_, last) = map(json.loads, transcript.whole().splitlines())
    assert first == {
        "time": "2026-03-01T12:00:00.000000Z",
        "attempt": 1,
        "phase": "deps",
        "stream": "command",
        "text": "pip install x",
    }
    assert last["text"] == "ünd"
    assert [line.text for line in kept_lines(transcript.whole())] == ["pip install x", "ok", "ünd"]


async def test_the_whole_log_ends_with_a_word_where_it_is_too_long(
    transcript: Transcript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_module, "MAX_KEPT_BYTES", 5_000)
    for number in range(200):
        await transcript.say("stdout", f"line {number}")
    lines = list(kept_lines(transcript.whole()))
    assert lines[-1].text == CUT
    assert lines[-1].stream == "note"
    assert len(transcript.whole()) < 5_300


async def test_what_an_earlier_attempt_has_shown_stands_before_our_own(
    transcript: Transcript,
) -> None:
    await transcript.say("stdout", "mine")
    earlier = [LogLine("t", 1, "deps", "stdout", "before")]
    assert [line.text for line in kept_lines(transcript.whole(earlier))] == ["before", "mine"]


async def test_of_a_silent_build_there_is_nothing_to_keep(transcript: Transcript) -> None:
    assert transcript.whole() == b""


def test_of_progress_the_lines_of_the_log_are_taken_one_by_one() -> None:
    said = [
        ProgressLine("2-1", "file", "t1", b'{"path":"a","size_bytes":1}'),
        ProgressLine("2-2", "log", "t2", b'{"phase":"deps","stream":"stdout","text":"a\\nb"}'),
        ProgressLine("2-3", "capped", "t3", b'{"lines":5000}'),
    ]
    assert list(log_lines(said)) == [
        LogLine("t2", 1, "deps", "stdout", "a"),
        LogLine("t2", 1, "deps", "stdout", "b"),
        LogLine("t3", 0, "", "note", NOT_SHOWN),
    ]


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


# Secrets


async def test_a_secret_that_comes_in_pieces_is_neither_shown_nor_kept(shown: Shown) -> None:
    transcript = Transcript(shown.show, redactor=lambda: KNOWING)
    for piece in (
        "the key is corr",
        "ect-ho",
        "\x1b[1mrse\x1b[0m, and",
        " more\ncorrect",
        "-hor",
        "se",
    ):
        await transcript.take("stdout", piece)
        await transcript.take("stderr", ".")
    await transcript.flush()
    assert [text for stream, text in shown if stream == "stdout"] == [
        "the key is [redacted], and more\n[redacted]"
    ]
    assert b"horse" not in transcript.whole()


async def test_a_secret_in_a_line_without_end_is_waited_for_although_the_line_is_shown(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_module, "UNFINISHED_S", 0.0)
    transcript = Transcript(shown.show, redactor=lambda: KNOWING)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transcript.run)
        await transcript.take("stdout", "the key is correct-h")
        await shown.news.wait()
        tasks.cancel_scope.cancel()
    await transcript.take("stdout", "orse\n")
    await transcript.flush()
    assert shown == [("stdout", "the key is "), ("stdout", "[redacted]")]


async def test_what_becomes_known_during_a_build_is_left_out_from_then_on(shown: Shown) -> None:
    known = [KEYS_ONLY]
    transcript = Transcript(shown.show, redactor=lambda: known[-1])
    await transcript.say("stdout", "correct-horse")
    known.append(KNOWING)
    await transcript.say("stdout", "correct-horse")
    await transcript.flush()
    assert shown == [("stdout", "correct-horse\n[redacted]")]
