"""A loopback server that speaks as much of S3's REST API as a store of artifacts asks for.

Written after the API reference: GetObject, HeadObject, PutObject, CopyObject, DeleteObject,
DeleteObjects and ListObjectsV2, addressed by path. Lists come in short pages.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

BUCKET, KEY_ID = "builds", "AKIAIOSFODNN7EXAMPLE"
PAGE_SIZE = 3
_XML = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True)
class Object:
    content: bytes
    changed_at: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"'


class S3Server:
    """Objects by key, of one bucket, and where they are reached."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.objects: dict[str, Object] = {}
        self.is_away = False
        self.asked: list[str] = []

    @property
    def settings(self) -> dict[str, Any]:
        """What leads obstore's S3 store here."""
        return {
            "endpoint": self.url,
            "region": "us-east-1",
            "access_key_id": KEY_ID,
            "secret_access_key": "secret",
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with an empty bucket, while the block runs."""

    class Handler(_Handler):
        @property
        def s3(self) -> S3Server:
            return told

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told = S3Server(f"http://127.0.0.1:{server.server_port}")
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield told
        finally:
            server.shutdown()
            serving.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def s3(self) -> S3Server:
        raise NotImplementedError

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        key, query = self._address()
        if self._is_refused():
            return
        if not key and query.get("list-type") == "2":
            self._list(query)
        elif found := self._found(key):
            self._object(found)

    def do_HEAD(self) -> None:
        key, _ = self._address()
        if not self._is_refused() and (found := self._found(key)):
            self._object(found)

    def do_PUT(self) -> None:
        key, _ = self._address()
        body = self._body()
        if self._is_refused():
            return
        source = self.headers.get("x-amz-copy-source")
        if source is None:
            made = Object(body)
            self.s3.objects[key] = made
            self._answer(200, headers={"ETag": made.etag})
        elif copied := self._found(unquote(source).removeprefix("/").removeprefix(f"{BUCKET}/")):
            made = Object(copied.content)
            self.s3.objects[key] = made
            at = made.changed_at.isoformat().replace("+00:00", "Z")
            told = f"<ETag>{escape(made.etag)}</ETag><LastModified>{at}</LastModified>"
            self._xml(200, "CopyObjectResult", told)

    def do_DELETE(self) -> None:
        key, _ = self._address()
        if not self._is_refused():
            self.s3.objects.pop(key, None)
            self._answer(204)

    def do_POST(self) -> None:
        _, query = self._address()
        body = self._body()
        if self._is_refused():
            return
        assert "delete" in query, f"no test asks for this: {self.path}"
        asked = ElementTree.fromstring(body)  # noqa: S314 - of our own client
        deleted = [element.text or "" for element in asked.iter() if _is_key(element)]
        for key in deleted:
            self.s3.objects.pop(key, None)
        told = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in deleted)
        self._xml(200, "DeleteResult", told)

    def _list(self, query: dict[str, str]) -> None:
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        after = max(after, query.get("start-after", ""))
        keys = sorted(key for key in self.s3.objects if key.startswith(prefix) and key > after)
        page = keys[:PAGE_SIZE]
        is_cut = len(keys) > len(page)
        told = f"<Name>{BUCKET}</Name><IsTruncated>{str(is_cut).lower()}</IsTruncated>"
        if is_cut:
            told += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        for key in page:
            found = self.s3.objects[key]
            at = found.changed_at.isoformat().replace("+00:00", ".000Z")
            told += (
                f"<Contents><Key>{escape(key)}</Key><LastModified>{at}</LastModified>"
                f"<ETag>{escape(found.etag)}</ETag><Size>{len(found.content)}</Size></Contents>"
            )
        self._xml(200, "ListBucketResult", told)

    def _address(self) -> tuple[str, dict[str, str]]:
        """The key, and the query."""
        self.s3.asked.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        assert bucket == BUCKET, self.path
        query = parse_qs(parts.query, keep_blank_values=True)
        return key, {name: values[0] for name, values in query.items()}

    def _is_refused(self) -> bool:
        signed = self.headers.get("Authorization", "")
        if self.s3.is_away:
            self._error(503, "SlowDown")
        elif not signed.startswith(f"AWS4-HMAC-SHA256 Credential={KEY_ID}/"):
            self._error(403, "InvalidAccessKeyId")
        else:
            return False
        return True

    def _found(self, key: str) -> Object | None:
        found = self.s3.objects.get(key)
        if found is None:
            self._error(404, "NoSuchKey")
        return found

    def _object(self, found: Object) -> None:
        changed = format_datetime(found.changed_at, usegmt=True)
        self._answer(200, found.content, {"ETag": found.etag, "Last-Modified": changed})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _error(self, status: int, code: str) -> None:
        self._xml(status, "Error", f"<Code>{code}</Code><Message>{code}</Message>")

    def _xml(self, status: int, name: str, told: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="{_XML}">{told}</{name}>'
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_key(element: ElementTree.Element) -> bool:
    return element.tag.rpartition("}")[2] == "Key"
