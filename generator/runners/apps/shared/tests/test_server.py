"""What holds for every page and every route of this app."""

from __future__ import annotations

import html
import os
import unittest
from unittest import mock

from app import API, DATA
from pages import fill, load_files
from running import ROOT, AppTest


class ServerTest(AppTest):
    def test_health_names_the_job_and_the_build(self) -> None:
        with mock.patch.dict(os.environ, HEADRACE_JOB="job-1", HEADRACE_MARKER="build-7"):
            answer = self.call("GET", "/healthz")
        self.assertEqual(answer.data, {"status": "ok", "job": "job-1", "build": "build-7"})
        self.assertEqual(answer.headers["Cache-Control"], "no-store")

    def test_health_says_so_when_the_database_is_gone(self) -> None:
        self.server.site.database.close()
        self.assertEqual(self.call("GET", "/healthz").status, 503)

    def test_the_page_shows_the_title_escaped(self) -> None:
        page = self.call("GET", "/")
        self.assertEqual(page.status, 200)
        self.assertIn(f"<title>{html.escape(DATA['title'])}</title>", page.text)

    def test_a_slot_cannot_bring_in_markup_or_another_slot(self) -> None:
        filled = fill("<h1>{{title}}</h1>", {"title": "<script>'{{secret}}'", "secret": "x"})
        self.assertEqual(filled, "<h1>&lt;script&gt;&#x27;{{secret}}&#x27;</h1>")

    def test_every_file_is_served_with_security_headers_and_an_etag(self) -> None:
        for path in load_files(ROOT, DATA):
            answer = self.call("GET", path)
            self.assertEqual(answer.status, 200, path)
            self.assertIn("default-src 'self'", answer.headers["Content-Security-Policy"])
            self.assertEqual(answer.headers["X-Content-Type-Options"], "nosniff")
            again = self.call("GET", path, If_None_Match=answer.headers["ETag"])
            self.assertEqual((again.status, again.text), (304, ""))

    def test_pages_name_only_files_that_exist(self) -> None:
        page = self.call("GET", "/").text
        for attribute in ("href", "src"):
            for part in page.split(f'{attribute}="')[1:]:
                target = part.split('"')[0]
                if not target.startswith("#"):
                    self.assertEqual(self.call("GET", "/" + target).status, 200, target)

    def test_no_path_leads_out_of_the_app(self) -> None:
        for path in (
            "/static/../app.py",
            "/static/%2e%2e/app.json",
            "/static/..%2fdata/app.db",
            "//etc/passwd",
            "/static//etc/passwd",
            "/static/\\..\\app.py",
            "/app.py",
            "/data/app.db",
            "/%00",
            "//[",
        ):
            self.check_refused(404, self.call("GET", path))

    def test_bad_requests_are_refused_with_a_sentence(self) -> None:
        deep = b"[" * 50_000
        for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"a": 1' + b"0" * 5000 + b"}", deep):
            self.check_refused(400, self.call("POST", API, body))
        self.check_refused(415, self.call("POST", API, b"a=1", Content_Type="text/plain"))
        self.check_refused(413, self.call("POST", API, b"x" * 200_000))
        self.client.close()
        self.check_refused(411, self.call("POST", API, b"", Transfer_Encoding="chunked"))
        self.client.close()
        self.check_refused(400, self.call("POST", API, b"", Content_Length="-1"))
        self.client.close()
        self.check_refused(400, self.call("GET", f"{API}?" + "a=1&" * 50))
        self.check_refused(405, self.call("PATCH", API, {}))
        self.check_refused(405, self.call("BREW", "/"))

    def test_head_answers_like_get_without_a_body(self) -> None:
        answer = self.call("HEAD", "/")
        self.assertEqual((answer.status, answer.text), (200, ""))
        self.assertGreater(int(answer.headers["Content-Length"]), 100)


if __name__ == "__main__":
    unittest.main()
