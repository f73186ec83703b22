"""The API of the page. `python3 app.py init` creates the database, `python3 app.py` serves."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from database import Database
from fields import Fields
from pages import load_data, load_files
from server import Handler, Reply, Request, Site, main
from signups import SCHEMA, Signups, checked_email

ROOT = Path(__file__).resolve().parent
DATA = load_data(ROOT)
API = "/api/signups"


def create_site(database_path: Path) -> Site:
    database = Database(database_path, SCHEMA)
    fields = Fields(DATA)
    return Site(database, routes(Signups(database, fields), fields), load_files(ROOT, DATA))


def routes(signups: Signups, fields: Fields) -> Mapping[str, Handler]:
    def count(request: Request) -> Reply:
        return Reply(200, {"count": signups.count()})

    def sign_up(request: Request) -> Reply:
        email = checked_email(request.text("email", max_chars=254))
        is_new = signups.add(email, fields.sent(request), now=time.time())
        return Reply(201 if is_new else 200, {"count": signups.count(), "new": is_new})

    return {f"GET {API}": count, f"POST {API}": sign_up}


if __name__ == "__main__":
    sys.exit(main(create_site))
