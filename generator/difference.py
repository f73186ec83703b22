"""What differs between the files of two builds, as people and `git apply` read it.

Pure. Comparing lines can take long and its result can be long: both are bounded, and what was left
out is said.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from generator.artifacts import StoredFile

MAX_LINES = 4_000
"""Of a file on either side; what has more is not compared line by line."""
MAX_BYTES = 512 * 1024
MAX_PATCH_CHARS = 1_000_000
"""Of all files together."""
CONTEXT_LINES = 3
_NO_NEWLINE = "\\ No newline at end of file\n"


class Change(StrEnum):
    """What became of a file."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Changed:
    """A file that is not the same on both sides; None: it is not there."""

    path: str
    before: StoredFile | None
    after: StoredFile | None

    @property
    def change(self) -> Change:
        """Whether it came, went, or is another."""
        if self.before is None:
            return Change.ADDED
        return Change.REMOVED if self.after is None else Change.CHANGED

    @property
    def size_bytes(self) -> int:
        """Of both sides."""
        return sum(side.size_bytes for side in (self.before, self.after) if side)


def changed_files(
    before: Mapping[str, StoredFile], after: Mapping[str, StoredFile]
) -> list[Changed]:
    """The files that differ, by path in order."""
    return [
        Changed(path, before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def is_comparable(changed: Changed) -> bool:
    """Whether its sizes allow to compare its lines, so that its content is worth reading."""
    return all(side.size_bytes <= MAX_BYTES for side in (changed.before, changed.after) if side)


def lines_of(content: bytes) -> list[str] | None:
    """Lines with their ends; None for what is no text, or has too many of them."""
    if b"\0" in content:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    # Not `splitlines`: for a patch only a line feed ends a line.
    lines = [f"{line}\n" for line in text.split("\n")]
    last = lines.pop().removesuffix("\n")
    return ([*lines, last] if last else lines) if len(lines) <= MAX_LINES else None


def patch_of(changed: Changed, before: bytes, after: bytes) -> str | None:
    """A unified patch of one file, with git's headers; None for what is no text, or too long."""
    old, new = lines_of(before), lines_of(after)
    if old is None or new is None:
        return None
    return "".join([*headers(changed), *_hunks(changed, old, new)])


def binary_patch(changed: Changed) -> str:
    """What stands in a patch for a file whose content is not shown."""
    old, new = _names(changed)
    return "".join([*headers(changed), f"Binary files {old} and {new} differ\n"])


def headers(changed: Changed) -> Iterator[str]:
    """The lines by which git knows file and mode."""
    yield f"diff --git {_quoted(f'a/{changed.path}')} {_quoted(f'b/{changed.path}')}\n"
    before, after = changed.before, changed.after
    if before is None and after is not None:
        yield f"new file mode {_git_mode(after)}\n"
    elif after is None and before is not None:
        yield f"deleted file mode {_git_mode(before)}\n"
    elif before is not None and after is not None and before.mode != after.mode:
        yield f"old mode {_git_mode(before)}\n"
        yield f"new mode {_git_mode(after)}\n"


def _hunks(changed: Changed, old: list[str], new: list[str]) -> Iterator[str]:
    names = [f"{name}\t" if " " in name else name for name in _names(changed)]
    lines = difflib.unified_diff(old, new, n=CONTEXT_LINES)
    for number, line in enumerate(lines):
        if number < 2:
            yield f"{line[:4]}{names[number]}\n"
        elif line.endswith("\n"):
            yield line
        else:
            yield f"{line}\n{_NO_NEWLINE}"


def _names(changed: Changed) -> tuple[str, str]:
    return (
        _quoted(f"a/{changed.path}") if changed.before else "/dev/null",
        _quoted(f"b/{changed.path}") if changed.after else "/dev/null",
    )


def _git_mode(file: StoredFile) -> str:
    return f"100{file.mode:o}"


def _quoted(name: str) -> str:
    """As git writes it. A path has neither backslashes nor control characters."""
    return '"{}"'.format(name.replace('"', '\\"')) if '"' in name else name
