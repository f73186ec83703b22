"""`./headrace replay …` as a person runs it, on one home with three builds."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import text

from eventstore import connect_postgres
from service.embedded import embedded_servers
from service.settings import RunnerKind
from tests.service.command_line import CommandLine, in_this_process_on

EVENTS_OF_A_BUILD = 11
SETTINGS = {"HEADRACE_RUNNER": RunnerKind.NONE.value, "HEADRACE_PARTITIONS": "2"}


@pytest.fixture(scope="module")
def built(built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A home on which some builds were made, for tests that change nothing."""
    home = tmp_path_factory.mktemp("built") / "home"
    shutil.copytree(built_home, home, symlinks=True)
    with in_this_process_on(home, **SETTINGS) as headrace:
        yield headrace


@pytest.fixture(scope="module")
def job(built: CommandLine) -> str:
    """The first of the jobs."""
    tailed = built.run("log", "tail", "--json", "-n", "99").stdout.splitlines()
    first: str = json.loads(tailed[0])["subject"]
    return first


@pytest.fixture
def copy(built_home: Path, tmp_path: Path) -> Iterator[CommandLine]:
    """A home of the test's own with the same log."""
    shutil.copytree(built_home, tmp_path / "home", symlinks=True)
    with in_this_process_on(tmp_path / "home", **SETTINGS) as headrace:
        yield headrace


def in_database(headrace: CommandLine, *statements: str) -> None:
    """Run SQL by hand on a home where nothing runs."""

    async def execute(url: str) -> None:
        engine = connect_postgres(url)
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        await engine.dispose()

    with embedded_servers(headrace.home) as servers:
        anyio.run(execute, servers.database_url)


def park(headrace: CommandLine, job: str) -> None:
    """Let a job's fifth event be one that nobody can read, and rebuild, which parks the job."""
    in_database(
        headrace,
        f"UPDATE headrace.events SET data = '{{'::bytea WHERE job = '{job}' AND version = 5",
    )
    done = headrace.run("replay", "rebuild")
    assert "1 job stands aside: `./headrace replay parked list`" in done.stdout, done.stderr


def mend(headrace: CommandLine, job: str) -> None:
    """Put back what stood there."""
    payload = json.dumps({"phase": "code", "round": 1}).replace(":", r"\:")
    in_database(
        headrace,
        f"UPDATE headrace.events SET data = '{payload}'::bytea WHERE job = '{job}' AND version = 5",
    )


# --- verify and rebuild --------------------------------------------------------------------------


def test_verify_says_that_nothing_differs(built: CommandLine) -> None:
    # Each of its workers imports what the command was run as.
    done = CommandLine.run(built, "replay", "verify", "--workers", "2")
    assert (done.returncode, done.stdout) == (0, "no difference: 3 jobs, 33 events compared.\n")
    assert built.json("replay", "verify", "--sample", "2") == {
        "status": "same",
        "jobs": 2,
        "events": 2 * EVENTS_OF_A_BUILD,
        "parked": 0,
        "differences": [],
    }


def test_verify_names_row_column_and_event_and_rebuild_mends_them(
    copy: CommandLine, job: str
) -> None:
    in_database(copy, f"UPDATE jobs SET goal = 'another' WHERE id = '{job}'")
    done = copy.run("replay", "verify")
    assert done.returncode == 1
    assert f"jobs {job}: goal is 'another', not 'list 0' (by JobQueued at 0:" in done.stderr
    assert "1 difference: 3 jobs" in done.stdout
    assert "replay rebuild" in done.stdout
    as_json = copy.run("replay", "verify", "--json")
    assert as_json.returncode == 1
    (difference,) = json.loads(as_json.stdout)["differences"]
    assert (difference["table"], difference["key"], difference["column"]) == ("jobs", [job], "goal")
    rebuilt = copy.run("replay", "rebuild", "--workers", "1")
    assert rebuilt.returncode == 0
    assert "Rebuilt 3 jobs from 33 events." in rebuilt.stdout
    assert "Not as their events say were: jobs." in rebuilt.stdout
    assert "Readers waited" in rebuilt.stdout
    assert copy.run("replay", "verify").returncode == 0
    assert "Every table was what its events say." in copy.run("replay", "rebuild").stdout


def test_what_cannot_be_compared_has_an_exit_code_of_its_own(copy: CommandLine) -> None:
    shutil.rmtree(copy.home / "valkey")
    done = copy.run("replay", "verify")
    assert done.returncode == 2
    assert "missing in Redis" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_database_refuses_is_said_in_a_sentence(copy: CommandLine) -> None:
    huge = copy.run("replay", "verify", "--sample", "1" + "0" * 30)
    assert huge.returncode == 2
    assert "1000000" in huge.stderr
    in_database(copy, "ALTER TABLE daily_stats DROP COLUMN repairs")
    done = copy.run("replay", "verify")
    assert done.returncode == 2
    assert "the database refuses: column " in done.stderr
    assert "repairs" in done.stderr
    for said in (huge.stderr, done.stderr):
        assert "Traceback" not in said


def test_a_rebuild_that_is_refused_says_in_a_line_what_to_do(copy: CommandLine, job: str) -> None:
    in_database(copy, f"DELETE FROM headrace.events WHERE job = '{job}'")
    done = copy.run("replay", "rebuild")
    assert done.returncode == 1
    assert "attach the missing parts of headrace.events again first" in done.stderr
    assert "Traceback" not in done.stderr
    assert copy.run("replay", "verify").returncode == 2


def test_a_table_whose_fold_is_new_is_filled(copy: CommandLine) -> None:
    in_database(
        copy,
        "DELETE FROM headrace.projections WHERE name = 'daily_stats'",
        "DELETE FROM daily_stats",
    )
    assert copy.run("replay", "backfill").stdout == "Filled daily_stats.\n"
    assert copy.run("replay", "backfill").stdout == "Every table was filled already.\n"
    assert copy.run("replay", "verify").returncode == 0


# --- show ----------------------------------------------------------------------------------------


def test_show_tells_what_each_event_changed_old_beside_new(built: CommandLine, job: str) -> None:
    lines = built.run("replay", "show", job).stdout.splitlines()
    (entered,) = [line.split() for line in lines if line.startswith("5 ")]
    assert (entered[2:]) == ["PhaseStarted", "status", "scaffold", "code"]
    found = built.json("replay", "show", job)
    assert [event["version"] for event in found["history"]] == list(range(1, 12))
    assert found["history"][4]["changes"] == {"status": {"before": "scaffold", "after": "code"}}
    assert (found["state"]["status"], found["parked"]) == ("ready", None)


def test_show_at_a_version_or_a_time_gives_the_whole_state(built: CommandLine, job: str) -> None:
    then = built.json("replay", "show", job, "--at", "5")
    assert (then["status"], then["version"], then["build_number"]) == ("code", 5, None)
    at_time = built.json("replay", "show", job, "--at", then["updated_at"])
    assert at_time == then
    assert "build_v0_1" in built.run("replay", "show", job, "--at", "11").stdout


@pytest.mark.parametrize(
    ("options", "says", "code"),
    [
        (["--at", "12"], "--at: there is no version 12: the job has 1 to 11", 1),
        (["--at", "soon"], "--at: neither a version (3) nor a time", 1),
        (["--at", "2026-03-01T12:00:00"], "lacks its zone", 1),
        (["--at", "2020-01-01"], "after that time", 1),
        (["--tenant", "nobody"], "of tenant nobody", 2),
    ],
)
def test_show_says_what_it_cannot_use(
    built: CommandLine, job: str, options: list[str], says: str, code: int
) -> None:
    done = built.run("replay", "show", job, *options)
    assert says in done.stderr
    assert (done.returncode, done.stdout) == (code, "")


# --- parked --------------------------------------------------------------------------------------


def test_where_nothing_is_parked_there_is_nothing_to_do(built: CommandLine, job: str) -> None:
    assert built.run("replay", "parked", "list").stdout == "No job is parked.\n"
    assert built.json("replay", "parked", "list") == []
    for command in ("show", "retry", "discard"):
        done = built.run("replay", "parked", command, job)
        assert f"job {job} is not parked" in done.stderr
        assert done.returncode == 1


def test_a_parked_job_is_listed_shown_and_folded_again_once_it_is_mended(
    copy: CommandLine, job: str
) -> None:
    park(copy, job)
    (listed,) = copy.json("replay", "parked", "list")
    assert (listed["job_id"], listed["version"], listed["state"]) == (job, 5, "parked")
    assert f"{job}  local" in copy.run("replay", "parked", "list").stdout
    shown = copy.run("replay", "parked", "show", job).stdout
    assert "parked at version 5 (PhaseStarted): PhaseStarted cannot be decoded" in shown
    assert "not folded: it comes behind that event" in shown
    near: Any = copy.json("replay", "parked", "show", job)
    assert [event["version"] for event in near["history"]] == list(range(2, 9))
    assert (near["history"][3]["data"], near["state"]["version"]) == ("{", 4)
    again = copy.run("replay", "parked", "retry", job)
    assert "parked again, at version 5" in again.stdout
    assert again.returncode == 1
    mend(copy, job)
    assert "is folded to its end" in copy.run("replay", "parked", "retry", job).stdout
    assert copy.run("replay", "verify").stdout.startswith("no difference: 3 jobs, 33 events")


def test_a_discarded_job_stays_as_it_is(copy: CommandLine, job: str) -> None:
    park(copy, job)
    assert "stays as it is" in copy.run("replay", "parked", "discard", job).stdout
    (listed,) = copy.json("replay", "parked", "list")
    assert listed["state"] == "discarded"
    assert copy.run("replay", "verify").returncode == 0
