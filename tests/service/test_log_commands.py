"""`./headrace log …` as a person runs it, on one home with three builds and a running job."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded import embedded_servers
from service.settings import RunnerKind
from tests.service.command_line import CommandLine, in_this_process_on

GOALS = 3
EVENTS_OF_A_BUILD = 11
SETTINGS = {"HEADRACE_RUNNER": RunnerKind.NONE.value, "HEADRACE_PARTITIONS": "2"}
PARTITION_OF_LOCAL = 0


@pytest.fixture(scope="module")
def built(built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A home on which some builds were made, for tests that change nothing."""
    home = tmp_path_factory.mktemp("built") / "home"
    shutil.copytree(built_home, home, symlinks=True)
    with in_this_process_on(home, **SETTINGS) as headrace:
        yield headrace


@pytest.fixture
def copy(built_home: Path, tmp_path: Path) -> Iterator[CommandLine]:
    """A home of the test's own with the same log."""
    shutil.copytree(built_home, tmp_path / "home", symlinks=True)
    with in_this_process_on(tmp_path / "home", **SETTINGS) as headrace:
        yield headrace


def lost_redis(headrace: CommandLine) -> None:
    shutil.rmtree(headrace.home / "valkey")


# --- info ----------------------------------------------------------------------------------------


def test_info_counts_the_events_of_each_partition_and_all_together(copy: CommandLine) -> None:
    found = copy.json("log", "info")
    local, other = found["partitions"]
    assert (local["partition"], local["state"], local["events"]) == (
        PARTITION_OF_LOCAL,
        "open",
        GOALS * EVENTS_OF_A_BUILD,
    )
    assert (local["archived"], local["lag"]) == (f"0:{local['epoch']}-33", 0)
    assert other["events"] == 0
    assert found["totals"]["events"] == GOALS * EVENTS_OF_A_BUILD
    assert found["totals"]["living"] == 0


def test_info_changes_nothing_and_fits_a_narrow_terminal(built: CommandLine) -> None:
    before = built.json("log", "info")
    said = built.run("log", "info", COLUMNS="80").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert [part["epoch"] for part in built.json("log", "info")["partitions"]] == [
        part["epoch"] for part in before["partitions"]
    ]


def test_info_of_a_home_without_a_log_says_so(tmp_path: Path) -> None:
    with in_this_process_on(tmp_path, **SETTINGS) as headrace:
        assert "no log yet" in headrace.run("log", "info").stdout
        assert headrace.json("log", "info")["partitions"] == []


def test_info_shows_a_log_that_redis_lost(copy: CommandLine) -> None:
    lost_redis(copy)
    assert [part["state"] for part in copy.json("log", "info")["partitions"]] == ["missing"] * 2


# --- tail ----------------------------------------------------------------------------------------


def tailed(headrace: CommandLine, *options: str) -> list[dict[str, str]]:
    done = headrace.run("log", "tail", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_tail_shows_the_newest_events_the_newest_last(built: CommandLine) -> None:
    events = tailed(built, "-n", "12")
    assert [event["type"].removeprefix("headrace.") for event in events[:2]] == [
        "JobReady",
        "JobQueued",
    ]
    assert [int(event["position"].partition("-")[2]) for event in events] == list(range(22, 34))


def test_tail_shows_only_what_is_asked_for(built: CommandLine) -> None:
    ready = tailed(built, "--type", "JobReady", "--type", "JobFailed", "-n", "2")
    assert [event["type"] for event in ready] == ["headrace.JobReady"] * 2
    job = ready[0]["job"]
    assert {event["job"] for event in tailed(built, "--job", job[-8:], "-n", "99")} == {job}
    assert len(tailed(built, "--job", job, "-n", "99")) == EVENTS_OF_A_BUILD
    assert len(tailed(built, "--after", ready[0]["position"])) == EVENTS_OF_A_BUILD
    assert len(tailed(built, "--tenant", "local", "--project", "p", "-n", "99")) == 33
    assert tailed(built, "--tenant", "nobody") == []


def test_tail_shows_an_event_in_a_line_that_fits(built: CommandLine) -> None:
    lines = built.run("log", "tail", "-n", "33").stdout.splitlines()
    assert len(lines) == 33
    first = lines[0].split()
    assert (first[3], first[5:7]) == ("local/p", ["1", "JobQueued"])
    assert lines[0].endswith("free: list 0")


@pytest.mark.parametrize(
    ("options", "says", "code"),
    [
        (["--job", "nobody"], "there is no event of job nobody", 2),
        (["--after", "nowhere"], "--after: not a position", 1),
        (["--after", "9:1-1"], "there is no partition 9: the log has 0 to 1", 1),
        (["--type", "JobPraised"], "no event type 'JobPraised'; there is JobQueued", 1),
        (["--tenant", "local", "--partition", "1"], "no event is in both", 1),
    ],
)
def test_tail_says_what_it_cannot_use(
    built: CommandLine, options: list[str], says: str, code: int
) -> None:
    done = built.run("log", "tail", *options)
    assert says in done.stderr
    assert (done.returncode, done.stdout) == (code, "")


# --- export and import ---------------------------------------------------------------------------


def test_an_export_is_imported_into_another_home_with_another_number_of_partitions(
    built: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    assert built.run("log", "export", str(file)).returncode == 0
    in_a_process = CommandLine.run(built, "log", "export")
    assert in_a_process.stdout == file.read_text()
    with in_this_process_on(tmp_path / "home", **SETTINGS | {"HEADRACE_PARTITIONS": "3"}) as other:
        done = other.run("log", "import", str(file))
        assert "Imported 33 events of 3 jobs" in done.stderr
        assert "no difference: 3 jobs, 33 events" in other.run("replay", "verify").stdout
        again = other.run("log", "import", str(file))
        assert "the log has events already" in again.stderr
        assert again.returncode == 1


def test_standard_input_is_imported(built: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    built.run("log", "export", str(file))
    with in_this_process_on(tmp_path / "home", **SETTINGS) as other:
        done = other.run("log", "import", "-", fed=file.read_text())
        assert "Imported 33 events" in done.stderr


def test_what_cannot_be_imported_is_refused_before_a_server_starts(
    built: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    built.run("log", "export", str(file))
    os.truncate(file, file.stat().st_size - 400)
    with in_this_process_on(tmp_path / "home", **SETTINGS) as other:
        assert "it was cut" in other.run("log", "import", str(file)).stderr
        missing = other.run("log", "import", str(tmp_path / "nothing"))
        assert missing.stderr.endswith("nothing: No such file or directory\n")
        assert missing.returncode == 1
        assert not (other.home / "valkey").exists()


def test_an_export_goes_to_a_file_and_to_nothing_else(built: CommandLine, tmp_path: Path) -> None:
    assert "is not a file" in built.run("log", "export", str(tmp_path)).stderr
    assert "there is no folder" in built.run("log", "export", str(tmp_path / "a" / "b")).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_is_in_use_is_neither_imported_to_nor_repaired(copy: CommandLine) -> None:
    file = copy.home / "log.jsonl"
    copy.run("log", "export", str(file))
    with embedded_servers(copy.home):
        for command in (["import", str(file)], ["repair", "--yes"]):
            done = copy.run("log", *command)
            assert "runs on" in done.stderr
            assert done.returncode == 1


# --- repair --------------------------------------------------------------------------------------


def test_a_log_that_redis_lost_is_repaired_and_goes_on(copy: CommandLine) -> None:
    lost_redis(copy)
    assert "log repair" in copy.run("log", "tail").stderr
    looked = copy.run("log", "repair", "--dry-run").stdout
    assert "Partition 0: Redis has no log of it." in looked
    assert "may have been lost after position 0:" in looked
    assert "Nothing was changed." in looked
    assert [part["state"] for part in copy.json("log", "info")["partitions"]] == ["missing"] * 2
    done = copy.run("log", "repair", "--yes")
    assert "Partition 0 is repaired." in done.stdout
    assert "command ids" in done.stdout
    assert "no difference: 3 jobs, 33 events" in copy.run("replay", "verify").stdout
    assert copy.run("log", "repair").stdout == "There is nothing to repair.\n"


def test_without_anybody_to_ask_nothing_is_repaired(copy: CommandLine) -> None:
    lost_redis(copy)
    done = copy.run("log", "repair", fed="")
    assert "say --yes" in done.stderr
    assert done.returncode == 1
    assert [part["state"] for part in copy.json("log", "info")["partitions"]] == ["missing"] * 2
