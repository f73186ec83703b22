"""The API of the notebook. `python3 app.py init` creates the database, `python3 app.py` serves."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from database import Database
from fields import Fields
from notebook import SCHEMA, Notebook
from pages import load_data, load_files
from server import Handler, Refused, Reply, Request, Site, main

ROOT = Path(__file__).resolve().parent
DATA = load_data(ROOT)
API = "/api/notes"


def create_site(database_path: Path) -> Site:
    database = Database(database_path, SCHEMA)
    fields = Fields(DATA)
    return Site(database, routes(Notebook(database, fields), fields), load_files(ROOT, DATA))


def routes(notebook: Notebook, fields: Fields) -> Mapping[str, Handler]:
    def search(request: Request) -> Reply:
        words = request.query.get("q", "")[:200].split()
        return Reply(200, {"notes": notebook.search(words), "count": notebook.count()})

    def show(request: Request) -> Reply:
        return Reply(200, notebook.show(request.ids["id"]))

    def create(request: Request) -> Reply:
        title, body = _title_and_body(request)
        return Reply(201, notebook.create(title, body, fields.sent(request), now=time.time()))

    def change(request: Request) -> Reply:
        title, body = _title_and_body(request)
        values = fields.sent(request)
        return Reply(200, notebook.change(request.ids["id"], title, body, values, now=time.time()))

    def delete(request: Request) -> Reply:
        notebook.delete(request.ids["id"])
        return Reply(200, {})

    return {
        f"GET {API}": search,
        f"POST {API}": create,
        f"GET {API}/{{id}}": show,
        f"PUT {API}/{{id}}": change,
        f"DELETE {API}/{{id}}": delete,
    }


def _title_and_body(request: Request) -> tuple[str, str]:
    title = request.text("title", max_chars=200, may_be_empty=True)
    body = request.text("body", max_chars=20_000, may_be_empty=True)
    if not title and not body:
        raise Refused(422, "An empty note is not worth keeping.")
    return title, body


if __name__ == "__main__":
    sys.exit(main(create_site))
