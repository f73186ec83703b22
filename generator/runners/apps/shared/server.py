"""A small HTTP server for a JSON API and its pages, on the standard library alone."""

from __future__ import annotations

import json
import os
import re
import signal
import socketserver
import sqlite3
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from database import Database
from pages import File

MAX_BODY_BYTES = 128 * 1024
MAX_DRAINED_BYTES = 1024 * 1024
IDLE_TIMEOUT_S = 30
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class Refused(Exception):
    """A request that cannot be served: an HTTP status and a sentence for the person."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers or {}
        super().__init__(message)


class Reply(NamedTuple):
    """A JSON answer."""

    status: int
    data: Mapping[str, object]
    headers: Mapping[str, str] = {}


class Request(NamedTuple):
    """What a handler sees. Its methods refuse, with 422, what the app cannot take."""

    ids: Mapping[str, int]
    query: Mapping[str, str]
    cookies: Mapping[str, str]
    body: Mapping[str, object]

    def has(self, name: str) -> bool:
        return name in self.body

    def text(self, name: str, *, max_chars: int, may_be_empty: bool = False) -> str:
        """A text of the body, without white space around it."""
        value = self.body.get(name)
        if not isinstance(value, str):
            raise Refused(422, f"“{name}” must be a text.")
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
            raise Refused(422, f"“{name}” contains a character that cannot be stored.")
        value = value.strip()
        if not value and not may_be_empty:
            raise Refused(422, f"“{name}” must not be empty.")
        if len(value) > max_chars:
            raise Refused(422, f"“{name}” may have at most {max_chars:,} characters.")
        return value

    def flag(self, name: str) -> bool:
        value = self.body.get(name)
        if not isinstance(value, bool):
            raise Refused(422, f"“{name}” must be true or false.")
        return value

    def number(self, name: str) -> int:
        """A whole number from 0 up to what SQLite can hold."""
        value = self.body.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise Refused(422, f"“{name}” must be a whole number.")
        return value


Handler = Callable[[Request], Reply]


class Site:
    """An app as the server sees it: its database, its API, its files.

    `routes` maps `"PATCH /api/tasks/{id}"` to a handler; `{…}` stands for a whole number.
    """

    def __init__(
        self, database: Database, routes: Mapping[str, Handler], files: Mapping[str, File]
    ) -> None:
        self.database = database
        self.files = files
        self._routes = [(*_compiled(route), handler) for route, handler in routes.items()]

    def answer(self, method: str, path: str, request: Request) -> Reply:
        """Call the handler of a route. Raises `Refused` (404, 405) when there is none."""
        allowed = set()
        for route_method, pattern, handler in self._routes:
            if match := pattern.fullmatch(path):
                if route_method == method:
                    ids = {name: int(value) for name, value in match.groupdict().items()}
                    return handler(request._replace(ids=ids))
                allowed.add(route_method)
        if allowed:
            raise _not_allowed(method, allowed)
        raise Refused(404, "There is nothing here.")

    def health(self) -> Reply:
        """Whether the app can work, and which build it is."""
        status, word = 200, "ok"
        try:
            self.database.check()
        except sqlite3.Error:
            status, word = 503, "database unavailable"
        data = {
            "status": word,
            "job": os.environ.get("HEADRACE_JOB", ""),
            "build": os.environ.get("HEADRACE_MARKER", ""),
        }
        return Reply(status, data)


class Server(ThreadingHTTPServer):
    """Serves one site, a thread per connection."""

    request_queue_size = 128

    def __init__(self, site: Site, host: str, port: int) -> None:
        self.site = site
        super().__init__((host, port), Connection)

    def server_bind(self) -> None:
        # HTTPServer asks the DNS for this machine's name here: seconds, where there is no network.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "app", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Browsers hang up whenever they like; only our own mistakes deserve a traceback.
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Connection(BaseHTTPRequestHandler):
    """One browser's connection: reads requests, answers each."""

    protocol_version = "HTTP/1.1"
    server_version = "app"
    sys_version = ""
    timeout = IDLE_TIMEOUT_S
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Server

    def answer(self) -> None:
        try:
            body = self._read_body()
            path, _, query = self.path.partition("?")
            self._answer(unquote(path), query, body)
        except Refused as refused:
            self._send_json(Reply(refused.status, {"error": str(refused)}, refused.headers))
        except TimeoutError:
            self.close_connection = True
            self._send_json(Reply(408, {"error": "The request took too long to arrive."}))
        except ConnectionError:
            raise
        except Exception:
            self.close_connection = True
            self._send_json(Reply(500, {"error": "Something went wrong on our side."}))
            raise

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer  # noqa: N815

    def _answer(self, path: str, query: str, body: bytes) -> None:
        site = self.server.site
        method = "GET" if self.command == "HEAD" else self.command
        if path == "/healthz" or path in site.files:
            if method != "GET":
                raise _not_allowed(method, {"GET"})
            if path == "/healthz":
                self._send_json(site.health())
            else:
                self._send_file(site.files[path])
            return
        request = Request({}, _parsed_query(query), self._cookies(), self._json(body))
        self._send_json(site.answer(method, path, request))

    def _read_body(self) -> bytes:
        """The whole body, so that the next request on this connection starts where it should."""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(411, "Please send the body with its Content-Length.")
        declared = self.headers.get("Content-Length", "0")
        if not re.fullmatch("[0-9]{1,12}", declared):
            self.close_connection = True
            raise Refused(400, "The Content-Length is not a number.")
        if int(declared) > MAX_BODY_BYTES:
            self.close_connection = True
            # A browser that is still sending would not read the answer.
            self.rfile.read(min(int(declared), MAX_DRAINED_BYTES))
            raise Refused(413, f"A request may have at most {MAX_BODY_BYTES:,} bytes.")
        body = self.rfile.read(int(declared))
        if len(body) < int(declared):
            self.close_connection = True
            raise Refused(400, "The request is incomplete.")
        return body

    def _json(self, body: bytes) -> dict[str, object]:
        if self.command not in ("POST", "PUT", "PATCH"):
            return {}
        # A form of another site can send anything but this type without asking first.
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "Please send JSON (Content-Type: application/json).")
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "The body is not valid JSON.") from None
        if not isinstance(data, dict):
            raise Refused(400, "The body must be a JSON object.")
        return data

    def _cookies(self) -> dict[str, str]:
        pairs = (pair.partition("=") for pair in self.headers.get("Cookie", "").split(";"))
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _send_json(self, reply: Reply) -> None:
        content = json.dumps(reply.data).encode()
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **reply.headers}
        self._send(reply.status, headers, content)

    def _send_file(self, file: File) -> None:
        headers = {"Cache-Control": "no-cache", "ETag": file.etag}
        if self.headers.get("If-None-Match") == file.etag:
            self._send(304, headers, None)
        else:
            self._send(200, {"Content-Type": file.content_type, **headers}, file.content)

    def _send(self, status: int, headers: Mapping[str, str], content: bytes | None) -> None:
        self.send_response(status)
        for name, value in {**SECURITY_HEADERS, **headers}.items():
            self.send_header(name, value)
        if content is not None:
            self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if content is not None and self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself (it would answer in HTML)."""
        self.close_connection = True
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else code
        self._send_json(Reply(status, {"error": message or HTTPStatus(code).phrase}))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if getattr(self, "path", "") != "/healthz":
            super().log_request(code, size)


def main(create_site: Callable[[Path], Site]) -> int:
    """The command line: `init` creates the database, nothing starts the server."""
    database_path = Path(os.environ.get("DATABASE_PATH") or "data/app.db")
    if sys.argv[1:] not in ([], ["init"]):
        return _fail("usage: python3 app.py [init]", 2)
    try:
        site = create_site(database_path)
    except (OSError, sqlite3.Error) as error:
        return _fail(f"cannot open the database {database_path}: {error}", 1)
    if sys.argv[1:] == ["init"]:
        sys.stdout.write(f"The database {database_path} is ready.\n")
        return 0
    host, port = os.environ.get("HOST", ""), os.environ.get("PORT") or "8080"
    try:
        server = Server(site, host, int(port))
    except (OSError, OverflowError, ValueError) as error:
        return _fail(f"cannot listen on {host or 'any address'}, port {port}: {error}", 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.stderr.write(f"Serving on port {server.server_port}\n")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        site.database.close()
    return 0


def _compiled(route: str) -> tuple[str, re.Pattern[str]]:
    method, path = route.split(" ")
    return method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[0-9]{1,15})", path))


def _parsed_query(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise Refused(400, "The address has too many parameters.") from None


def _not_allowed(method: str, allowed: set[str]) -> Refused:
    return Refused(405, f"{method} is not possible here.", {"Allow": ", ".join(sorted(allowed))})


def _fail(line: str, exit_code: int) -> int:
    sys.stderr.write(line + "\n")
    return exit_code
