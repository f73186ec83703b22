"""The way in: control plane or envd by path, keys checked, envd's services behind one sandbox."""

from e2b.envd.filesystem.filesystem_connect import FilesystemASGIApplication
from e2b.envd.process.process_connect import ProcessASGIApplication
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from tests.e2b_server.control import ControlPlane
from tests.e2b_server.files import Folders, download, failure, upload
from tests.e2b_server.process import Processes

ENVD_PORT = "49983"


class Edge:
    """ASGI application for everything under one address, as `E2B_SANDBOX_URL` allows."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._router = Router(control.routes)
        self._processes = ProcessASGIApplication(Processes(control.living.__getitem__))
        self._folders = FilesystemASGIApplication(Folders(control.living.__getitem__))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        request = Request(scope, receive)
        if "sandboxes" in request.url.path:
            refused = failure(401, "Invalid API key") if self._control.refuses(request) else None
            await (refused or self._router)(scope, receive, send)
            return
        refused = self._refusal(request)
        match request.url.path.split("/")[1]:
            case _ if refused:
                await refused(scope, receive, send)
            case "process.Process":
                await self._processes(scope, receive, send)
            case "filesystem.Filesystem":
                await self._folders(scope, receive, send)
            case _:
                await (await self._http(request))(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        """What E2B's proxy says in front of a sandbox that is not there, or envd of a wrong key."""
        sandbox_id = request.headers.get("e2b-sandbox-id", "")
        sandbox = self._control.living.get(sandbox_id)
        if sandbox is None or sandbox.is_paused:
            body = {"sandboxId": sandbox_id, "message": "The sandbox was not found", "code": 502}
            return JSONResponse(body, 502)
        if request.headers.get("e2b-sandbox-port") != ENVD_PORT:
            body = {"sandboxId": sandbox_id, "message": "The port is not open", "code": 502}
            return JSONResponse(body, 502)
        if request.headers.get("x-access-token") != sandbox.access_token:
            return failure(401, "unauthorized access")
        return None

    async def _http(self, request: Request) -> Response:
        sandbox = self._control.living[request.headers["e2b-sandbox-id"]]
        try:
            match request.method, request.url.path:
                case "GET", "/health":
                    return Response(status_code=204)
                case "GET", "/files":
                    return await download(request, sandbox)
                case "POST", "/files":
                    return await upload(request, sandbox)
        except ValueError as error:
            return failure(400, str(error))
        return failure(404, "no such route")
