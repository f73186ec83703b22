"""A job's files on this machine while its runner writes them."""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

from anyio import to_thread

from generator.errors import BadPath

MAX_FILES = 10_000
MAX_FILE_BYTES = 5 * 1024 * 1024
MAX_TOTAL_BYTES = 100 * 1024 * 1024
MAX_PATH_BYTES = 512
_AT_ONCE = 64

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PART = ".headrace-part"

OnWritten = Callable[[Mapping[str, int]], Coroutine[Any, Any, None]]
Redact = Callable[[str], str]


def checked_path(path: str) -> str:
    """`path` itself if it names a file inside a workspace, relative and with `/` between its parts.

    Raises `BadPath` for anything that could land elsewhere or cannot be a file name.
    """
    if not path or len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES:
        raise BadPath(path[:80], f"a path has 1 to {MAX_PATH_BYTES} bytes")
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) <= 0xDFFF for char in path):
        raise BadPath(path, "it contains a control character")
    if "\\" in path:
        raise BadPath(path, "use / between folders")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise BadPath(path, "it must be relative, without empty, . or .. parts")
    if any(len(part.encode()) > 255 for part in parts):
        raise BadPath(path, "a name has at most 255 bytes")
    return path


class Workspace:
    """The files of one job, kept in a folder of their own and written through this class only.

    `clear` it first: what a predecessor left half-written must not leak into a build.
    `on_written` hears of files that were written together (path to size in bytes). What is written
    goes through `redact`; `redacted` has the paths of the files in which that changed something.
    """

    def __init__(self, root: Path, *, on_written: OnWritten, redact: Redact = str) -> None:
        self.root = root
        self.on_written = on_written
        self.redacted: set[str] = set()
        self._redact = redact
        self._is_closed = False
        self._files: dict[str, bytes] = {}
        self._folded: dict[str, str] = {}
        self._folders: Counter[str] = Counter()
        self._total_bytes = 0

    @property
    def files(self) -> Mapping[str, bytes]:
        """Path to content of every file, in the order in which they were first written."""
        return dict(self._files)

    async def clear(self) -> None:
        """Begin with an empty folder."""
        await to_thread.run_sync(_empty_folder, self.root)
        self._files.clear()
        self._folded.clear()
        self._folders.clear()
        self._total_bytes = 0

    def close(self) -> None:
        """Refuse every further change: what was written is what counts."""
        self._is_closed = True

    def read(self, path: str) -> str:
        """The text of one file. Raises `FileNotFoundError`."""
        try:
            return self._files[checked_path(path)].decode()
        except KeyError:
            raise FileNotFoundError(path) from None

    async def load(self, files: Mapping[str, bytes]) -> None:
        """Put the files of an earlier build in place, without notices."""
        await self._put_all(files)

    async def write(self, path: str, content: str) -> None:
        """Create or replace one file with UTF-8 text.

        Raises `BadPath` when it lies outside the workspace, clashes with another file (also by
        letter case alone, which some disks cannot tell apart) or breaks a limit of size or number;
        also when a link stands in its way that somebody else has laid, or its name holds a secret.
        """
        await self.write_all({path: content})

    async def write_all(self, files: Mapping[str, str]) -> None:
        """`write` for each, in order; the first that is refused ends it.

        They share a way to the disk, and one notice: ways take longer than files.
        """
        kept = {path: self._kept(path, content) for path, content in files.items()}
        await self._put_all(kept)
        if kept:
            await self.on_written({path: len(data) for path, data in kept.items()})

    def _kept(self, path: str, content: str) -> bytes:
        """What is written of a file: no secret."""
        if (shown := self._redact(path)) != path:
            raise BadPath(shown, "its name holds a secret")
        kept = self._redact(content)
        (self.redacted.discard if kept == content else self.redacted.add)(path)
        try:
            return kept.encode()
        except UnicodeEncodeError:
            raise BadPath(path, "its content is not Unicode text (a lone surrogate)") from None

    async def delete(self, path: str) -> None:
        """Remove one file. Raises `FileNotFoundError`."""
        self._check_open(path)
        try:
            content = self._files.pop(checked_path(path))
        except KeyError:
            raise FileNotFoundError(path) from None
        del self._folded[_folded(path)]
        self._folders.subtract(_folders_of(path))
        self._total_bytes -= len(content)
        await to_thread.run_sync(_delete_file, self.root, path)

    async def _put_all(self, files: Mapping[str, bytes]) -> None:
        waiting = iter(files.items())
        # A bound, for a cancel waits for a thread.
        while some := list(islice(waiting, _AT_ONCE)):
            self._check_open(some[0][0])  # who was cut off may have no loop to wait in
            await to_thread.run_sync(self._put, some)

    def _put(self, files: Iterable[tuple[str, bytes]]) -> None:
        for path, data in files:
            checked_path(path)
            self._check_open(path)
            self._check_fits(path, data)
            _write_file(self.root, path, data)
            self._total_bytes += len(data) - len(self._files.get(path, b""))
            if path not in self._files:
                self._folders.update(_folders_of(path))
            self._files[path] = data
            self._folded[_folded(path)] = path

    def _check_open(self, path: str) -> None:
        if self._is_closed:
            raise BadPath(path, "the workspace is closed: the build goes on without this run")

    def _check_fits(self, path: str, data: bytes) -> None:
        twin = self._folded.get(_folded(path), path)
        if twin != path:
            raise BadPath(
                path,
                f"it differs from {twin!r} by letter case or by the way its letters are composed "
                "alone",
            )
        if self._folders[_folded(path)] > 0:
            raise BadPath(path, "it is a folder already and cannot be a file too")
        for folder in _folders_of(path):
            if folder in self._folded:
                other = self._folded[folder]
                raise BadPath(path, f"{other!r} is a file already and cannot be a folder too")
        if path not in self._files and len(self._files) >= MAX_FILES:
            raise BadPath(path, f"more than {MAX_FILES} files")
        if len(data) > MAX_FILE_BYTES:
            raise BadPath(path, f"{len(data)} bytes, more than {MAX_FILE_BYTES}")
        grown = self._total_bytes + len(data) - len(self._files.get(path, b""))
        if grown > MAX_TOTAL_BYTES:
            raise BadPath(path, f"the workspace would exceed {MAX_TOTAL_BYTES} bytes")


def remove_workspaces(folder: Path, is_of_no_use: Callable[[Path], bool]) -> None:
    """Remove such workspaces of a job from its folder, and that too once it is empty."""
    for workspace in folder.glob("*"):
        if is_of_no_use(workspace):
            shutil.rmtree(workspace, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def _folded(path: str) -> str:
    """Equal for paths that some disk takes for the same."""
    return normalize("NFC", normalize("NFC", path).casefold())


def _folders_of(path: str) -> list[str]:
    """Every folder above a file, folded."""
    parts = _folded(path).split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _empty_folder(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_file(root: Path, path: str, data: bytes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with _folder_of(root, path, is_made=True) as (folder, name):
        with suppress(FileNotFoundError):
            os.unlink(_PART, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(_PART, flags, 0o644, dir_fd=folder), "wb") as file:
            file.write(data)
        # In place of whatever is there: a link, also a hard one, is not written through.
        os.replace(_PART, name, src_dir_fd=folder, dst_dir_fd=folder)


def _delete_file(root: Path, path: str) -> None:
    with _folder_of(root, path) as (folder, name), suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


@contextmanager
def _folder_of(root: Path, path: str, *, is_made: bool = False) -> Iterator[tuple[int, str]]:
    """The folder that a file is in, and its name there. No link on the way is followed."""
    *parts, name = path.split("/")
    try:
        folder = os.open(root, _FOLDER)
        try:
            for part in parts:
                if is_made:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                inner = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder, name
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
            raise
        reason = "a link or another file stands in its way that the workspace has not made"
        raise BadPath(path, reason) from error
