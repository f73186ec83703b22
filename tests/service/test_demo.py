"""`./headrace demo`: from a goal to a preview that answers, and nothing left behind."""

import asyncio
import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx
import pytest
import redis

from service.demo import Outcome
from service.embedded import embedded_servers
from service.instance import LOCAL_TENANT
from service.settings import ROOT
from tests.e2b_server import E2BServer
from tests.service.command_line import CommandLine, in_this_process_on
from tests.service.homes import furnish
from tests.service.processes import processes_of

GOAL = "a todo list for two people"
FIELDS = {field.name for field in dataclasses.fields(Outcome)}

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For demos one after the other."""
    made = tmp_path_factory.mktemp("demo") / "home"
    anyio.run(furnish, made)
    return made


@pytest.fixture
def headrace(home: Path) -> Iterator[CommandLine]:
    with in_this_process_on(home) as commands:
        yield commands


def outcome_of(done: Done) -> dict[str, Any]:
    """The one document on standard output."""
    (line,) = done.stdout.splitlines()
    outcome: dict[str, Any] = json.loads(line)
    assert outcome.keys() == FIELDS
    return outcome


def sandboxes_in(home: Path) -> list[str]:
    folder = home / "sandboxes"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


# --- two demos on one home ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Twice:
    """What two demos in a row, on the same home, printed and left."""

    home: Path
    runs: tuple[Done, Done]
    left: dict[int, str]

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        return [outcome_of(done) for done in self.runs]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twice]:
    home = tmp_path_factory.mktemp("demo") / "a home of mine"
    with in_this_process_on(home) as headrace:
        first = CommandLine.run(headrace, "demo", GOAL, "--once", "--json")
        left = processes_of(home)
        second = headrace.run("demo", GOAL, "--once", "--json")
        yield Twice(home, (first, second), left | processes_of(home))


def test_a_demo_prints_one_document_that_says_what_became_of_it(twice: Twice) -> None:
    for done, number in zip(twice.runs, (1, 2), strict=True):
        assert done.returncode == 0, done.stderr
        outcome = outcome_of(done)
        assert None not in {value for name, value in outcome.items() if name != "debug_id"}
        assert (outcome["status"], outcome["debug_id"]) == ("ready", None)
        assert outcome["build_version"] == f"build_v0_{number}"
        assert (Path(outcome["workspace_path"]) / "headrace.toml").is_file()


def test_a_demo_has_seen_its_preview_answer(twice: Twice) -> None:
    for done in twice.runs:
        assert "preview answered 200" in done.stderr


def test_a_demo_leaves_no_process_and_no_sandbox(twice: Twice) -> None:
    assert twice.left == {}
    assert sandboxes_in(twice.home) == []


def test_the_builds_of_a_demo_are_in_the_log_and_in_the_table(twice: Twice) -> None:
    async def rows(database_url: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(database_url)
        try:
            return await connection.fetch("SELECT * FROM jobs ORDER BY build_number")
        finally:
            await connection.close()

    with embedded_servers(twice.home) as servers:
        found = asyncio.run(rows(servers.database_url))
        with redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
            logs = [client.xrange(key) for key in client.keys("hr:{*}:log")]
    events = [fields for log in logs for _, fields in log]
    for row, outcome in zip(found, twice.outcomes, strict=True):
        shared = FIELDS - {"job_id", "events", "duration_s", "sandbox_id", "preview_url"}
        assert {name: row[name] for name in shared} == {name: outcome[name] for name in shared}
        assert (row["id"], row["tenant"]) == (outcome["job_id"], LOCAL_TENANT)
        types = [fields["type"] for fields in events if fields["job"] == outcome["job_id"]]
        assert (types[0], types[-2:]) == ("JobQueued", ["JobReady", "PreviewExpired"])
        assert outcome["events"] == len(types) - 1


def test_a_demo_runs_as_well_in_e2b_and_ends_its_sandbox_there(headrace: CommandLine) -> None:
    with E2BServer() as server:
        done = headrace.run(
            "demo",
            GOAL,
            "--once",
            "--json",
            HEADRACE_SANDBOX="e2b",
            E2B_API_KEY=server.api_key,
            E2B_API_URL=server.url,
            E2B_SANDBOX_URL=server.url,
            HEADRACE_E2B_PREVIEW_URL=server.settings["preview_url"],
            NO_PROXY="127.0.0.1,localhost",
        )
        assert done.returncode == 0, done.stderr
        outcome = outcome_of(done)
        assert (outcome["status"], server.living) == ("ready", {})
        assert "preview answered 200" in done.stderr
        assert server.api_key not in done.stdout + done.stderr


# --- demos that do not become ready ---------------------------------------------------------------


def test_a_demo_of_a_broken_app_fails_with_an_id_to_look_for(headrace: CommandLine) -> None:
    done = headrace.run("demo", GOAL, "--once", "--json", HEADRACE_BROKEN_APP="tests")
    outcome = outcome_of(done)
    assert (done.returncode, outcome["status"]) == (1, "failed")
    assert (outcome["build_version"], outcome["preview_url"]) == (None, None)
    lines = (headrace.home / "headrace.log").read_text().splitlines()
    logged = [json.loads(line) for line in lines if outcome["debug_id"] in line]
    assert [(line["event"], line["job"]) for line in logged] == [
        ("build_failed", outcome["job_id"])
    ]
    assert outcome["debug_id"] in done.stderr
    assert sandboxes_in(headrace.home) == []
    assert processes_of(headrace.home) == {}


def test_a_goal_that_is_refused_ends_with_two_and_the_reason(headrace: CommandLine) -> None:
    done = headrace.run("demo", "   ", "--once", "--json")
    assert (done.returncode, outcome_of(done)["status"]) == (2, "refused")
    assert "it is empty: say in a sentence what to build" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(headrace.home) == {}


def test_an_interrupted_demo_says_so_and_leaves_no_sandbox(headrace: CommandLine) -> None:
    with headrace.started("demo", GOAL, "--json", HEADRACE_BROKEN_APP="hang") as demo:
        demo.line_with("checks    …")
        assert demo.end(signal.SIGINT) == 1
    said = "".join(demo.lines)
    places = [said.index(f"{phase:<9} …") for phase in ("scaffold", "code", "deps", "checks")]
    assert places == sorted(places)
    assert "\x1b" not in said
    (document,) = [json.loads(line) for line in demo.lines if line.startswith("{")]
    assert document.keys() == FIELDS
    assert document["status"] == "interrupted"
    assert sandboxes_in(headrace.home) == []
    assert processes_of(headrace.home) == {}


# --- demos that people look at --------------------------------------------------------------------


def test_a_demo_at_a_terminal_shows_a_checklist_and_serves_its_preview_until_it_is_interrupted(
    headrace: CommandLine,
) -> None:
    ours, theirs = pty.openpty()
    environment = headrace.environment({"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "50"})
    with subprocess.Popen(
        [ROOT / "headrace", "demo", GOAL, "--project", "served"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as demo:
        os.close(theirs)
        screen = b""
        while b"Ctrl-C" not in screen:
            screen += os.read(ours, 65536)
        (url,) = set(re.findall(r"http://127\.0\.0\.1:\d+", screen.decode()))
        assert httpx.get(url, trust_env=False).status_code == 200
        demo.send_signal(signal.SIGINT)
        with suppress(OSError):  # Linux says EIO when the last process has closed a terminal
            while part := os.read(ours, 65536):
                screen += part
        os.close(ours)
        assert demo.wait() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    last_picture = plain[plain.rindex("Headrace") :]
    for step in ("queued", "scaffold", "code", "deps", "checks"):
        assert re.search(rf"✓\s+{step}\s+\d+\.\d\d s", last_picture), last_picture
    assert "READY" in last_picture
    assert "build_v0_1" in last_picture
    assert "\x1b[?25l" in screen.decode()
    assert "\x1b[?25h" in screen.decode()
    assert sandboxes_in(headrace.home) == []
    assert processes_of(headrace.home) == {}
