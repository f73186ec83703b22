"""What one has used today: usage."""

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from service.commands.jobs import ask
from service.commands.terminal import AsJson, friendly, out, print_json

_UNITS = {
    "jobs": "jobs",
    "tokens": "tokens",
    "cost_usd": "US dollars",
    "wall_s": "seconds, of jobs that ended",
}


def usage(
    tier: Annotated[str | None, typer.Option(help="As for a job of this tier.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was used today, what may be, and when the day begins anew."""
    with friendly():
        found = ask(lambda client: client.usage(tier))
    if as_json:
        print_json(found)
        return
    today, jobs = found["today"], found["jobs"]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("TODAY", "USED", "OF"):
        table.add_column(title, justify="left" if title == "TODAY" else "right")
    for name, unit in _UNITS.items():
        used: dict[str, Any] = today[name]
        limit = "any" if used["limit"] is None else f"{used['limit']:,.10g}"
        table.add_row(unit, f"{used['used']:,.6g}", limit)
    out.print(table)
    resets_at = datetime.fromisoformat(today["resets_at"])
    out.print(
        f"tier {found['tier']}, begins anew at {resets_at:%Y-%m-%d %H:%M} UTC; "
        f"{jobs['running']} jobs run, at most {jobs['at_once']}, {jobs['waiting']} wait",
        highlight=False,
        soft_wrap=True,
    )
