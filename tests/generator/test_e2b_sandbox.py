"""What E2B does when things go wrong, and what our caller is told to do about it."""

import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import httpx
import pytest
from e2b import exceptions as e2b

from generator.errors import (
    CommandTimeout,
    SandboxBusy,
    SandboxError,
    SandboxFull,
    SandboxGone,
    SandboxUnavailable,
)
from generator.sandbox import Stream
from generator.sandboxes.e2b import E2BRuntime
from generator.sandboxes.e2b.errors import translate
from generator.sandboxes.e2b.sandbox import E2BSandbox
from tests.e2b_server import E2BServer

pytestmark = pytest.mark.anyio

CREATE = "/v2/sandboxes"
START = "/process.Process/Start"
NOT_AGAIN = {"Should-Retry": "false"}
"""Tells the SDK not to try again by itself, which takes it a second."""


@pytest.fixture
def runtime(e2b_server: E2BServer) -> E2BRuntime:
    return E2BRuntime(e2b_server.api_key, **e2b_server.settings)


@pytest.fixture
async def sandbox(runtime: E2BRuntime) -> E2BSandbox:
    return await runtime.create(metadata={"job": "j1"}, timeout_s=60)


def frames(*messages: tuple[int, dict[str, object]]) -> bytes:
    """The body of a stream in the Connect protocol: flags, length and JSON of each message."""
    packed = [(flags, json.dumps(message).encode()) for flags, message in messages]
    return b"".join(struct.pack(">BI", flags, len(data)) + data for flags, data in packed)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is inside takes no longer; a deadline would not tell, as clean-up is shielded."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (e2b.AuthenticationException("401"), SandboxUnavailable),
        (e2b.TemplateException("too old"), SandboxUnavailable),
        (e2b.SandboxException("team is blocked", status_code=403), SandboxUnavailable),
        (e2b.RateLimitException("429"), SandboxBusy),  # type: ignore[no-untyped-call]
        (e2b.ServiceBusyException("503"), SandboxBusy),
        (e2b.NotEnoughSpaceException("507"), SandboxFull),
        (e2b.SandboxNotFoundException("404"), SandboxGone),
        (e2b.NotFoundException("404"), SandboxGone),
        (e2b.SandboxNotRunningException("was not found"), SandboxGone),
        (e2b.FileNotFoundException("no such file"), SandboxError),
        (e2b.SandboxUnreachableException("port is not open"), SandboxError),
        (e2b.TimeoutException("too slow"), SandboxError),
        (e2b.InvalidArgumentException("400"), SandboxError),
        (httpx.ConnectError("no route"), SandboxError),
        (httpx.ReadTimeout(""), SandboxError),
        (TimeoutError(), SandboxError),
        (json.JSONDecodeError("no JSON", "<html>", 0), SandboxError),
        (Exception("Command ended without an end event"), SandboxError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_the_sdk_says_what_to_do(theirs: Exception, ours: type[SandboxError]) -> None:
    assert type(translate(theirs, "do it", "s1")) is ours


def test_the_page_of_a_proxy_is_cut_to_one_line() -> None:
    page = Exception("<html>\n" + "x" * 10_000)
    message = str(translate(page, "do it", None))
    assert len(message) < 400
    assert "\n" not in message


async def test_a_refused_key_is_a_setting_to_fix_and_is_not_printed(e2b_server: E2BServer) -> None:
    runtime = E2BRuntime("e2b_wrong_key", **e2b_server.settings)
    with pytest.raises(SandboxUnavailable, match="E2B_API_KEY") as caught:
        await runtime.create(metadata={}, timeout_s=60)
    assert "e2b_wrong_key" not in str(caught.value)
    assert isinstance(caught.value.__cause__, e2b.AuthenticationException)


async def test_an_unknown_template_is_a_setting_to_fix(e2b_server: E2BServer) -> None:
    runtime = E2BRuntime(e2b_server.api_key, template="typo", **e2b_server.settings)
    with pytest.raises(SandboxUnavailable, match="'typo'"):
        await runtime.create(metadata={}, timeout_s=60)


async def test_a_lifetime_beyond_the_plan_is_a_setting_to_fix(runtime: E2BRuntime) -> None:
    with pytest.raises(SandboxUnavailable, match="cannot be greater than 24 hours"):
        await runtime.create(metadata={}, timeout_s=25 * 3600)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_provider_at_its_limit_is_busy(
    e2b_server: E2BServer, runtime: E2BRuntime, status: int
) -> None:
    e2b_server.fail_next(CREATE, status, headers=NOT_AGAIN)
    with pytest.raises(SandboxBusy):
        await runtime.create(metadata={}, timeout_s=60)


async def test_a_creation_whose_answer_was_lost_is_not_made_twice(
    e2b_server: E2BServer, runtime: E2BRuntime
) -> None:
    e2b_server.fail_next(CREATE, 503, late=True)
    sandbox = await runtime.create(metadata={}, timeout_s=60)
    assert list(e2b_server.living) == [sandbox.sandbox_id]


@pytest.mark.parametrize("body", [b"<html>Internal Server Error</html>", b"", b"[]"])
async def test_an_error_that_is_no_json_is_worth_one_retry(
    e2b_server: E2BServer, runtime: E2BRuntime, body: bytes
) -> None:
    e2b_server.fail_next(CREATE, 500, body)
    with pytest.raises(SandboxError) as caught:
        await runtime.create(metadata={}, timeout_s=60)
    assert type(caught.value) is SandboxError


async def test_a_slow_creation_is_waited_for(e2b_server: E2BServer, runtime: E2BRuntime) -> None:
    hold = e2b_server.hold_next(CREATE)

    async def release() -> None:
        await hold.arrived()
        hold.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(release)
        sandbox = await runtime.create(metadata={}, timeout_s=60)
    assert list(e2b_server.living) == [sandbox.sandbox_id]


async def test_a_creation_beyond_its_deadline_is_found_by_its_metadata(
    e2b_server: E2BServer, runtime: E2BRuntime
) -> None:
    hold = e2b_server.hold_next(CREATE)
    hasty = E2BRuntime(e2b_server.api_key, request_timeout_s=0.3, **e2b_server.settings)
    with pytest.raises(SandboxError, match="in time"):
        await hasty.create(metadata={"job": "j1"}, timeout_s=60)
    hold.release()
    await hold.answered()
    (late,) = await runtime.list({"job": "j1"})
    assert await runtime.kill(late.sandbox_id)


KILL_FAULTS = {
    "refused": {"status": 500},
    "busy": {"status": 503},
    "limited": {"status": 429, "headers": {"Retry-After": "1", **NOT_AGAIN}},
    "done, but not said": {"status": 502, "late": True},
}


@pytest.mark.parametrize("fault", KILL_FAULTS)
async def test_a_kill_that_is_not_confirmed_is_tried_again(
    e2b_server: E2BServer, runtime: E2BRuntime, sandbox: E2BSandbox, fault: str
) -> None:
    e2b_server.fail_next(f"/sandboxes/{sandbox.sandbox_id}", **KILL_FAULTS[fault])  # type: ignore[arg-type]
    await runtime.kill(sandbox.sandbox_id)
    assert not e2b_server.living


async def test_a_kill_that_is_never_confirmed_is_told(
    e2b_server: E2BServer,
    runtime: E2BRuntime,
    sandbox: E2BSandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("generator.sandboxes.e2b.runtime._KILL_PAUSE_S", 0.0)
    for _ in range(30):  # more than anybody asks for it
        e2b_server.fail_next(f"/sandboxes/{sandbox.sandbox_id}", 500, b"<html>", headers=NOT_AGAIN)
    with pytest.raises(SandboxError, match="end a sandbox"):
        await runtime.kill(sandbox.sandbox_id)
    assert list(e2b_server.living) == [sandbox.sandbox_id]


async def test_a_kill_with_a_refused_key_is_not_tried_again(
    e2b_server: E2BServer, sandbox: E2BSandbox
) -> None:
    wrong = E2BRuntime("e2b_wrong_key", **e2b_server.settings)
    with pytest.raises(SandboxUnavailable, match="E2B_API_KEY"):
        await wrong.kill(sandbox.sandbox_id)


async def test_a_paused_sandbox_is_listed_beside_the_running_ones(
    e2b_server: E2BServer, runtime: E2BRuntime, sandbox: E2BSandbox
) -> None:
    other = await runtime.create(metadata={"job": "j2"}, timeout_s=60)
    await runtime.pause(sandbox.sandbox_id)
    listed = {info.sandbox_id: info.is_paused for info in await runtime.list({})}
    assert listed == {sandbox.sandbox_id: True, other.sandbox_id: False}


async def test_connecting_to_a_paused_sandbox_wakes_it_and_gives_it_time(
    e2b_server: E2BServer, runtime: E2BRuntime, sandbox: E2BSandbox
) -> None:
    await runtime.pause(sandbox.sandbox_id)
    again = await runtime.connect(sandbox.sandbox_id)
    assert (await again.run("echo awake", timeout_s=10)).output == "awake\n"
    assert e2b_server.living[sandbox.sandbox_id].left_s > 200


async def test_a_command_in_a_paused_sandbox_is_an_error_that_may_pass(
    e2b_server: E2BServer, runtime: E2BRuntime, sandbox: E2BSandbox
) -> None:
    await runtime.pause(sandbox.sandbox_id)
    with pytest.raises(SandboxError):
        await sandbox.read_file("a.txt")


async def test_a_sandbox_that_ends_in_the_middle_of_an_upload_is_gone(
    e2b_server: E2BServer, runtime: E2BRuntime, sandbox: E2BSandbox
) -> None:
    hold = e2b_server.hold_next("/files")

    async def end() -> None:
        await hold.arrived()
        await runtime.kill(sandbox.sandbox_id)
        hold.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        with pytest.raises(SandboxGone):
            await sandbox.write_files({"a.txt": b"1"})


async def test_an_unreachable_provider_is_worth_one_retry() -> None:
    runtime = E2BRuntime("e2b_key", api_url="http://127.0.0.1:9", request_timeout_s=0.5)
    with pytest.raises(SandboxError) as caught:
        await runtime.list({})
    assert type(caught.value) is SandboxError


async def test_files_that_do_not_fit_fill_the_sandbox(
    e2b_server: E2BServer, sandbox: E2BSandbox
) -> None:
    e2b_server.fail_next("/files", 507)
    with pytest.raises(SandboxFull):
        await sandbox.write_files({"a.txt": b""})


async def test_a_sandbox_that_the_proxy_cannot_find_is_gone(
    e2b_server: E2BServer, sandbox: E2BSandbox
) -> None:
    for _ in range(2):  # the second answers our request to end what may have started
        e2b_server.fail_next(START, 502, b'{"message": "The sandbox was not found", "code": 502}')
    with pytest.raises(SandboxGone):
        await sandbox.run("true", timeout_s=10)


async def test_a_sandbox_that_is_only_out_of_reach_is_not_gone(
    e2b_server: E2BServer, sandbox: E2BSandbox
) -> None:
    e2b_server.fail_next("/files", 502, b'{"message": "The port is not open", "code": 502}')
    with pytest.raises(SandboxError) as caught:
        await sandbox.read_file("a.txt")
    assert type(caught.value) is SandboxError


async def test_a_vague_error_of_a_sandbox_that_ended_means_it_is_gone(
    e2b_server: E2BServer, runtime: E2BRuntime, sandbox: E2BSandbox
) -> None:
    await runtime.kill(sandbox.sandbox_id)
    e2b_server.fail_next("/files", 500, b"<html>")
    with pytest.raises(SandboxGone):
        await sandbox.read_file("a.txt")


async def test_a_command_whose_stream_is_cut_is_ended(
    e2b_server: E2BServer, sandbox: E2BSandbox
) -> None:
    e2b_server.cut_next(START, before=b'"data"')
    with pytest.raises(SandboxError, match="follow a command: the connection broke off") as caught:
        await sandbox.run("exec 9>lock; flock 9; echo locked; sleep 1000", timeout_s=10)
    assert type(caught.value) is SandboxError
    freed = await sandbox.run("flock --timeout 5 lock true", timeout_s=10)
    assert freed.exit_code == 0


async def test_a_stream_that_ends_without_an_exit_code_is_an_error(
    e2b_server: E2BServer, sandbox: E2BSandbox
) -> None:
    body = frames((0, {"event": {"start": {"pid": 7}}}), (2, {}))
    headers = {"content-type": "application/connect+json"}
    e2b_server.fail_next(START, 200, body, headers=headers)
    with pytest.raises(SandboxError, match="without an end event"):
        await sandbox.run("true", timeout_s=10)


async def test_a_command_that_hangs_before_it_starts_times_out_and_never_starts(
    e2b_server: E2BServer, sandbox: E2BSandbox
) -> None:
    hold = e2b_server.hold_next(START)
    with within(10), pytest.raises(CommandTimeout):
        await sandbox.run("touch started", timeout_s=0.3)
    hold.release()
    await hold.answered()
    processes = e2b_server.living[sandbox.sandbox_id].processes
    with anyio.fail_after(10):
        while processes:  # noqa: ASYNC110 (no event tells it)
            await anyio.sleep(0.01)
    assert (await sandbox.run("ls -A", timeout_s=10)).output == ""


async def test_a_command_that_cannot_be_started_does_not_wait_for_its_own_timeout(
    e2b_server: E2BServer, runtime: E2BRuntime
) -> None:
    hasty = E2BRuntime(e2b_server.api_key, request_timeout_s=0.5, **e2b_server.settings)
    sandbox = await hasty.connect((await runtime.create(metadata={}, timeout_s=60)).sandbox_id)
    hold = e2b_server.hold_next(START)
    with within(10), pytest.raises(SandboxError, match="start a command in time"):
        await sandbox.run("true", timeout_s=1000)
    hold.release()


async def test_a_command_may_take_longer_than_a_request(
    e2b_server: E2BServer, runtime: E2BRuntime
) -> None:
    hasty = E2BRuntime(e2b_server.api_key, request_timeout_s=0.5, **e2b_server.settings)
    sandbox = await hasty.connect((await runtime.create(metadata={}, timeout_s=60)).sandbox_id)
    assert (await sandbox.run("sleep 0.8; echo done", timeout_s=10)).output == "done\n"


async def test_a_killed_command_leaves_no_remark_of_our_shell(sandbox: E2BSandbox) -> None:
    result = await sandbox.run("echo last; kill -KILL $$", timeout_s=10)
    assert (result.exit_code, result.output) == (137, "last\n")


async def test_a_sandbox_that_answers_no_more_holds_nobody_up_for_long(
    e2b_server: E2BServer, sandbox: E2BSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.sandboxes.e2b.sandbox.END_GROUP_S", 0.3)
    holds = [e2b_server.hold_next(START) for _ in range(2)]
    with within(5), pytest.raises(CommandTimeout):
        await sandbox.run("true", timeout_s=0.3)
    for hold in holds:
        hold.release()


async def test_a_listener_that_never_returns_does_not_outlive_the_timeout(
    sandbox: E2BSandbox,
) -> None:
    async def on_output(stream: Stream, text: str) -> None:
        await anyio.sleep_forever()

    with within(10), pytest.raises(CommandTimeout) as caught:
        await sandbox.run("echo heard; sleep 1000", timeout_s=0.3, on_output=on_output)
    assert caught.value.output == "heard\n"


async def test_a_server_that_cannot_start_says_why(sandbox: E2BSandbox) -> None:
    await sandbox.write_files({"file": b""})
    with pytest.raises(SandboxError, match="file"):
        await sandbox.start("true", log_path="file/log")


async def test_a_list_is_read_to_its_last_page(e2b_server: E2BServer, runtime: E2BRuntime) -> None:
    made = {
        (await runtime.create(metadata={"job": "j1"}, timeout_s=60)).sandbox_id for _ in range(3)
    }
    e2b_server.list_in_pages_of(2)
    assert {info.sandbox_id for info in await runtime.list({"job": "j1"})} == made


async def test_a_sandbox_about_to_end_is_not_prolonged_by_connecting(
    e2b_server: E2BServer, runtime: E2BRuntime
) -> None:
    sandbox = await runtime.create(metadata={}, timeout_s=10)
    ends_at = e2b_server.living[sandbox.sandbox_id].ends_at
    await runtime.connect(sandbox.sandbox_id)
    assert e2b_server.living[sandbox.sandbox_id].ends_at == ends_at


@pytest.mark.parametrize("word", ["Upper", "a b", "ä", "", "x" * 65, "a/b"])
async def test_metadata_that_e2b_would_garble_is_refused(runtime: E2BRuntime, word: str) -> None:
    for use in (partial(runtime.create, timeout_s=60), runtime.list):
        with pytest.raises(ValueError, match="metadata"):
            await use(metadata={"job": word})
        with pytest.raises(ValueError, match="metadata"):
            await use(metadata={word: "j1"})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("https://{host}", "https://8080-{id}.e2b.app"),
        ("http://127.0.0.1:3000/{sandbox_id}/{port}/", "http://127.0.0.1:3000/{id}/8080"),
    ],
)
async def test_a_preview_is_where_its_template_says(
    e2b_server: E2BServer, template: str, expected: str
) -> None:
    runtime = E2BRuntime(
        e2b_server.api_key, domain="e2b.app", api_url=e2b_server.url, preview_url=template
    )
    sandbox = await runtime.create(metadata={}, timeout_s=60)
    assert sandbox.preview_url(8080) == expected.format(id=sandbox.sandbox_id)
