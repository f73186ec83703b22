"""Work on Headrace itself: bench, test."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.commands.terminal import AsJson, err, friendly, out, print_json
from service.errors import ServiceError
from service.settings import ROOT


def bench(
    name: Annotated[str, typer.Argument(help="What to measure: append.", show_default=False)],
    redis_url: Annotated[
        str | None, typer.Option("--redis", help="Measure this empty Redis …")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option("--postgres", help="… and this empty PostgreSQL instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure something beside a limit of the same machine, in the same run."""
    from benchmarks import BENCHMARKS, Target, show_rows

    with friendly():
        if name not in BENCHMARKS:
            raise ServiceError(f"no benchmark {name!r}; there is {', '.join(BENCHMARKS)}")
        rows = BENCHMARKS[name](Target(redis_url, database_url))
        if as_json:
            print_json([row.to_dict() for row in rows])
        else:
            show_rows(out, rows)


def test(context: typer.Context) -> None:
    """Lint, check types and imports, run the tests; with arguments, pytest alone with them."""
    python = [sys.executable, "-m"]
    steps = {
        "ruff check": [*python, "ruff", "check", "--quiet", "."],
        "ruff format": [*python, "ruff", "format", "--check", "--quiet", "."],
        "mypy": [*python, "mypy"],
        "import-linter": [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        "pytest": [*python, "pytest"],
    }
    if context.args:
        steps = {"pytest": [*python, "pytest", *context.args]}
    for name, step in steps.items():
        err.print(f"[bold]── {name}[/]", highlight=False)
        done = subprocess.run(step, cwd=ROOT, check=False)
        if done.returncode != 0:
            err.print(f"[bold red]headrace:[/] {name} failed", highlight=False)
            raise typer.Exit(done.returncode)
