"""What differs between two builds, and that `git apply` makes the one of the other."""

import shutil
import subprocess
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.artifacts import EXECUTABLE, MODE, StoredFile
from generator.difference import (
    MAX_BYTES,
    MAX_LINES,
    Change,
    binary_patch,
    changed_files,
    is_comparable,
    patch_of,
)

Files = Mapping[str, bytes]


def stored(files: Files) -> dict[str, StoredFile]:
    return {
        path: StoredFile(
            sha256(content).hexdigest(),
            len(content),
            EXECUTABLE if content.startswith(b"#!") else MODE,
        )
        for path, content in files.items()
    }


def patch(before: Files, after: Files) -> str:
    parts = []
    for changed in changed_files(stored(before), stored(after)):
        text = patch_of(changed, before.get(changed.path, b""), after.get(changed.path, b""))
        assert text is not None
        parts.append(text)
    return "".join(parts)


def applied(before: Files, text: str, folder: Path) -> dict[str, bytes]:
    """The files after `git apply`, which knows nothing of us."""
    folder.mkdir()
    for path, content in before.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    if text:
        done = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", "-"],
            cwd=folder,
            input=text.encode(),
            env={"GIT_CEILING_DIRECTORIES": str(folder.parent), "PATH": "/usr/bin:/bin"},
            capture_output=True,
        )
        assert done.returncode == 0, (done.stderr.decode(), text)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


CASES = {
    "a line": ({"a.py": b"1\n2\n3\n"}, {"a.py": b"1\nzwei\n3\n"}),
    "no newline at the end, then one": ({"a": b"1\n2"}, {"a": b"1\n2\n"}),
    "a newline at the end, then none": ({"a": b"1\n2\n"}, {"a": b"1\n2"}),
    "added and removed": ({"old/x": b"x\n", "k": b"k\n"}, {"new/y": b"y", "k": b"k\n"}),
    "empty to full and back": ({"a": b"", "b": b"full\n"}, {"a": b"full\n", "b": b""}),
    "an empty file comes, another goes": ({"gone": b"", "k": b"k"}, {"come": b"", "k": b"k"}),
    "names that git quotes": (
        {'a "b" c.txt': b"1\n", "with space": b"1\n", "ünï/çode": b"1\n"},
        {'a "b" c.txt': b"2\n", "with space": b"2\n", "ünï/çode": b"2\n"},
    ),
    "carriage returns and other ends of lines": (
        {"a": b"1\r\n2\x0b\xe2\x80\xa8 3\r4\n"},
        {"a": b"1\r\n2\x0b\xe2\x80\xa8 3\r5\n"},
    ),
    "a file that can be run": ({"run": b"echo\n"}, {"run": b"#!/bin/sh\necho\n"}),
    "the same": ({"a": b"1"}, {"a": b"1"}),
}


@pytest.mark.parametrize("name", CASES)
def test_git_applies_the_patch_and_has_the_other_build(name: str, tmp_path: Path) -> None:
    before, after = CASES[name]
    for number, (old, new) in enumerate(((before, after), (after, before))):
        assert applied(old, patch(old, new), tmp_path / str(number)) == new


texts = st.lists(st.sampled_from(["a", "b", "\t", "", "+", "-- ", "\\ No newline"]), max_size=12)
files = st.dictionaries(
    st.sampled_from(["a", "b/c", "b/d e"]), texts.map(lambda lines: "\n".join(lines).encode())
)


@settings(max_examples=15, deadline=None)
@given(before=files, after=files)
def test_git_applies_the_patch_between_any_two_builds(
    before: Files, after: Files, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("patched") / "files"
    try:
        assert applied(before, patch(before, after), folder) == after
    finally:
        shutil.rmtree(folder.parent)


def test_files_are_told_by_what_became_of_them() -> None:
    found = changed_files(
        stored({"a": b"1", "b": b"1", "c": b"1"}), stored({"b": b"2", "c": b"1", "d": b"1"})
    )
    assert [(one.path, one.change) for one in found] == [
        ("a", Change.REMOVED),
        ("b", Change.CHANGED),
        ("d", Change.ADDED),
    ]


@pytest.mark.parametrize(
    "content", [b"\x00\x01", b"\xff\xfe", b"line\n" * (MAX_LINES + 1)], ids=["NUL", "bytes", "long"]
)
def test_what_is_no_text_or_too_long_has_no_lines_to_compare(content: bytes) -> None:
    (changed,) = changed_files(stored({"a": b"1"}), stored({"a": content}))
    assert patch_of(changed, b"1", content) is None
    assert binary_patch(changed).splitlines()[-1] == "Binary files a/a and b/a differ"


def test_a_large_file_is_not_even_read() -> None:
    (changed,) = changed_files(stored({}), stored({"a": b"x" * (MAX_BYTES + 1)}))
    assert not is_comparable(changed)
