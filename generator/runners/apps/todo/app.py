"""The API of the list. `python3 app.py init` creates the database, `python3 app.py` serves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from database import Database
from fields import Fields
from pages import load_data, load_files
from server import Handler, Refused, Reply, Request, Site, main
from tasks import SCHEMA, TaskList

ROOT = Path(__file__).resolve().parent
DATA = load_data(ROOT)
API = "/api/tasks"


def create_site(database_path: Path) -> Site:
    database = Database(database_path, SCHEMA)
    fields = Fields(DATA)
    task_list = TaskList(database, DATA["people"], fields)
    return Site(database, routes(task_list, fields), load_files(ROOT, DATA))


def routes(task_list: TaskList, fields: Fields) -> Mapping[str, Handler]:
    def show(request: Request) -> Reply:
        return Reply(200, task_list.show())

    def add(request: Request) -> Reply:
        title = request.text("title", max_chars=300)
        person = _person(request) if request.has("person") else None
        done = request.flag("done") if request.has("done") else False
        return Reply(201, task_list.add(title, person, done, fields.sent(request)))

    def change(request: Request) -> Reply:
        changes: dict[str, object] = {}
        if request.has("title"):
            changes["title"] = request.text("title", max_chars=300)
        if request.has("done"):
            changes["done"] = request.flag("done")
        if request.has("person"):
            changes["person"] = _person(request)
        if request.has("fields"):
            changes["fields"] = fields.sent(request)
        if not changes:
            raise Refused(422, "Nothing to change: send “title”, “done”, “person” or “fields”.")
        return Reply(200, task_list.change(request.ids["id"], changes))

    def delete(request: Request) -> Reply:
        task_list.delete(request.ids["id"])
        return Reply(200, {})

    def rename(request: Request) -> Reply:
        return Reply(200, task_list.rename(request.ids["id"], request.text("name", max_chars=30)))

    return {
        f"GET {API}": show,
        f"POST {API}": add,
        f"PATCH {API}/{{id}}": change,
        f"DELETE {API}/{{id}}": delete,
        "PATCH /api/people/{id}": rename,
    }


def _person(request: Request) -> int | None:
    return None if request.body["person"] is None else request.number("person")


if __name__ == "__main__":
    sys.exit(main(create_site))
