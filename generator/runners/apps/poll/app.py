"""The API of the poll. `python3 app.py init` creates the database, `python3 app.py` serves."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from ballot_box import SCHEMA, BallotBox
from database import Database
from fields import Fields
from pages import load_data, load_files
from server import Handler, Refused, Reply, Request, Site, main

ROOT = Path(__file__).resolve().parent
DATA = load_data(ROOT)
API = "/api/votes"
ONE_YEAR_S = 365 * 24 * 3600


def create_site(database_path: Path) -> Site:
    database = Database(database_path, SCHEMA)
    fields = Fields(DATA)
    ballot_box = BallotBox(database, DATA["options"], fields)
    return Site(database, routes(ballot_box, fields), load_files(ROOT, DATA))


def routes(ballot_box: BallotBox, fields: Fields) -> Mapping[str, Handler]:
    def show(request: Request) -> Reply:
        return Reply(200, ballot_box.result(_voter(request)))

    def vote(request: Request) -> Reply:
        choice = request.number("choice")
        if choice >= len(DATA["options"]):
            raise Refused(422, "“choice” is not one of the options.")
        voter = _voter(request) or os.urandom(16).hex()
        ballot_box.vote(voter, choice, fields.sent(request))
        cookie = f"voter={voter}; Max-Age={ONE_YEAR_S}; Path=/; HttpOnly; SameSite=Lax"
        return Reply(201, ballot_box.result(voter), {"Set-Cookie": cookie})

    return {f"GET {API}": show, f"POST {API}": vote}


def _voter(request: Request) -> str | None:
    """The browser that voted, by the cookie it got then."""
    voter = request.cookies.get("voter", "")
    return voter if re.fullmatch("[0-9a-f]{32}", voter) else None


if __name__ == "__main__":
    sys.exit(main(create_site))
