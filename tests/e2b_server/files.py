"""envd's files: `/files` over HTTP, folders over the ASGI application in the SDK's wheel."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from e2b.envd.filesystem import filesystem_pb as pb
from e2b.envd.filesystem.filesystem_connect import Filesystem
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.e2b_server.sandbox import Sandbox

_FILENAME = re.compile(rb'filename="([^"]*)"')


async def download(request: Request, sandbox: Sandbox) -> Response:
    path = request.query_params["path"]
    found = sandbox.path(path)
    if found.is_dir():
        return failure(400, f"path '{path}' is a directory")
    if not found.exists():
        return failure(404, f"path '{path}' does not exist")
    return Response(found.read_bytes(), media_type="application/octet-stream")


async def upload(request: Request, sandbox: Sandbox) -> Response:
    path = request.query_params.get("path")
    kind, _, parameters = request.headers["content-type"].partition(";")
    body = await request.body()
    if kind == "application/octet-stream":
        parts = iter([("", body)])
    else:
        parts = _parts(body, parameters.partition("boundary=")[2].encode())
    written = []
    for name, content in parts:
        target = path or name
        found = sandbox.path(target)
        if found.is_dir():
            return failure(400, f"path is a directory: {target}")
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_bytes(content)
        written.append({"name": found.name, "type": "file", "path": target})
    return JSONResponse(written)


def failure(status: int, message: str) -> Response:
    """An error as E2B's services word it."""
    return JSONResponse({"code": status, "message": message}, status)


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[str, bytes]]:
    """File name and content of each part, byte for byte; names are not unescaped, as by envd."""
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if match := _FILENAME.search(head):
            yield match[1].decode(), content


class Folders(Filesystem):
    """Finds the sandbox of a request by its headers, as `Processes` does."""

    def __init__(self, sandbox_of: Callable[[str], Sandbox]) -> None:
        self._sandbox_of = sandbox_of

    async def stat(
        self, request: pb.StatRequest, ctx: RequestContext[Any, Any], /
    ) -> pb.StatResponse:
        return pb.StatResponse(entry=_entry(self._existing(request.path, ctx), request.path))

    async def make_dir(
        self, request: pb.MakeDirRequest, ctx: RequestContext[Any, Any], /
    ) -> pb.MakeDirResponse:
        path = self._path(request.path, ctx)
        if path.is_dir():
            raise ConnectError(Code.ALREADY_EXISTS, f"directory already exists: {request.path}")
        path.mkdir(parents=True)
        return pb.MakeDirResponse(entry=_entry(path, request.path))

    async def list_dir(
        self, request: pb.ListDirRequest, ctx: RequestContext[Any, Any], /
    ) -> pb.ListDirResponse:
        folder = self._existing(request.path, ctx)
        return pb.ListDirResponse(
            entries=[
                _entry(path, f"{request.path}/{path.name}") for path in sorted(folder.iterdir())
            ]
        )

    async def remove(
        self, request: pb.RemoveRequest, ctx: RequestContext[Any, Any], /
    ) -> pb.RemoveResponse:
        path = self._path(request.path, ctx)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return pb.RemoveResponse()

    def _path(self, path: str, ctx: RequestContext[Any, Any]) -> Path:
        return self._sandbox_of(ctx.request_headers["e2b-sandbox-id"]).path(path)

    def _existing(self, path: str, ctx: RequestContext[Any, Any]) -> Path:
        found = self._path(path, ctx)
        if not found.exists():
            raise ConnectError(Code.NOT_FOUND, f"path not found: {path}")
        return found


def _entry(path: Path, name: str) -> pb.EntryInfo:
    return pb.EntryInfo(
        name=path.name,
        type=pb.FileType.DIRECTORY if path.is_dir() else pb.FileType.FILE,
        path=name,
        size=path.stat().st_size,
        mode=path.stat().st_mode & 0o777,
        owner="user",
        group="user",
    )
