"""The LLM runner over the providers' real client libraries, against a server that speaks their
protocols: what a model and a provider may do, and what becomes of it.
"""

import subprocess
from pathlib import Path

import anyio
import pytest

from generator.app_manifest import app_commands
from generator.errors import (
    BudgetSpent,
    GoalRefused,
    RunnerBusy,
    RunnerFailed,
    RunnerUnavailable,
)
from generator.runner import Allowance, Failure, RunnerTask
from generator.runners.llm import PROVIDERS, Access, Bounds, LLMRunner, Price
from generator.runners.llm.prompts import prompts_digest
from generator.workspace import MAX_FILE_BYTES
from schemas.commands import Usage
from service.doctor import Level
from service.doctor.surroundings import check_runner
from service.settings import MODEL_KEYS, Settings
from tests.generator.llm_runs import DONE, MANIFEST, MODELS, WHOLE_APP, Run, runner, write
from tests.llm_server import Call, Flood, LLMServer, Say, Status, Turn
from tests.llm_server.builder import builder

pytestmark = pytest.mark.anyio

WRITTEN = [f"written, {len(MANIFEST)} bytes", "written, 6 bytes"]
"""What the calls of `WHOLE_APP` return."""

every_protocol = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "app")


@every_protocol
async def test_files_are_written_as_they_come_and_the_model_is_heard(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(
        Turn((Say("First the manifest,\nthen the app."), *WHOLE_APP)),
        Turn((Say("That is all."), Call("done"))),
    )
    usage = await run.of(runner(llm_server, model))
    assert dict(run.workspace.files) == {"headrace.toml": MANIFEST.encode(), "app.py": b"x = 1\n"}
    assert run.written == ["headrace.toml", "app.py"]
    assert "".join(run.said) == "First the manifest,\nthen the app.\nThat is all.\n"
    assert len(run.said) > 3
    first, second = llm_server.asked
    assert "a list of books" in first.texts[0]
    assert "/healthz" in str(first.messages[0])
    assert set(first.tools) == {"write_file", "edit_file", "delete_file", "read_file", "done"}
    assert [one.text for one in second.returned] == WRITTEN
    assert usage == run.used


@every_protocol
async def test_usage_and_cost_are_told_after_every_response(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(
        Turn(WHOLE_APP, input_tokens=1_000, output_tokens=200),
        Turn((Call("done"),), input_tokens=2_000, output_tokens=10, cached_tokens=1_000),
    )
    price = Price(input=1.0, output=10.0, cached_input=0.1)
    usage = await run.of(runner(llm_server, model, prices={model: price}))
    assert [(one.input_tokens, one.output_tokens) for one in run.usages] == [
        (1_000, 200),
        (3_000, 210),
    ]
    assert [one.cost_usd for one in run.usages] == pytest.approx([0.003, 0.0042])
    assert usage == run.usages[-1]
    assert run.facts == {"prompts": prompts_digest(), "models": model.split(":")[1], "responses": 2}


async def test_without_a_price_of_its_own_a_known_model_has_the_providers(
    llm_server: LLMServer, run: Run
) -> None:
    llm_server.say(Turn((*WHOLE_APP, Call("done")), input_tokens=1_000_000, output_tokens=0))
    usage = await run.of(runner(llm_server, "anthropic:claude-haiku-4-5"))
    assert usage.cost_usd == pytest.approx(1.0)


async def test_a_model_that_nobody_knows_a_price_of_costs_nothing_and_that_is_said(
    llm_server: LLMServer, run: Run
) -> None:
    llm_server.say(Turn((*WHOLE_APP, Call("done"))))
    usage = await run.of(runner(llm_server, "openai-chat:house-brand"))
    assert usage == Usage(input_tokens=100, output_tokens=50, cost_usd=0.0)
    assert run.facts["unpriced_models"] == "house-brand"


@every_protocol
async def test_a_rate_limit_says_when_to_come_back(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(Status(429, "slow down", {"retry-after": "17"}))
    with pytest.raises(
        RunnerBusy, match=rf"{model} is at its rate limit \(429\): slow down"
    ) as busy:
        await run.of(runner(llm_server, model))
    assert busy.value.retry_after_s == 17
    assert len(llm_server.asked) == 1


@pytest.mark.parametrize(
    ("model", "status"), [(MODELS[0], 529), (MODELS[0], 503), (MODELS[1], 503), (MODELS[2], 503)]
)
async def test_an_overloaded_provider_is_busy(
    llm_server: LLMServer, run: Run, model: str, status: int
) -> None:
    llm_server.say(Status(status, "Overloaded"))
    with pytest.raises(RunnerBusy, match="overloaded"):
        await run.of(runner(llm_server, model))
    assert len(llm_server.asked) == 1


@every_protocol
async def test_a_provider_that_is_overloaded_in_the_middle_costs_only_what_was_not_finished(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(Turn((write("a.py"), write("b.py", "b" * 500)), fail_before=b"bbbb"))
    with pytest.raises(RunnerBusy, match="overloaded"):
        await run.of(runner(llm_server, model))
    assert run.written == ["a.py"]


@every_protocol
async def test_a_key_that_is_refused_names_its_variable_and_not_itself(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    variable = "ANTHROPIC_API_KEY" if model.startswith("anthropic") else "OPENAI_API_KEY"
    with pytest.raises(RunnerUnavailable, match=rf"\(401\): set {variable}") as refused:
        await run.of(runner(llm_server, model, key="sk-wrong"))
    assert "sk-wrong" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Status(403, "no"), "set ANTHROPIC_API_KEY to one that may"),
        (Status(404, "model: claude-haiku-4-5"), "set HEADRACE_MODEL"),
        (Status(400, "Your credit balance is too low", code="billing_error"), "top it up"),
    ],
)
async def test_what_only_the_settings_can_mend_is_not_tried_again(
    llm_server: LLMServer, run: Run, answer: Status, message: str
) -> None:
    llm_server.say(answer)
    with pytest.raises(RunnerUnavailable, match=message):
        await run.of(runner(llm_server))
    assert len(llm_server.asked) == 1


async def test_a_conversation_too_long_for_the_model_says_what_to_do(
    llm_server: LLMServer, run: Run
) -> None:
    too_long = "prompt is too long: 210000 tokens > 200000 maximum"
    llm_server.say(Status(400, too_long))
    with pytest.raises(RunnerFailed, match="do not fit into the context"):
        await run.of(runner(llm_server))


@every_protocol
async def test_a_stream_that_breaks_off_costs_only_the_file_that_was_not_finished(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    parts = (Say("Here it comes."), *WHOLE_APP, write("long.py", "y" * 2_000))
    llm_server.say(
        Turn(parts, cut_before=b"yyyy"),
        Turn((write("long.py", "z"), Call("done"))),
    )
    await run.of(runner(llm_server, model))
    assert run.written == ["headrace.toml", "app.py", "long.py"]
    again = llm_server.asked[1]
    assert [one.text for one in again.returned] == WRITTEN
    assert "cut off" in again.texts[-1]
    assert "yyyy" not in str(again.messages)


@every_protocol
async def test_a_call_that_arrived_whole_just_before_the_stream_broke_off_counts(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    ends = {
        MODELS[0]: b"content_block_stop",
        MODELS[1]: b"function_call_arguments.done",
        MODELS[2]: b'"finish_reason": "tool_calls"',
    }
    llm_server.say(
        Turn((write("app.py"),), cut_before=ends[model]), Turn((*WHOLE_APP, Call("done")))
    )
    await run.of(runner(llm_server, model))
    assert run.written == ["app.py", "headrace.toml", "app.py"]
    assert [one.text for one in llm_server.asked[1].returned] == ["written, 6 bytes"]


@pytest.mark.parametrize("model", MODELS[:2])
async def test_a_stream_that_just_ends_is_not_taken_for_a_whole_answer(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    ends = {
        MODELS[0]: b"message_delta",
        MODELS[1]: b"response.completed",
    }
    llm_server.say(Turn(WHOLE_APP, end_before=ends[model]), DONE)
    await run.of(runner(llm_server, model))
    assert llm_server.is_spent
    assert "cut off" in llm_server.asked[1].texts[-1]


async def test_a_provider_that_always_breaks_off_is_given_up_for_now(
    llm_server: LLMServer, run: Run
) -> None:
    llm_server.model = lambda _: Turn((write("a.py", "a" * 500),), cut_before=b"aaaa")
    with pytest.raises(RunnerBusy):
        await run.of(runner(llm_server, bounds=Bounds(pause_s=0.0, cuts=2)))
    assert len(llm_server.asked) == 3


async def test_what_a_broken_stream_has_cost_is_told(llm_server: LLMServer, run: Run) -> None:
    llm_server.say(Turn((Say("w" * 500),), input_tokens=700, cut_before=b"www"), Status(429))
    with pytest.raises(RunnerBusy):
        await run.of(runner(llm_server))
    assert run.used.input_tokens == 700


async def test_a_server_error_is_tried_again_at_once(llm_server: LLMServer, run: Run) -> None:
    llm_server.say(Status(500), Status(502, body=b"<html>"), Turn((*WHOLE_APP, Call("done"))))
    await run.of(runner(llm_server))
    assert len(llm_server.asked) == 3


async def test_a_provider_that_is_silent_is_not_waited_for_long(
    llm_server: LLMServer, run: Run
) -> None:
    llm_server.say(Turn((Say("hello"),), hold_before=b"hello"))
    bounds = Bounds(pause_s=0.0, cuts=0, silence_s=0.05)
    with pytest.raises(RunnerBusy, match="cannot be reached"):
        await run.of(runner(llm_server, bounds=bounds))
    await llm_server.client_gone()


async def test_a_provider_that_is_not_there_is_busy(llm_server: LLMServer, run: Run) -> None:
    nowhere = LLMRunner(
        ["openai:gpt-5-mini"],
        {"OPENAI_API_KEY": Access("sk-x", "http://127.0.0.1:9/v1")},
        bounds=Bounds(pause_s=0.0, cuts=1),
    )
    with pytest.raises(RunnerBusy, match="openai:gpt-5-mini cannot be reached"):
        await run.of(nowhere)


@every_protocol
async def test_arguments_that_are_no_json_are_told_back(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(
        Turn((Call("write_file", raw='{"path": "app.py", "content": '), write("b.py"))),
        Turn((Call("write_file", {"path": "app.py"}),)),
        Turn((*WHOLE_APP, Call("done"))),
    )
    await run.of(runner(llm_server, model))
    bad, good, lacking = [one.text for one in llm_server.asked[2].returned]
    assert "Invalid JSON" in bad
    assert good == "written, 6 bytes"
    assert "content: Field required" in lacking
    assert "send the whole call again" in lacking


@every_protocol
async def test_a_tool_that_does_not_exist_is_told_back(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(Turn((Call("run_shell", {"command": "ls"}),)), Turn((*WHOLE_APP, Call("done"))))
    await run.of(runner(llm_server, model))
    (told,) = llm_server.asked[1].returned
    assert "there is no tool 'run_shell'" in told.text
    assert told.failed or "error" in told.text


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "", "a\0b"]
)
async def test_a_path_outside_the_workspace_is_told_back_and_nothing_is_written(
    llm_server: LLMServer, run: Run, path: str
) -> None:
    llm_server.say(
        Turn((write(path), Call("read_file", {"path": path}), Call("delete_file", {"path": path}))),
        Turn((*WHOLE_APP, Call("done"))),
    )
    await run.of(runner(llm_server))
    told = llm_server.asked[1].returned
    assert all(one.failed and "refused" in one.text for one in told)
    assert {file.name for file in run.root.parent.rglob("*")} == {"app", "headrace.toml", "app.py"}


async def test_a_file_of_more_than_5_mb_is_told_back(llm_server: LLMServer, run: Run) -> None:
    llm_server.say(
        Turn((write("big.txt", "x" * (MAX_FILE_BYTES + 1)),)), Turn((*WHOLE_APP, Call("done")))
    )
    await run.of(runner(llm_server))
    (told,) = llm_server.asked[1].returned
    assert told.failed
    assert f"more than {MAX_FILE_BYTES}" in told.text
    assert "big.txt" not in run.workspace.files


@every_protocol
async def test_a_refusal_fails_the_build_with_the_models_words(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(Turn((Say("I will not help with that.", refuses=True),)))
    with pytest.raises(GoalRefused, match="refuses"):
        await run.of(runner(llm_server, model))
    assert len(llm_server.asked) == 1


@every_protocol
async def test_a_content_filter_of_the_provider_is_a_refusal(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(Turn((Say("Well, "),), stop="filter"))
    with pytest.raises(GoalRefused):
        await run.of(runner(llm_server, model))


@every_protocol
async def test_empty_answers_and_mere_words_are_asked_to_use_the_tools(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(Turn(()), Turn((Say("Sure!"),)), Turn((*WHOLE_APP, Call("done"))))
    await run.of(runner(llm_server, model))
    assert "not called a tool" in llm_server.asked[1].texts[-1]
    assert "not called a tool" in llm_server.asked[2].texts[-1]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (Turn(()), "it said nothing"),
        (Turn((Say("I am only a model."),)), "I am only a model"),
        (Turn((Call("fly"),)), "there is no tool 'fly'"),
    ],
)
async def test_a_model_that_gets_nowhere_is_given_up(
    llm_server: LLMServer, run: Run, turn: Turn, message: str
) -> None:
    llm_server.model = lambda _: turn
    with pytest.raises(RunnerFailed, match=message):
        await run.of(runner(llm_server, bounds=Bounds(vain=2)))
    assert len(llm_server.asked) == 3


async def test_a_model_that_is_never_done_is_given_up(llm_server: LLMServer, run: Run) -> None:
    llm_server.model = lambda _: Turn(WHOLE_APP)
    with pytest.raises(RunnerFailed, match="not done after 4 answers"):
        await run.of(runner(llm_server, bounds=Bounds(responses=4)))


@every_protocol
async def test_an_answer_without_end_is_cut_off(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(Turn((Flood(),)))
    with pytest.raises(RunnerFailed, match="did not stop writing"):
        await run.of(runner(llm_server, model, bounds=Bounds(response_chars=50_000)))
    await llm_server.client_gone()


@every_protocol
async def test_an_answer_that_reached_its_length_goes_on_with_smaller_files(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    cut = Call("write_file", raw='{"path": "big.py", "content": "aaaa')
    llm_server.say(Turn((*WHOLE_APP, cut), stop="length"), DONE)
    await run.of(runner(llm_server, model))
    assert "smaller files" in llm_server.asked[1].texts[-1]
    assert run.written == ["headrace.toml", "app.py"]


async def test_the_number_of_files_is_limited(llm_server: LLMServer, run: Run) -> None:
    llm_server.say(Turn((*WHOLE_APP, write("third.py"))), DONE)
    await run.of(runner(llm_server, bounds=Bounds(files=2)))
    assert "2 files already" in llm_server.asked[1].returned[-1].text
    assert len(run.workspace.files) == 2


async def test_done_is_not_taken_before_the_app_can_be_started(
    llm_server: LLMServer, run: Run
) -> None:
    llm_server.say(Turn((write("app.py"), Call("done"))), Turn((*WHOLE_APP, Call("done"))))
    await run.of(runner(llm_server))
    assert "the app has no headrace.toml" in llm_server.asked[1].returned[-1].text


@pytest.mark.parametrize(
    ("allowance", "message"),
    [
        (Allowance(tokens=299), "taken 300 tokens and is not finished; the job may use 299"),
        (Allowance(cost_usd=0.0005), "may use \\$0.0005"),
    ],
)
async def test_a_run_ends_when_what_the_job_may_use_is_used_up(
    llm_server: LLMServer, run: Run, allowance: Allowance, message: str
) -> None:
    llm_server.model = lambda _: Turn(WHOLE_APP)
    with pytest.raises(BudgetSpent, match=message) as spent:
        await run.of(runner(llm_server), RunnerTask("job-1", "a list", allowance=allowance))
    assert spent.value.kind == "budget"
    assert len(llm_server.asked) == 2
    assert run.used.input_tokens == 200


async def test_no_answer_may_be_longer_than_what_is_left(llm_server: LLMServer, run: Run) -> None:
    llm_server.say(Turn(WHOLE_APP), DONE)
    task = RunnerTask("job-1", "a list", allowance=Allowance(tokens=1_000))
    await run.of(runner(llm_server), task)
    assert [one.max_tokens for one in llm_server.asked] == [1_000, 850]


async def test_a_run_ends_when_its_time_is_over(llm_server: LLMServer, run: Run) -> None:
    llm_server.say(Turn((*WHOLE_APP, write("slow.py")), hold_before=b"slow.py"))
    task = RunnerTask("job-1", "a list", allowance=Allowance(seconds=0.5))
    with pytest.raises(BudgetSpent, match=r"within the 0\.5 s"):
        await run.of(runner(llm_server), task)
    await llm_server.client_gone()
    assert run.used.input_tokens == 100


@every_protocol
async def test_a_cancel_in_the_middle_closes_the_connection_and_tells_what_was_used(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.say(Turn((*WHOLE_APP, write("last.py", "l" * 500)), hold_before=b"llll"))
    run.wrote["app.py"] = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.of, runner(llm_server, model))
        await run.wrote["app.py"].wait()
        tasks.cancel_scope.cancel()
    await llm_server.client_gone()
    assert run.written == ["headrace.toml", "app.py"]
    assert len(run.usages) == 1


async def test_the_next_model_is_asked_when_the_first_cannot_answer(
    llm_server: LLMServer, run: Run
) -> None:
    llm_server.say(Status(529, "Overloaded"), Turn(WHOLE_APP), Status(404, "gone"), DONE)
    await run.of(runner(llm_server, *MODELS[:2]))
    assert [one.model for one in llm_server.asked] == [
        "claude-haiku-4-5",
        "gpt-5-mini",
        "claude-haiku-4-5",
        "gpt-5-mini",
    ]
    assert run.facts["models"] == "gpt-5-mini"


async def test_when_no_model_can_answer_the_soonest_to_come_back_says_when(
    llm_server: LLMServer, run: Run
) -> None:
    llm_server.say(Status(429, "a", {"retry-after": "30"}), Status(429, "b", {"retry-after": "4"}))
    with pytest.raises(RunnerBusy, match=r"claude.*gpt") as busy:
        await run.of(runner(llm_server, *MODELS[:2]))
    assert busy.value.retry_after_s == 4


async def test_a_change_shows_the_tree_and_lets_the_model_read_and_edit(
    llm_server: LLMServer, run: Run
) -> None:
    base = {"headrace.toml": MANIFEST.encode(), "app.py": b"colour = 'red'\n" * 2 + b"size = 1\n"}
    llm_server.say(
        Turn((Call("done"),)),
        Turn((Call("read_file", {"path": "app.py"}), Call("read_file", {"path": "ap.py"}))),
        Turn(
            (
                Call("edit_file", {"path": "app.py", "old": "colour = 'red'", "new": "x"}),
                Call("edit_file", {"path": "app.py", "old": "colour = 'blue'", "new": "x"}),
                Call("edit_file", {"path": "app.py", "old": "size = 1", "new": "size = 2"}),
            )
        ),
        DONE,
    )
    await run.of(runner(llm_server), RunnerTask("job-1", "make it bigger", base_files=base))
    assert "make it bigger" in llm_server.asked[0].texts[0]
    assert "app.py (39 bytes)" in llm_server.asked[0].texts[0]
    told = [one.text for one in llm_server.asked[3].returned]
    assert told[0] == "not done yet: no file has been changed. Nothing was changed."
    assert told[1] == base["app.py"].decode()
    assert "do you mean app.py?" in told[2]
    assert "stands 2 times" in told[3]
    assert "does not stand" in told[4]
    assert told[5] == "replaced"
    assert run.workspace.files["app.py"].endswith(b"size = 2\n")
    assert run.written == ["app.py"]


async def test_a_repair_shows_what_failed(llm_server: LLMServer, run: Run) -> None:
    base = {"headrace.toml": MANIFEST.encode(), "app.py": b"x = 1\n"}
    failure = Failure(
        "the app's own tests fail", "python3 -m unittest", 1, "AssertionError: 1 != 2"
    )
    llm_server.say(Turn((write("app.py", "x = 2\n"), Call("done"))))
    task = RunnerTask("job-1", "a list of $books", round=2, base_files=base, failure=failure)
    await run.of(runner(llm_server), task)
    (said,) = llm_server.asked[0].texts
    for part in (
        failure.message,
        failure.command,
        "exit code 1",
        failure.output,
        "$books",
        "app.py",
    ):
        assert part in said


async def test_files_that_an_earlier_attempt_finished_are_named_and_stay(
    llm_server: LLMServer, run: Run
) -> None:
    drafted = {"headrace.toml": MANIFEST.encode(), "app.py": b"x = 1\n"}
    llm_server.say(DONE)
    task = RunnerTask("job-1", "a list", base_files=drafted, drafted=frozenset(drafted))
    await run.of(runner(llm_server), task)
    (said,) = llm_server.asked[0].texts
    assert "finished already" in said
    assert "app.py (6 bytes)" in said
    assert run.written == []


async def test_a_long_file_is_read_in_parts(llm_server: LLMServer, run: Run) -> None:
    base = {
        "headrace.toml": MANIFEST.encode(),
        "long.py": b"0123456789\n" * 10_000,
        "l.bin": b"\xff",
    }
    llm_server.say(
        Turn((Call("read_file", {"path": "long.py"}), Call("read_file", {"path": "l.bin"}))),
        Turn((Call("read_file", {"path": "long.py", "first_line": 9_999}), write("a.py"))),
        DONE,
    )
    await run.of(runner(llm_server), RunnerTask("job-1", "a change", base_files=base))
    first, binary, last, _ = [one.text for one in llm_server.asked[2].returned]
    assert first.endswith("[10000 lines; read on from line 5455]")
    assert "l.bin is not text" in binary
    assert last == "0123456789\n" * 2


@every_protocol
async def test_an_app_is_built_mended_and_changed_in_three_runs(
    llm_server: LLMServer, run: Run, model: str
) -> None:
    llm_server.model = builder
    writer = runner(llm_server, model)

    def outcome() -> subprocess.CompletedProcess[str]:
        command = app_commands(run.workspace.files).test
        return subprocess.run(
            ["/bin/sh", "-c", command], cwd=run.root, capture_output=True, text=True, timeout=60
        )

    await run.of(writer, RunnerTask("job-1", "a list with a bug"))
    failed = outcome()
    assert failed.returncode != 0
    failure = Failure("its tests fail", "python3 -m unittest", failed.returncode, failed.stderr)
    base = dict(run.workspace.files)
    await run.of(writer, RunnerTask("job-1", "a list", 2, base_files=base, failure=failure))
    assert outcome().returncode == 0
    base = dict(run.workspace.files)
    await run.of(writer, RunnerTask("job-2", "call it Books", base_files=base))
    assert outcome().returncode == 0
    assert b"call it Books" in run.workspace.files["settings.py"]


async def test_every_model_can_be_asked_whether_it_answers(llm_server: LLMServer, run: Run) -> None:
    llm_server.say(Turn((Say("ok"),)), Turn((Say("ok"),)), Turn((Say("ok"),)))
    assert list(await runner(llm_server, *MODELS).ask_all()) == list(MODELS)
    llm_server.say(Status(404, "unknown model"))
    with pytest.raises(RunnerUnavailable, match="does not know the model"):
        await runner(llm_server).ask_all()


@pytest.mark.parametrize(
    ("model", "message"),
    [("gpt-5", "provider:model"), ("acme:gpt", "provider:model"), ("openai:", "provider:model")],
)
def test_a_model_that_cannot_be_is_refused_at_the_start(
    llm_server: LLMServer, model: str, message: str
) -> None:
    with pytest.raises(RunnerUnavailable, match=message):
        runner(llm_server, model)


def test_providers_have_their_keys_in_the_same_variables_everywhere() -> None:
    assert PROVIDERS == MODEL_KEYS


async def test_doctor_asks_every_model_and_says_which_does_not_answer(
    llm_server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "HEADRACE_MODEL": MODELS[0],
        "HEADRACE_FALLBACK_MODELS": MODELS[1],
        "ANTHROPIC_API_KEY": llm_server.api_key,
        "ANTHROPIC_BASE_URL": llm_server.url,
        "OPENAI_API_KEY": llm_server.api_key,
        "OPENAI_BASE_URL": f"{llm_server.url}/v1",
    }.items():
        monkeypatch.setenv(name, value)
    llm_server.say(Turn((Say("ok"),)), Turn((Say("ok"),)))
    found = await check_runner(Settings.read())
    assert found.level is Level.OK
    assert [name in found.says for name in MODELS[:2]] == [True, True]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-yesterday")
    llm_server.say(Turn((Say("ok"),)))
    found = await check_runner(Settings.read())
    assert (found.level, MODELS[1] in found.says) == (Level.PROBLEM, True)
    assert "set OPENAI_API_KEY" in found.remedy
    assert "yesterday" not in str(found)


async def test_doctor_has_nobody_to_ask_for_the_other_runners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADRACE_RUNNER", "template")
    assert (await check_runner(Settings.read())).level is Level.OK
