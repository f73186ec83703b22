"""A job's files on this machine while its runner writes them."""

import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from anyio import to_thread

from generator.errors import BadPath

MAX_FILES = 10_000
MAX_FILE_BYTES = 5 * 1024 * 1024
MAX_TOTAL_BYTES = 100 * 1024 * 1024
MAX_PATH_BYTES = 512

OnFile = Callable[[str, int], Awaitable[None]]


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
    `on_file` hears of every written file (path, size in bytes).
    """

    def __init__(self, root: Path, *, on_file: OnFile) -> None:
        self.root = root
        self.on_file = on_file
        self._is_closed = False
        self._files: dict[str, bytes] = {}
        self._folded: dict[str, str] = {}
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
        for path, content in files.items():
            await self._put(path, content)

    async def write(self, path: str, content: str) -> None:
        """Create or replace one file with UTF-8 text.

        Raises `BadPath` when it lies outside the workspace, clashes with another file (also by
        letter case alone, which some disks cannot tell apart) or breaks a limit of size or number.
        """
        try:
            data = content.encode()
        except UnicodeEncodeError:
            raise BadPath(path, "its content is not Unicode text (a lone surrogate)") from None
        await self._put(path, data)
        await self.on_file(path, len(data))

    async def delete(self, path: str) -> None:
        """Remove one file. Raises `FileNotFoundError`."""
        self._check_open(path)
        try:
            content = self._files.pop(checked_path(path))
        except KeyError:
            raise FileNotFoundError(path) from None
        del self._folded[path.casefold()]
        self._total_bytes -= len(content)
        await to_thread.run_sync((self.root / path).unlink)

    async def _put(self, path: str, data: bytes) -> None:
        checked_path(path)
        self._check_open(path)
        self._check_fits(path, data)
        await to_thread.run_sync(_write_file, self.root / path, data)
        self._total_bytes += len(data) - len(self._files.get(path, b""))
        self._files[path] = data
        self._folded[path.casefold()] = path

    def _check_open(self, path: str) -> None:
        if self._is_closed:
            raise BadPath(path, "the workspace is closed: the build goes on without this run")

    def _check_fits(self, path: str, data: bytes) -> None:
        twin = self._folded.get(path.casefold(), path)
        if twin != path:
            raise BadPath(path, f"differs from {twin!r} by letter case alone")
        for other in self._files:
            if other.startswith(path + "/") or path.startswith(other + "/"):
                raise BadPath(path, f"{other!r} is there already and cannot be file and folder")
        if path not in self._files and len(self._files) >= MAX_FILES:
            raise BadPath(path, f"more than {MAX_FILES} files")
        if len(data) > MAX_FILE_BYTES:
            raise BadPath(path, f"{len(data)} bytes, more than {MAX_FILE_BYTES}")
        grown = self._total_bytes + len(data) - len(self._files.get(path, b""))
        if grown > MAX_TOTAL_BYTES:
            raise BadPath(path, f"the workspace would exceed {MAX_TOTAL_BYTES} bytes")


def _empty_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_file(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
