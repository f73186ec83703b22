"""`./headrace up`: what it offers to other processes, and how it ends, is killed and comes back."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from service.instance import Instance
from service.settings import ROOT, Settings
from tests.service.command_line import CommandLine, Started, in_this_process_on
from tests.service.homes import furnish
from tests.service.instances import PATIENCE_S, Message, Messages
from tests.service.processes import frozen, processes_of

GOAL = "a todo list for two people"

# Reaches every part by the variables that `env` prints.
REACHES_ALL = """
import asyncio, os, asyncpg, httpx, redis
async def jobs():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        return await connection.fetchval("SELECT count(*) FROM jobs")
    finally:
        await connection.close()
assert redis.Redis.from_url(os.environ["REDIS_URL"]).ping()
key = {"Authorization": "Bearer " + os.environ["HEADRACE_KEY"]}
page = httpx.get(os.environ["HEADRACE_URL"] + "/v1/jobs", headers=key, trust_env=False)
print(asyncio.run(jobs()), page.status_code, len(page.json()["jobs"]))
"""


@dataclass(frozen=True, slots=True)
class Up:
    """An `up` that serves."""

    headrace: CommandLine
    process: Started
    instance: Instance

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.instance.key}"}
        url = self.instance.url
        return httpx.Client(
            base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=False, verify=False
        )

    def submit(self, goal: str = GOAL) -> str:
        with self.client() as client:
            job: str = client.post("/v1/jobs", json={"goal": goal}).json()["job_id"]
            return job

    def follow(self, job: str) -> Generator[Message, None, None]:
        """A job's messages as they come, to its end."""
        messages = Messages()
        with self.client() as client, client.stream("GET", f"/v1/jobs/{job}/stream") as response:
            for chunk in response.iter_bytes():
                yield from messages.feed(chunk)

    def ended(self, job: str) -> Message:
        """The last message of a job's stream."""
        *_, last = self.follow(job)
        return last

    def listed(self, job: str) -> dict[str, Any]:
        """The job's row, once the projector has folded its end."""
        with self.client() as client:
            while True:
                for row in client.get("/v1/jobs").json()["jobs"]:
                    if row["job_id"] == job and row["finished_at"]:
                        return dict(row)

    def kill(self) -> None:
        self.process.process.kill()
        self.process.process.wait()


@contextmanager
def up_on(headrace: CommandLine, **variables: str) -> Iterator[Up]:
    with headrace.started("up", **variables) as process:
        process.line_with("Press Ctrl-C")
        instance = Instance.find(Settings(home=headrace.home))
        assert instance is not None
        yield Up(headrace, process, instance)


@pytest.fixture
def headrace(tmp_path: Path) -> Iterator[CommandLine]:
    anyio.run(furnish, tmp_path / "home")
    with in_this_process_on(tmp_path / "home", HEADRACE_LEASE_S="2") as commands:
        yield commands


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One that builds real apps, for tests that leave it running."""
    home = tmp_path_factory.mktemp("up") / "a home of mine"
    with in_this_process_on(home) as headrace, up_on(headrace) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Built:
    """A job that was submitted and watched to its end, and what was shown of it."""

    job: str
    watched: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def built(up: Up) -> Built:
    watched = up.headrace.run("submit", GOAL, "--project", "cli", "--watch")
    return Built(watched.stdout.partition("queued    job ")[2].split()[0], watched)


def verified(headrace: CommandLine) -> str:
    """What `replay verify` says, having found no difference."""
    done = headrace.run("replay", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("no difference")
    return done.stdout


# --- what others can do with it -------------------------------------------------------------------


def test_a_shell_that_evaluates_env_reaches_everything(up: Up) -> None:
    script = f'eval "$({shlex.quote(str(ROOT / "headrace"))} env)" && exec "$0" -c "$1"'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, REACHES_ALL],
        env=up.headrace.environment({}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "200"


def test_a_goal_is_submitted_and_watched_from_the_command_line(built: Built) -> None:
    assert built.watched.returncode == 0, built.watched.stderr
    assert "READY  build_v0_1" in built.watched.stdout


def test_jobs_are_listed_from_the_command_line(up: Up, built: Built) -> None:
    row = up.listed(built.job)
    assert up.headrace.json("jobs", "--project", "cli", "--status", "ready") == [row]
    assert (row["goal"], row["build_version"]) == (GOAL, "build_v0_1")


def test_the_log_of_a_build_is_read_from_the_command_line(up: Up, built: Built) -> None:
    lines = up.headrace.run("logs", built.job, "--phase", "checks").stdout.splitlines()
    assert lines[0] == "$ python3 -m unittest discover -s tests"
    assert "OK" in lines
    assert lines[lines.index("$ sh start.sh") + 1] == "Serving on port 8080"
    last = up.headrace.run("logs", built.job, "--phase", "checks", "--tail", "1").stdout
    assert last.splitlines() == lines[-1:]


def test_tail_follows_the_log_until_it_is_interrupted(up: Up, built: Built) -> None:
    with up.headrace.started("log", "tail", "-f", "-n", "1", "--type", "JobQueued") as tail:
        tail.line_with(GOAL)
        job = up.submit("one more")
        assert "JobQueued" in tail.line_with("one more")
        assert tail.end(signal.SIGINT) == 0
    up.headrace.run("cancel", job)


def test_a_tenant_whose_day_is_used_up_is_told_when_there_is_more(up: Up, built: Built) -> None:
    used = up.headrace.json("usage")["today"]["jobs"]["used"]
    assert used >= 1
    assert f"{used:.0f} of 1" in up.headrace.run("quota", "local", "--jobs", "1").stdout
    done = up.headrace.run("submit", "another")
    assert (done.returncode, done.stdout) == (2, "")
    assert "submit again from" in " ".join(done.stderr.split())
    assert f"{used:.0f} of 200" in up.headrace.run("quota", "local", "--jobs", "default").stdout


def test_ready_says_which_build_it_is_and_where_its_preview_answers(up: Up, built: Built) -> None:
    messages = list(up.follow(built.job))
    versions = [int(message.id.partition("-")[0]) for message in messages]
    assert versions == sorted(versions)
    events = [message for message in messages if message.event != "progress"]
    assert [event.data["jobversion"] for event in events] == list(range(1, versions[-1] + 1))
    ready = events[-1].data["data"]
    assert (events[-1].event, ready["build_version"]) == ("JobReady", "build_v0_1")
    assert httpx.get(ready["preview_url"], trust_env=False).status_code == 200


def test_what_the_api_refuses_the_command_line_says_in_its_words_with_exit_code_two(
    up: Up, built: Built
) -> None:
    done = up.headrace.run("cancel", built.job)
    assert done.returncode == 2
    assert done.stderr.startswith("headrace: ")
    assert "is ready" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_second_one_on_the_same_home_is_refused_with_a_sentence(up: Up) -> None:
    done = up.headrace.run("up")
    assert done.returncode == 1
    assert f"already (process {up.instance.pid})" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    with up.client() as client:
        assert client.get("/healthz").status_code == 200


def test_a_build_becomes_ready_while_postgres_stands_still_and_is_listed_afterwards(
    up: Up,
) -> None:
    cluster = up.headrace.home / "postgres" / "cluster"
    postmaster = int((cluster / "postmaster.pid").read_text().splitlines()[0])
    job = up.submit()
    with closing(up.follow(job)) as messages:
        assert next(messages).event == "JobQueued"
        with frozen(postmaster):
            *_, last = messages
    assert last.event == "JobReady"
    row = up.listed(job)
    assert (row["status"], row["preview_url"]) == ("ready", last.data["data"]["preview_url"])
    verified(up.headrace)


# --- how it ends ----------------------------------------------------------------------------------


def test_a_running_build_is_cancelled_from_the_command_line_and_sigterm_leaves_no_process(
    headrace: CommandLine,
) -> None:
    with up_on(headrace, HEADRACE_BROKEN_APP="hang", HEADRACE_DRAIN_S="0") as up:
        job = up.submit()
        with (
            headrace.started("watch", job) as watching,
            headrace.started("logs", job, "--follow") as following,
        ):
            watching.line_with("checks    …")
            following.line_with("$ exec python3 hang.py")
            assert "is cancelling" in headrace.run("cancel", job).stdout
            following.line_with(f"job {job} is cancelled")
            assert following.end() == 0
            watching.line_with("CANCELLED")
            assert watching.end() == 1
        another = up.submit()
        with closing(up.follow(another)) as messages:
            while next(messages).event != "SandboxCreated":
                pass  # it builds, and is followed, when the signal comes
            assert up.process.end(signal.SIGTERM) == 0
    assert "".join(up.process.lines).rstrip().endswith("previews go on until their own time-out.")
    assert processes_of(headrace.home) == {}


def test_after_a_restart_the_log_goes_on_where_it_was(headrace: CommandLine) -> None:
    positions, numbers = [], []
    for _ in range(2):
        with up_on(headrace, HEADRACE_RUNNER="none") as up:
            for _ in range(2):
                job = up.submit()
                numbers.append(up.ended(job).data["data"]["build_number"])
                positions.append(up.listed(job)["position"])
            assert up.process.end(signal.SIGTERM) == 0
    seqs = [int(position.partition("-")[2]) for position in positions]
    places = [position.partition("-")[0] for position in positions]
    # A server process that was started anew begins a new epoch of the same partition.
    assert places[:2] == [places[0]] * 2
    assert places[2:] == [places[2]] * 2
    assert places[0] < places[2]
    assert seqs == [seqs[0] * count for count in (1, 2, 3, 4)]
    assert numbers == [1, 2, 3, 4]
    assert verified(headrace) == f"no difference: 4 jobs, {seqs[-1]} events compared.\n"


def test_a_build_goes_on_when_everything_was_killed_in_the_middle_of_it(
    headrace: CommandLine,
) -> None:
    with up_on(headrace) as up:
        first = up.submit()
        assert up.ended(first).data["data"]["build_number"] == 1
        second = up.submit()
        for message in up.follow(second):
            if message.event == "JobStarted":
                up.kill()
                break
    with up_on(headrace) as up:
        ready = up.ended(second)
        assert (ready.event, ready.data["data"]["build_number"]) == ("JobReady", 2)
        row = up.listed(second)
        assert row["attempt"] == 2
        assert httpx.get(row["preview_url"], trust_env=False).status_code == 200


def test_a_file_left_by_a_killed_one_is_not_taken_for_a_running_one(
    headrace: CommandLine,
) -> None:
    left = {
        "url": "http://127.0.0.1:9",
        "key": "x",
        "redis_url": "x",
        "database_url": "x",
        "pid": 1,
    }
    (headrace.home / "instance.json").write_text(json.dumps(left))
    (headrace.home / "lock").write_text("1")
    done = headrace.run("env")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Headrace runs on" in " ".join(done.stderr.split())
