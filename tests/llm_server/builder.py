"""A scripted model that builds a small working app for any goal, changes it, and mends it.

A goal with the word `bug` gets an app whose own test fails; the repair finds it.
"""

import re
from collections.abc import Callable

from tests.llm_server.turns import Asked, Call, Say, Turn

MANIFEST = """[commands]
test = "python3 -m unittest discover -s tests"
start = "python3 app.py"
"""

APP = '''"""Notes, one below the other, kept in a file."""

import html
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from settings import COLOUR, TITLE

FILE = Path(__file__).parent / "notes.json"
LOCK = threading.Lock()


def notes():
    return json.loads(FILE.read_text()) if FILE.exists() else []


def add(text):
    with LOCK:
        FILE.write_text(json.dumps([*notes(), text[:500]]))


def count(items):
    return len(items)BUG


def page():
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{html.escape(TITLE)}</title>
<style>body {{ font-family: sans-serif; margin: 2rem; color: {COLOUR} }}</style>
<h1>{html.escape(TITLE)}</h1><p>{count(notes())} so far</p><ul>{items}</ul>
<form method="post"><input name="note" required aria-label="note"><button>Add</button></form>"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            answer = {
                "status": "ok",
                "job": os.environ.get("HEADRACE_JOB", ""),
                "build": os.environ.get("HEADRACE_MARKER", ""),
            }
            self.reply(200, json.dumps(answer), "application/json")
        elif self.path == "/":
            self.reply(200, page(), "text/html; charset=utf-8")
        else:
            self.reply(404, "not here", "text/plain")

    def do_POST(self):
        length = min(int(self.headers.get("content-length") or 0), 10_000)
        add(parse_qs(self.rfile.read(length).decode()).get("note", [""])[0])
        self.send_response(303)
        self.send_header("location", "/")
        self.end_headers()

    def reply(self, status, text, kind):
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("cache-control", "no-store")
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("0.0.0.0", int(os.environ.get("PORT") or 8080)), Handler).serve_forever()
'''

TEST = """import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import app


class PageTest(unittest.TestCase):
    def test_notes_are_counted(self):
        self.assertEqual(app.count(["one", "two"]), 2)

    def test_the_page_has_a_title(self):
        self.assertIn("<h1>", app.page())


if __name__ == "__main__":
    unittest.main()
"""


def builder(asked: Asked) -> Turn:
    """What this model answers: it looks at what it was told first, and at what it has called."""
    if not asked.tools:
        return Turn((Say("ok"),))
    told = asked.texts[0]
    if "does not pass its checks" in told:
        return _repair(asked)
    if told.startswith("Change the app"):
        return _change(asked, _between(told, "change"))
    return _build(told, _between(told, "goal"))


def _build(told: str, goal: str) -> Turn:
    bug = " + 1" if re.search(r"\bbug\b", goal) else ""
    files = {
        "headrace.toml": MANIFEST,
        "settings.py": f"TITLE = {goal[:80]!r}\nCOLOUR = 'black'\n",
        "app.py": APP.replace("BUG", bug),
        "tests/test_app.py": TEST,
    }
    missing = {path: text for path, text in files.items() if f"\n{path} (" not in told}
    calls = [Call("write_file", {"path": path, "content": text}) for path, text in missing.items()]
    words = Say(f"I write a page of notes for this:\n{goal[:200]}\n")
    return Turn((words, *calls, Call("done", {"summary": "A page of notes."})), output_tokens=900)


def _change(asked: Asked, goal: str) -> Turn:
    path = "settings.py"
    if not asked.called:
        return Turn((Say("Let me look."), Call("read_file", {"path": path})))
    text = asked.returned[0].text
    return _edited(path, text, "TITLE = .*", lambda _: f"TITLE = {goal[:80]!r}")


def _repair(asked: Asked) -> Turn:
    path = "app.py"
    if not asked.called:
        return Turn((Say("I look for the cause."), Call("read_file", {"path": path})))
    return _edited(path, asked.returned[0].text, r"len\(items\).*", lambda _: "len(items)")


def _edited(path: str, text: str, old: str, new: Callable[[re.Match[str]], str]) -> Turn:
    found = re.search(old, text)
    if found is None:
        return Turn((Say("There is nothing here that I could mend."),))
    edit = Call("edit_file", {"path": path, "old": found[0], "new": new(found)})
    return Turn((Say("This is it."), edit, Call("done", {"summary": "Done."})), output_tokens=120)


def _between(text: str, tag: str) -> str:
    return " ".join(text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0].split())
