"""What the template runner understands of a change request, and what it makes of an app."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.app_manifest import app_commands
from generator.errors import RunnerFailed
from generator.runner import RunnerTask
from generator.runners.app_kinds import app_files, app_kinds
from generator.runners.changes import AddField, Change, Recolour, Rename, Scheme, understood
from generator.runners.colours import CONTRAST, DARK_GROUNDS, LIGHT_GROUNDS, NAMED, accent, contrast
from generator.runners.evolution import MAX_FIELDS
from generator.runners.template import TemplateRunner
from generator.workspace import Workspace
from tests.generator.doubles import Silent
from tests.generator.test_template_runner import (
    FAILURE,
    KINDS,
    NASTY,
    PLAIN_GOALS,
    get,
    ignore,
    run_command,
    started,
    written,
)

pytestmark = pytest.mark.anyio

GREEN, BLUE = Recolour(accent("green")), Recolour(accent("blue"))
DUE, PHONE = AddField("due_date", "Due date", "date"), AddField("phone", "Phone", "tel")
PRIORITY = AddField("priority", "Priority", "choice", ("Low", "Medium", "High"))
EVERYTHING = (
    "call it Lunch Club, make it green, use dark mode and add a due date, a phone number, a price, "
    "a priority, a contact email, a link and an “Allergies & wishes” field"
)


def base(goal: str) -> dict[str, bytes]:
    return {path: text.encode() for path, text in app_files(goal).items()}


async def changed(files: Mapping[str, bytes], request: str, root: Path) -> Mapping[str, bytes]:
    """What the runner makes of a base build's files."""
    workspace = Workspace(root, on_written=ignore)
    await workspace.clear()
    await workspace.load(files)
    task = RunnerTask(job="job-1", goal=request, base_files=files)
    await TemplateRunner().run(task, workspace, Silent())
    return workspace.files


def data_of(files: Mapping[str, bytes]) -> dict[str, object]:
    data: dict[str, object] = json.loads(files["app.json"])
    return data


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "changes"),
    [
        ("call it Lunch Club", [Rename("Lunch Club")]),
        ("Please rename the app to “Salt and Pepper”!", [Rename("Salt and Pepper")]),
        ("call it Salt and Pepper and make it blue", [Rename("Salt and Pepper"), BLUE]),
        ('call it "Blue, dark and loud"', [Rename("Blue, dark and loud")]),
        ("call it Green Thumb", [Rename("Green Thumb")]),
        ("The name should be Où manger?", [Rename("Où manger?")]),
        ("make it blue", [BLUE]),
        ("make it dark green", [GREEN]),
        ("Could you change the accent colour to blue?", [BLUE]),
        ("use #2563EB", [BLUE]),
        ("use #26e", [Recolour(accent("#2266ee"))]),
        ("dark mode", [Scheme("dark")]),
        ("add a dark mode please", [Scheme("dark")]),
        ("make the background black", [Scheme("dark")]),
        ("switch to light mode", [Scheme("light")]),
        ("follow the system", [Scheme("light dark")]),
        ("add a due date field", [DUE]),
        ("add a due date to each task", [DUE]),
        ("add a phone, a due date and a priority", [PHONE, DUE, PRIORITY]),
        ("ask for their phone", [PHONE]),
        ("add a “7 wonders” field", [AddField("field_7_wonders", "7 wonders", "text")]),
        ("add a 名前 field", [AddField("field", "名前", "text")]),
        ("make it green, dark mode and add a due date", [GREEN, Scheme("dark"), DUE]),
    ],
)
def test_a_request_is_understood(request_: str, changes: list[Change]) -> None:
    assert understood(request_) == changes


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("make it faster", "make it faster"),
        ("add a login page", "add a login page"),
        ("make it look like a pirate ship", "make it look like a pirate ship"),
        ("make it blue and add payments with Stripe", "add payments with Stripe"),
        ("make the button do what “blue” does", "make the button do what “blue” does"),
        ("…", "…"),
        ("and", "and"),
    ],
)
def test_what_is_not_understood_is_told_with_what_would_be(request_: str, told: str) -> None:
    with pytest.raises(RunnerFailed) as error:
        understood(request_)
    assert f"does not understand “{told}”" in str(error.value)
    for known in ("call it Lunch Club", "make it green", "dark mode", "add a due date", "LLM"):
        assert known in str(error.value)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_any_request_is_understood_or_refused_in_a_sentence(request_: str) -> None:
    try:
        told = str(understood(request_))
    except RunnerFailed as error:
        told = str(error)
    assert 2 < len(told) < 5_000


@given(st.from_regex(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})", fullmatch=True))
def test_every_colour_becomes_an_accent_that_can_be_read(colour: str) -> None:
    found = accent(colour)
    assert re.fullmatch("#[0-9a-f]{6}", found.light) is not None
    assert all(contrast(found.light, ground) >= CONTRAST for ground in LIGHT_GROUNDS)
    assert all(contrast(found.dark, ground) >= CONTRAST for ground in DARK_GROUNDS)


def test_every_named_colour_is_one() -> None:
    assert {accent(name).light for name in NAMED} >= {"#171717"}


# --- changing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_changed_app_passes_its_own_tests_and_those_of_its_fields(
    kind: str, tmp_path: Path
) -> None:
    before = await written(PLAIN_GOALS[kind], tmp_path / "before")
    files = await changed(before, EVERYTHING, tmp_path)
    data = data_of(files)
    assert (data["title"], data["color_scheme"]) == ("Lunch Club", "dark")
    assert data["accent_light"] == accent("green").light
    added = files.keys() - before.keys()
    assert added == {f"tests/test_{field['name']}.py" for field in fields_of(files)}
    assert len(added) == 7
    commands = app_commands(files)
    assert commands.install is not None
    for command in (commands.install, commands.test):
        result = await to_thread.run_sync(run_command, command, tmp_path)
        assert result.returncode == 0, result.stdout
    tests = [int(n) for n in re.findall(r"Ran ([0-9]+) tests", result.stdout)]
    assert tests > [4 * len(added)]


def fields_of(files: Mapping[str, bytes]) -> list[dict[str, str]]:
    fields: list[dict[str, str]] = json.loads(files["app.json"])["fields"]
    return fields


async def test_a_field_that_loses_its_code_fails_the_tests_that_came_with_it(
    tmp_path: Path,
) -> None:
    files = await changed(base("a todo list"), "add a due date", tmp_path)
    tasks = tmp_path / "tasks.py"
    keeping = "self._fields.keep(db, task_id, values)"
    assert keeping in tasks.read_text()
    tasks.write_text(tasks.read_text().replace(keeping, "pass"))
    result = await to_thread.run_sync(run_command, app_commands(files).test, tmp_path)
    assert "test_it_is_kept_and_survives_a_restart" in result.stdout
    assert result.returncode == 1


async def test_the_same_change_of_the_same_base_gives_the_same_bytes(tmp_path: Path) -> None:
    before = base("a poll about lunch")
    first = await changed(before, EVERYTHING, tmp_path / "1")
    assert await changed(before, EVERYTHING, tmp_path / "2") == first


async def test_what_somebody_changed_by_hand_stays(tmp_path: Path) -> None:
    before = {**base("a todo list"), "static/todo.css": b"/* mine */", "logo.png": b"\x89\xff\0"}
    files = await changed(before, "make it blue", tmp_path)
    assert {path for path in files if files[path] != before.get(path)} == {"app.json"}
    assert files["logo.png"] == before["logo.png"]


async def test_changes_build_upon_each_other(tmp_path: Path) -> None:
    files: Mapping[str, bytes] = base("a todo list")
    for number, request in enumerate(("add a due date", "make it blue", "add a phone")):
        files = await changed(files, request, tmp_path / str(number))
    assert [field["name"] for field in fields_of(files)] == ["due_date", "phone"]
    assert data_of(files)["accent_light"] == accent("blue").light


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("add a due date", "there is a field “Due date” already"),
        ("call it Chores and make it blue", "nothing would change"),
        ("compose an opera", "does not understand"),
    ],
)
async def test_a_change_that_cannot_be_made_changes_nothing_and_says_why(
    request_: str, told: str, tmp_path: Path
) -> None:
    before = await changed(
        base("a todo list"), "add a due date, call it Chores, make it blue", tmp_path
    )
    with pytest.raises(RunnerFailed, match=told):
        await changed(before, request_, tmp_path / "again")


async def test_an_app_takes_only_so_many_fields(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e", "f", "g", "h", "i")
    request = "add " + ", ".join(f"a “{name} 1” field" for name in names)
    assert len(names) > MAX_FIELDS
    with pytest.raises(RunnerFailed, match="takes no more"):
        await changed(base("a todo list"), request, tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"main.go": b"package main"},
        {"app.json": b"not JSON", "fields.py": b""},
        {"app.json": b'{"kind": "spaceship", "fields": []}', "fields.py": b""},
        {"app.json": b"[]"},
        {path: content for path, content in base("a todo list").items() if path != "fields.py"},
    ],
)
async def test_an_app_of_somebody_elses_making_is_not_touched(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(RunnerFailed, match="only change apps that it wrote itself"):
        await changed(files, "make it blue", tmp_path)


async def test_a_repair_leaves_the_changed_app_as_it_is(tmp_path: Path) -> None:
    files = await changed(base("a todo list"), EVERYTHING, tmp_path)
    workspace = Workspace(tmp_path, on_written=ignore)
    await workspace.load(files)
    task = RunnerTask("job-1", EVERYTHING, round=2, base_files=files, failure=FAILURE)
    await TemplateRunner().run(task, workspace, Silent())
    assert workspace.files == files


async def test_nasty_names_and_labels_are_shown_as_they_are_and_never_as_markup(
    tmp_path: Path,
) -> None:
    label = "<b>x</b> ' {{idea}}"
    request = f"call it “<script>alert(1)</script>” and add a “{label}” field"
    await changed(base(f"todo {NASTY}"), request, tmp_path)
    with started(tmp_path) as port:
        page = get(port, "/")[1].decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;</h1>" in page
    shown = re.search('data-fields="([^"]*)"', page)
    assert shown is not None
    assert json.loads(html.unescape(shown[1]))[0]["label"] == label


async def test_every_kind_has_a_test_for_fields_that_stands_in_no_app() -> None:
    for kind in app_kinds().values():
        assert "class FieldTest" in kind.field_test
        assert "field_test.py" not in kind.files
