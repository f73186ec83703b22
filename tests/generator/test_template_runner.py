import ast
import http.client
import json
import os
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest
from anyio import to_thread
from hypothesis import example, given, settings
from hypothesis import strategies as st

from generator.app_manifest import app_commands
from generator.runner import Failure, Runner, RunnerTask
from generator.runners import goal as goals
from generator.runners.app_kinds import ACCENTS, app_files, app_kinds, kind_for
from generator.runners.colours import contrast
from generator.runners.template import Broken, TemplateRunner
from generator.workspace import Workspace
from schemas.commands import Usage
from tests.generator.doubles import Silent

pytestmark = pytest.mark.anyio

KINDS = ("landing", "notes", "poll", "todo")
PLAIN_GOALS = {
    "todo": "a todo list for two people",
    "notes": "a journal for my travels",
    "poll": "Where shall we have lunch? Pizza, sushi or salad. Make it a poll",
    "landing": "A landing page for a bakery called Crumb with bread, coffee and a garden",
}
FAILURE = Failure("it broke", "python3 -m unittest", 1, "FAILED")
NASTY = (
    '<script>alert(1)</script> \'; DROP TABLE tasks; -- ../../etc/passwd \\ "quoted" {{idea}} {x}'
    " $HOME `id` %s \x00\x1b[31m \u202eoverride\u2028 👩‍👩‍👧 שלום מרחבא </textarea>?"
)


async def ignore(sizes: Mapping[str, int]) -> None:
    pass


async def written(goal: str, root: Path, *, broken: str | None = None) -> Mapping[str, bytes]:
    workspace = Workspace(root, on_written=ignore)
    usage = await TemplateRunner(broken).run(
        RunnerTask(job="job-1", goal=goal), workspace, Silent()
    )
    assert usage == Usage()
    return workspace.files


def run_command(command: str, root: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=root,
        env={**os.environ, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=20,
        check=False,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(root: Path, **env: str) -> Iterator[int]:
    """The app of `root`, once it has said on which port it listens."""
    port = free_port()
    server = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            app_commands({"headrace.toml": (root / "headrace.toml").read_bytes()}).start,
        ],
        cwd=root,
        env={**os.environ, "PORT": str(port), **env},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert str(port).encode() in line, line + server.stderr.read()
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def get(port: int, path: str) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    client.request("GET", path)
    response = client.getresponse()
    answer = response.status, response.read()
    client.close()
    return answer


def data_of(goal: str) -> dict[str, object]:
    data: dict[str, object] = json.loads(app_files(goal)["app.json"])
    return data


async def test_the_same_goal_gives_the_same_bytes(tmp_path: Path) -> None:
    first = await written(NASTY, tmp_path / "first")
    second = await written(NASTY, tmp_path / "second")
    assert first == second
    assert list(first) == list(second)


def test_what_the_hash_chooses_is_the_same_in_every_process_and_on_every_machine() -> None:
    data = data_of("zebra crossing")
    chosen = [data[name] for name in ("kind", "accent_light", "tagline")]
    assert chosen == [
        "landing",
        "#9d174d",
        "Good things take a little time. We will write to you the day it opens.",
    ]


async def test_of_a_failure_it_learns_nothing_and_leaves_the_files_as_they_are(
    tmp_path: Path,
) -> None:
    before = await written("a todo list", tmp_path)
    workspace = Workspace(tmp_path, on_written=unheard_of)
    await workspace.load(before)
    task = RunnerTask(job="job-1", goal="a todo list", round=2, base_files=before, failure=FAILURE)
    await TemplateRunner().run(task, workspace, Silent())
    assert workspace.files == before


async def unheard_of(sizes: Mapping[str, int]) -> None:
    raise AssertionError(f"{sizes} were written again")


@pytest.mark.parametrize("broken", ["tests-once", "start-once"])
async def test_what_is_broken_once_is_mended_when_the_runner_is_told(
    broken: str, tmp_path: Path
) -> None:
    whole = await written("a todo list", tmp_path / "whole")
    before = await written("a todo list", tmp_path / "broken", broken=broken)
    assert before != whole
    workspace = Workspace(tmp_path / "broken", on_written=ignore)
    await workspace.load(before)
    task = RunnerTask(job="job-1", goal="a todo list", base_files=before, failure=FAILURE)
    await TemplateRunner(broken).run(task, workspace, Silent())
    assert workspace.files == whole


async def test_an_app_is_written_anew_over_what_a_lost_worker_had_drafted(tmp_path: Path) -> None:
    whole = await written("a todo list", tmp_path / "whole")
    workspace = Workspace(tmp_path / "again", on_written=ignore)
    await workspace.load({"app.py": b"half", "stray.py": b"boom"})
    task = RunnerTask(job="job-1", goal="a todo list", drafted=frozenset(["app.py", "stray.py"]))
    await TemplateRunner().run(task, workspace, Silent())
    assert workspace.files == whole


def test_the_runner_is_a_runner_named_template() -> None:
    runner: Runner = TemplateRunner()
    assert runner.name == "template"


def test_there_are_four_kinds_and_each_is_reached_by_hash_too() -> None:
    assert tuple(app_kinds()) == KINDS
    assert {kind_for(f"zebra {number}").name for number in range(60)} == set(KINDS)


@pytest.mark.parametrize(
    ("goal", "kind"),
    [
        *((goal, kind) for kind, goal in PLAIN_GOALS.items()),
        ("Shopping for the weekend", "todo"),
        ("TASKS!", "todo"),
        ("a diary", "notes"),
        ("let people vote on the logo", "poll"),
        ("customer survey", "poll"),
        ("join the waiting list for our boat tours", "landing"),
        ("a newsletter about notes and polls", "landing"),
        ("a signup page", "landing"),
        ("a poll about our shopping list", "poll"),
        ("a list of notes", "notes"),
    ],
)
def test_a_clear_word_in_the_goal_decides_the_kind(goal: str, kind: str) -> None:
    assert kind_for(goal).name == kind


@pytest.mark.parametrize(
    ("goal", "title"),
    [
        ("a todo list for two people", "Todo list for two people"),
        ("Please build me a simple todo list.", "Todo list"),
        ("I want an app for tracking chores!", "Tracking chores"),
        ('"our chores"', "Our chores"),
        ("iPad notes", "iPad notes"),
        ("todo: \U0001f389", "Todo: \U0001f389"),
        ("قائمة todo", "قائمة todo"),
        ("todo \u202eevil\x00", "Todo evil"),
    ],
)
def test_a_title_is_what_a_person_would_write_on_the_door(goal: str, title: str) -> None:
    assert data_of(goal)["title"] == title


def test_a_long_title_ends_between_two_words() -> None:
    title = data_of("a todo list with absolutely everything for the house and for the garden")[
        "title"
    ]
    assert title == "Todo list with absolutely everything for the house…"


def test_a_title_without_any_space_is_never_cut_inside_a_letter_or_an_emoji() -> None:
    family = "👩‍👩‍👧‍👦"
    assert goals.title(family * 30, "") == family * 8 + "…"
    assert goals.title("e\u0331" * 60, "") == "E\u0331" + "e\u0331" * 28 + "…"
    flags = goals.title("🇫🇷" * 60, "").removesuffix("…")
    assert flags == "🇫🇷" * (len(flags) // 2)


def test_a_goal_without_a_single_letter_still_gets_a_title() -> None:
    for goal in ("\x00", "...", "'", "\u202e", "\ud800"):
        title = data_of(goal)["title"]
        assert isinstance(title, str)
        assert len(title) > 3


@pytest.mark.parametrize(
    ("goal", "people"),
    [
        ("a todo list", []),
        ("a todo list for two people", ["Person 1", "Person 2"]),
        ("chores for 3 flatmates", ["Person 1", "Person 2", "Person 3"]),
        ("a todo list for my wife and me", ["Person 1", "Person 2"]),
        ("todo for Anna, Ben & Zoë", ["Anna", "Ben", "Zoë"]),
        ("tasks for Monday and Tuesday", []),
    ],
)
def test_a_list_knows_the_people_that_the_goal_speaks_of(goal: str, people: list[str]) -> None:
    assert data_of(goal)["people"] == people


@pytest.mark.parametrize(
    ("goal", "question", "options"),
    [
        (PLAIN_GOALS["poll"], "Where shall we have lunch?", ["Pizza", "Sushi", "Salad"]),
        ("a poll: tea or coffee?", "Tea or coffee?", ["Tea", "Coffee"]),
        ("a poll about lunch: pizza, Pizza or salad", None, ["Pizza", "Salad"]),
        ("vote between Rome, Oslo and Lima", None, ["Rome", "Oslo", "Lima"]),
        ("a poll for the book club\n- Dune\n- Emma", None, ["Dune", "Emma"]),
        ("Should we move? A vote", "Should we move?", ["Yes", "No", "Not sure"]),
        ("a poll", None, None),
    ],
)
def test_a_poll_asks_what_the_goal_asks(
    goal: str, question: str | None, options: list[str] | None
) -> None:
    data = data_of(goal)
    assert question in (None, data["question"])
    assert options in (None, data["options"])
    assert isinstance(data["options"], list)
    assert len(data["options"]) >= 2


def test_a_landing_page_takes_its_name_and_its_cards_from_the_goal() -> None:
    data = data_of(PLAIN_GOALS["landing"])
    cards = [data[f"benefit_{number}_title"] for number in (1, 2, 3)]
    assert (data["title"], cards) == ("Crumb", ["Bread", "Coffee", "Garden"])
    assert data_of("a waitlist for our boat tours")["title"] == "Boat tours"


def test_every_accent_can_be_read_on_its_ground() -> None:
    for accent in ACCENTS:
        assert contrast(accent.light, "#ffffff") >= 4.5
        assert contrast(accent.light, "#f4f2ee") >= 4.5
        assert contrast(accent.dark, "#14130f") >= 4.5
        assert contrast(accent.dark, "#26262a") >= 4.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nasty", [False, True])
async def test_an_app_installs_and_passes_its_own_tests(
    kind: str, nasty: bool, tmp_path: Path
) -> None:
    word = {"landing": "landing page", "notes": "notes", "poll": "poll", "todo": "todo"}[kind]
    goal = f"{word} {NASTY}" if nasty else PLAIN_GOALS[kind]
    commands = app_commands(await written(goal, tmp_path))
    assert data_of(goal)["kind"] == kind
    for command in (commands.install, commands.test):
        assert command is not None
        result = await to_thread.run_sync(run_command, command, tmp_path)
        assert result.returncode == 0, result.stdout
    assert (tmp_path / "data" / "app.db").is_file()


async def test_a_started_app_says_which_build_it_is_and_shows_its_page(tmp_path: Path) -> None:
    await written(PLAIN_GOALS["todo"], tmp_path)
    with started(tmp_path, HEADRACE_JOB="job-1", HEADRACE_MARKER="m-1") as port:
        status, body = get(port, "/healthz")
        page = get(port, "/")[1].decode()
    assert (status, json.loads(body)) == (200, {"status": "ok", "job": "job-1", "build": "m-1"})
    assert '<h1 dir="auto">Todo list for two people</h1>' in page


async def test_settings_in_a_dotenv_file_reach_the_app(tmp_path: Path) -> None:
    await written(PLAIN_GOALS["todo"], tmp_path)
    (tmp_path / ".env").write_text("DATABASE_PATH='other place/here.db'\n")
    with started(tmp_path) as port:
        assert get(port, "/healthz")[0] == 200
    assert (tmp_path / "other place" / "here.db").is_file()


async def test_an_app_broken_at_install_says_so_and_exits_1(tmp_path: Path) -> None:
    commands = app_commands(await written("todo", tmp_path, broken="install"))
    assert commands.install is not None
    result = run_command(commands.install, tmp_path)
    assert (result.returncode, "broken on purpose" in result.stdout) == (1, True)


async def test_an_app_with_broken_tests_fails_exactly_one_of_them(tmp_path: Path) -> None:
    commands = app_commands(await written("todo", tmp_path, broken="tests"))
    result = run_command(commands.test, tmp_path)
    assert result.returncode == 1
    assert "FAILED (failures=1)" in result.stdout


async def test_an_app_broken_at_start_ends_at_once_with_a_line(tmp_path: Path) -> None:
    commands = app_commands(await written("todo", tmp_path, broken="start"))
    result = run_command(commands.start, tmp_path)
    assert (result.returncode, "broken on purpose" in result.stdout) == (1, True)


async def test_an_app_with_a_broken_marker_is_well_but_another_build(tmp_path: Path) -> None:
    await written("todo", tmp_path, broken="marker")
    with started(tmp_path, HEADRACE_JOB="job-1", HEADRACE_MARKER="m-1") as port:
        answer = json.loads(get(port, "/healthz")[1])
    assert answer == {"status": "ok", "job": "job-1", "build": "broken-on-purpose"}


async def test_a_hanging_app_takes_connections_and_never_answers(tmp_path: Path) -> None:
    await written("todo", tmp_path, broken="hang")
    with started(tmp_path) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)


async def test_a_broken_app_differs_only_where_it_is_broken(tmp_path: Path) -> None:
    whole = await written("todo", tmp_path / "whole")
    for broken in Broken:
        files = await written("todo", tmp_path / broken, broken=broken)
        changed = {path for path in files if files[path] != whole.get(path)}
        assert changed
        assert changed <= {"headrace.toml", "tests/test_broken.py", "hang.py"}
        app_commands(files)


def test_a_way_of_breaking_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="gently"):
        TemplateRunner("gently")


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_a_kind_can_be_read_by_what_reads_it(kind: str) -> None:
    for path, text in app_kinds()[kind].files.items():
        if path.endswith(".py"):
            ast.parse(text)
        elif path.endswith(".toml"):
            tomllib.loads(text)
        elif path.endswith(".svg"):
            ElementTree.fromstring(text)  # noqa: S314 our own file


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=400))
@example("\ud800 lone")
@example("{{title}}{{secret}}")
@example("poll: " + ":" * 3900)
@example("for " * 1000)
@example("a, " * 1300)
@example("please " * 500)
def test_any_goal_gives_whole_files_and_bounded_texts(goal: str) -> None:
    files = app_files(goal)
    same = app_kinds()[kind_for(goal).name].files
    assert {path: files[path] for path in same} == same, "only app.json may depend on the goal"
    files["app.json"].encode()
    data = json.loads(files["app.json"])
    assert 1 <= len(data["title"]) <= 60
    assert len(data["idea"]) <= 160
    assert len(data.get("people", [])) <= 8
    for option in data.get("options", ["ok"]):
        assert 1 <= len(option) <= 60
    options = data.get("options", [])
    assert len(set(options)) == len(options) <= 8


def test_a_goal_of_full_length_takes_no_time_to_read() -> None:
    begin = time.process_time()
    for piece in ("a poll: a, ", "with b ", "? ", "me and ", "for A, ", "(", "\n- x", "é\u0301"):
        app_files((piece * 4000)[:4000])
    assert time.process_time() - begin < 4
