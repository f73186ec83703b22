"""A build as one file: whole, the same every time, a piece at a time."""

import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import anyio
import pytest

from generator.artifacts import EXECUTABLE, MODE, StoredFile
from generator.packing import Format, packed

pytestmark = pytest.mark.anyio

AT = datetime(2026, 3, 1, 12, 30, 6, tzinfo=UTC)
FILES = {"z.txt": b"last", "app.py": b"print()\n" * 1000, "run": b"#!/bin/sh\n", "ü/é.bin": b"\0\1"}


async def archive(
    form: Format, files: Mapping[str, bytes] = FILES, at: datetime = AT
) -> list[bytes]:
    listed = {
        path: StoredFile("", len(content), EXECUTABLE if content.startswith(b"#!") else MODE)
        for path, content in files.items()
    }

    async def read(path: str, _: StoredFile) -> bytes:
        return files[path]

    return [piece async for piece in packed(listed, read, folder="shop-1", at=at, form=form)]


async def test_a_zip_holds_every_file_with_its_mode_and_the_time_of_the_build() -> None:
    with zipfile.ZipFile(io.BytesIO(b"".join(await archive(Format.ZIP)))) as whole:
        assert whole.testzip() is None
        assert whole.namelist() == [f"shop-1/{path}" for path in sorted(FILES)]
        assert {name: whole.read(f"shop-1/{name}") for name in FILES} == FILES
        info = whole.getinfo("shop-1/run")
    assert (info.external_attr >> 16, info.date_time) == (0o100755, (2026, 3, 1, 12, 30, 6))


async def test_a_tar_holds_every_file_with_its_mode_and_the_time_of_the_build() -> None:
    content = b"".join(await archive(Format.TAR_GZ))
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as whole:
        members = whole.getmembers()
        assert [member.name for member in members] == [f"shop-1/{path}" for path in sorted(FILES)]
        for member in members:
            file = whole.extractfile(member)
            assert file is not None
            assert file.read() == FILES[member.name.removeprefix("shop-1/")]
        assert {member.mtime for member in members} == {AT.timestamp()}
        assert {member.uid for member in members} == {0}
        assert whole.getmember("shop-1/run").mode == 0o755


async def test_other_programs_unpack_both(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"".join(await archive(Format.TAR_GZ)))
    await anyio.run_process(["tar", "xzf", "a.tar.gz"], cwd=tmp_path)
    assert (tmp_path / "shop-1" / "app.py").read_bytes() == FILES["app.py"]
    assert (tmp_path / "shop-1" / "run").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("form", Format)
async def test_the_same_build_gives_the_same_bytes(form: Format) -> None:
    reordered = dict(reversed(FILES.items()))
    elsewhere = AT.astimezone(timezone(timedelta(hours=9)))
    assert b"".join(await archive(form)) == b"".join(await archive(form, reordered, elsewhere))


@pytest.mark.parametrize("form", Format)
async def test_files_go_out_one_by_one(form: Format) -> None:
    files = {f"{number:02}": os.urandom(100_000) for number in range(20)}
    pieces = await archive(form, files)
    assert len(pieces) == 21
    assert max(map(len, pieces)) < 250_000


async def test_a_build_older_than_any_zip_can_say_is_packed_all_the_same() -> None:
    content = b"".join(await archive(Format.ZIP, at=datetime(1970, 1, 1, tzinfo=UTC)))
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        assert whole.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)
