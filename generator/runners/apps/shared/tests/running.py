"""A real server on a free port with a database of its own, and a client that talks to it."""

from __future__ import annotations

import io
import json
import sys
import tempfile
import threading
import unittest
from contextlib import redirect_stderr
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app import create_site  # noqa: E402
from server import Server  # noqa: E402


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def data(self) -> Any:
        return json.loads(self.text)


class AppTest(unittest.TestCase):
    """Starts the app before each test, ends it after."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.database_path = Path(folder.name) / "data" / "app.db"
        silence = redirect_stderr(io.StringIO())
        silence.__enter__()
        self.addCleanup(silence.__exit__, None, None, None)
        self.start()
        self.addCleanup(self.stop)

    def start(self) -> None:
        self.server = Server(create_site(self.database_path), "127.0.0.1", 0)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.005,))
        self._thread.start()
        self.client = HTTPConnection("127.0.0.1", self.server.server_port, timeout=5)

    def stop(self) -> None:
        self.client.close()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()
        self.server.site.database.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send a request; a `body` goes as JSON unless it is bytes already."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.client.request(method, path, body, headers)
        response = self.client.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read().decode())

    def check_refused(self, status: int, answer: Answer) -> None:
        """The answer is a clean refusal: this status, and a sentence."""
        self.assertEqual((answer.status, list(answer.data)), (status, ["error"]), answer.text)
