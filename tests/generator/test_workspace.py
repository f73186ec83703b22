"""A workspace holds its files and nothing else, whatever a runner calls them."""

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator import workspace as limits
from generator.errors import BadPath, RunnerFailed
from generator.workspace import Workspace, checked_path

pytestmark = pytest.mark.anyio


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    """Cleared; beside it lies a file that is none of its business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("untouched")
    made = Workspace(tmp_path / "inside", on_written=heard_of)
    await made.clear()
    yield made
    assert (tmp_path / "outside" / "secret").read_text() == "untouched"
    assert sorted(os.listdir(tmp_path)) == ["inside", "outside"]


async def heard_of(sizes: Mapping[str, int]) -> None:
    pass


def on_disk(workspace: Workspace) -> dict[str, bytes]:
    return {
        path.relative_to(workspace.root).as_posix(): path.read_bytes()
        for path in workspace.root.rglob("*")
        if path.is_file()
    }


REFUSED = {
    "": "1 to 512 bytes",
    "x" * 513: "1 to 512 bytes",
    "/etc/passwd": "relative",
    "//etc/passwd": "relative",
    "../outside/secret": "relative",
    "a/../../outside/secret": "relative",
    "a/..": "relative",
    "./a": "relative",
    "a//b": "relative",
    "a/": "relative",
    ".": "relative",
    "..\\outside\\secret": "use / between folders",
    "C:\\autoexec.bat": "use / between folders",
    "a\0b": "control character",
    "a\nb": "control character",
    "a\x7f": "control character",
    "a\ud800": "control character",
    "n" * 256: "at most 255 bytes",
    "ü" * 128: "at most 255 bytes",
}


@pytest.mark.parametrize("path", REFUSED)
async def test_a_path_that_could_land_elsewhere_is_refused_and_named(
    path: str, workspace: Workspace
) -> None:
    with pytest.raises(BadPath, match=REFUSED[path]) as told:
        await workspace.write(path, "x")
    assert repr(path[:80])[:40] in str(told.value)
    with pytest.raises(BadPath):
        await workspace.load({path: b"x"})
    with pytest.raises(BadPath):
        await workspace.delete(path)
    assert on_disk(workspace) == {} == workspace.files


@pytest.mark.parametrize(
    "path", ["a", ".env", "a/.b", "...", "a b", "-rf", "~", "$HOME", "ü/é", "a:b", "con"]
)
async def test_a_name_that_is_only_unusual_is_a_file(path: str, workspace: Workspace) -> None:
    await workspace.write(path, "x")
    assert on_disk(workspace) == {path: b"x"}


@settings(max_examples=80)
@given(st.text(st.sampled_from("./\\a\0~"), max_size=12))
def test_whatever_is_not_refused_lies_inside(path: str) -> None:
    try:
        checked_path(path)
    except BadPath:
        return
    assert os.path.normpath(f"/inside/{path}") == f"/inside/{path}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("README.md", "readme.md"),
        ("straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("CAF\u00c9/menu", "cafe\u0301/menu"),
        ("\u212bngstr\u00f6m", "\u00e5ngstro\u0308m"),
    ],
)
async def test_two_names_that_some_disk_takes_for_one_clash(
    first: str, second: str, workspace: Workspace
) -> None:
    await workspace.write(first, "1")
    with pytest.raises(BadPath, match="letter case or by the way its letters are composed") as told:
        await workspace.write(second, "2")
    assert repr(first) in str(told.value)
    assert list(on_disk(workspace).values()) == [b"1"]
    await workspace.delete(first)
    await workspace.write(second, "2")
    assert list(on_disk(workspace).values()) == [b"2"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a"), ("a", "a/b/c"), ("A", "a/b"), ("a/b", "A")],
)
async def test_nothing_is_file_and_folder(first: str, second: str, workspace: Workspace) -> None:
    await workspace.write(first, "1")
    with pytest.raises(BadPath, match=r"cannot be a (file|folder) too"):
        await workspace.write(second, "2")
    await workspace.delete(first)
    await workspace.write("other", "x")
    assert workspace.files == {"other": b"x"}


async def test_a_folder_whose_files_have_gone_may_become_a_file(workspace: Workspace) -> None:
    await workspace.write("a.b/c", "1")
    await workspace.write("a.b/c", "2")
    await workspace.delete("a.b/c")
    await workspace.write("a", "3")
    assert workspace.files == {"a": b"3"}


# --- links that somebody else has laid -----------------------------------------------------------


async def test_a_link_in_place_of_a_folder_is_not_followed(workspace: Workspace) -> None:
    (workspace.root / "lib").symlink_to(workspace.root.parent / "outside")
    for act in (workspace.write("lib/secret", "x"), workspace.load({"lib/secret": b"x"})):
        with pytest.raises(BadPath, match="'lib/secret' refused: a link or another file"):
            await act
    assert workspace.files == {}


async def test_nothing_is_deleted_through_a_link(workspace: Workspace) -> None:
    await workspace.write("lib/secret", "ours")
    (workspace.root / "lib" / "secret").unlink()
    (workspace.root / "lib").rmdir()
    (workspace.root / "lib").symlink_to(workspace.root.parent / "outside")
    with pytest.raises(BadPath, match="a link or another file"):
        await workspace.delete("lib/secret")


@pytest.mark.parametrize("is_hard", [False, True])
async def test_a_link_in_place_of_a_file_is_replaced(is_hard: bool, workspace: Workspace) -> None:
    target, link = workspace.root.parent / "outside" / "secret", workspace.root / "app.py"
    if is_hard:
        os.link(target, link)
    else:
        link.symlink_to(target)
    await workspace.write("app.py", "x")
    assert on_disk(workspace) == {"app.py": b"x"}
    assert not link.is_symlink()


async def test_a_link_in_place_of_the_workspace_is_not_cleared_through(
    workspace: Workspace,
) -> None:
    workspace.root.rmdir()
    workspace.root.symlink_to(workspace.root.parent / "outside")
    with pytest.raises(BadPath, match="a link or another file"):
        await workspace.write("secret", "x")
    await workspace.clear()
    await workspace.write("secret", "x")
    assert on_disk(workspace) == {"secret": b"x"}


async def test_a_folder_in_place_of_a_file_is_told(workspace: Workspace) -> None:
    (workspace.root / "app.py").mkdir()
    with pytest.raises(BadPath, match=r"'app\.py' refused: a link or another file"):
        await workspace.write("app.py", "x")


# --- limits --------------------------------------------------------------------------------------


async def test_ten_thousand_files_fit_and_not_one_more(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.MAX_FILES == 10_000
    monkeypatch.setattr(limits, "MAX_FILES", 30)
    for number in range(30):
        await workspace.write(f"{number}", "")
    with pytest.raises(BadPath, match=r"'30' refused: more than 30 files"):
        await workspace.write("30", "")
    await workspace.write("29", "again")
    await workspace.delete("0")
    await workspace.write("30", "")


async def test_a_hundred_megabytes_fit_and_not_one_byte_more(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (limits.MAX_TOTAL_BYTES, limits.MAX_FILE_BYTES) == (100 * 1024**2, 5 * 1024**2)
    monkeypatch.setattr(limits, "MAX_TOTAL_BYTES", 100)
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 60)
    with pytest.raises(BadPath, match="'a' refused: 61 bytes, more than 60"):
        await workspace.write("a", "x" * 61)
    await workspace.write("a", "x" * 60)
    with pytest.raises(BadPath, match="'b' refused: the workspace would exceed 100 bytes"):
        await workspace.write("b", "é" * 21)
    await workspace.write("b", "é" * 20)
    await workspace.write("a", "y" * 60)
    await workspace.delete("b")
    await workspace.write("c", "x" * 40)


async def test_a_text_that_no_file_can_hold_is_refused(workspace: Workspace) -> None:
    with pytest.raises(BadPath, match="lone surrogate"):
        await workspace.write("a", "\ud800")


async def test_files_that_are_written_together_are_told_of_in_their_order(tmp_path: Path) -> None:
    heard = []

    async def listen(sizes: Mapping[str, int]) -> None:
        heard.append(list(sizes.items()))

    made = Workspace(tmp_path, on_written=listen)
    await made.write_all({f"{number}.py": "x" * number for number in range(100)})
    assert heard == [[(f"{number}.py", number) for number in range(100)]]
    assert on_disk(made) == made.files
    assert len(made.files) == 100


async def test_of_files_written_together_none_follows_one_that_is_refused(
    workspace: Workspace,
) -> None:
    with pytest.raises(BadPath, match="it is a folder already"):
        await workspace.write_all({"a/b": "1", "a": "2", "c": "3"})
    assert on_disk(workspace) == workspace.files == {"a/b": b"1"}


async def test_what_a_notice_raises_is_raised_as_itself(tmp_path: Path) -> None:
    async def refuse(sizes: Mapping[str, int]) -> None:
        raise RunnerFailed(str(sizes))

    with pytest.raises(RunnerFailed, match=r"^{'a': 1, 'b': 2}$"):
        await Workspace(tmp_path, on_written=refuse).write_all({"a": "1", "b": "22"})
