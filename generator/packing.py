"""The files of a build as one file: zip or tar.gz, made while it is sent.

Equal builds give equal bytes: names in order, the time that READY was, no owners. One file of the
build is in memory at a time, and what of the archive has not been taken yet.
"""

import gzip
import io
import tarfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum

from generator.artifacts import StoredFile

_EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)
"""No zip can say an earlier time."""
_LEVEL = 6
_REGULAR_FILE = 0o100000
_UNIX = 3

Read = Callable[[str, StoredFile], Awaitable[bytes]]


class Format(StrEnum):
    """How files are packed; the value is the end of the file's name."""

    ZIP = "zip"
    TAR_GZ = "tar.gz"

    @property
    def media_type(self) -> str:
        """As HTTP names it."""
        return "application/zip" if self is Format.ZIP else "application/gzip"


async def packed(
    files: Mapping[str, StoredFile], read: Read, *, folder: str, at: datetime, form: Format
) -> AsyncIterator[bytes]:
    """The archive in pieces; all files stand below `folder`. Raises what `read` raises."""
    sink = _Sink()
    pack = _Zip(sink, at) if form is Format.ZIP else _TarGz(sink, at)
    for path in sorted(files):
        pack.add(f"{folder}/{path}", await read(path, files[path]), files[path].mode)
        yield sink.taken()
    pack.close()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """Takes what is written, and gives it away; nobody can go back in it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(memoryview(data))  # type: ignore[arg-type]
        self._pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class _Zip:
    def __init__(self, sink: _Sink, at: datetime) -> None:
        self._zip = zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL)
        utc = max(at.astimezone(UTC), _EARLIEST)
        self._time = (utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second)

    def add(self, name: str, content: bytes, mode: int) -> None:
        info = zipfile.ZipInfo(name, self._time)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.create_system = _UNIX
        info.external_attr = (_REGULAR_FILE | mode) << 16
        self._zip.writestr(info, content)

    def close(self) -> None:
        self._zip.close()


class _TarGz:
    def __init__(self, sink: _Sink, at: datetime) -> None:
        self._time = int(at.timestamp())
        self._gzip = gzip.GzipFile("", "wb", _LEVEL, sink, mtime=self._time)
        self._tar = tarfile.TarFile(fileobj=self._gzip, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, content: bytes, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(content), mode, self._time
        self._tar.addfile(info, io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()
        self._gzip.close()
