"""Work on Headrace itself: bench, test."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.commands.terminal import AsJson, err, friendly, out, print_json
from service.errors import ServiceError
from service.settings import ROOT

# Drawn by a thread of the process that is measured: seldom.
_REFRESHES_A_SECOND = 2

test = typer.Typer(add_completion=False)


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help=("append, build, chaos, follow, jobs, log, memory, project, replay or steady."),
            show_default=False,
        ),
    ],
    events: Annotated[
        int | None,
        typer.Option(
            min=300, help="Measure with so many events instead; rounds and time scale with them."
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=24 * 60, help="How long chaos goes on.")
    ] = 1.0,
    redis_url: Annotated[
        str | None, typer.Option("--redis", help="Measure this empty Redis …")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option("--postgres", help="… and this empty PostgreSQL instead.")
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Measure others, too, beside jobs, project, replay; installs them once."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure something beside a limit of the same machine, in the same run.

    Medians of several rounds, which alternate with those of the other side.
    How long each takes is said of two cores.

    append (1,000,000 events, 4 min): events a second, sequential, concurrent,
    pipelined and batched, beside raw XADD; and while the log grows to that
    size, which takes 3 GB of disk and 1 GB of memory (3000000: three times).

    build (120 events, 30 s): from the request to a preview that was checked,
    what of it is not the app's own work, and each step; medians of ten builds,
    twelve events each.

    chaos (--minutes 1): workers are killed and frozen, servers and sandboxes
    killed, jobs cancelled, at random, while apps are built; then a table of
    what was done, what was found, and what was left over on the machine.
    Exit code 1 when anything was wrong.

    follow (15,000 events, 1 min): how soon 2,000 followers have events that
    come at 500 a second, beside a limit of 50 ms; and their connections.

    jobs (55,000 events, 2 min): whole jobs a second through one worker process
    and through two, beside raw XADD of as many entries; and how long a job
    waits for an idle worker, a follower for the first event, a cancel for its
    end, and the jobs of a killed worker for another. With --peers also beside
    DBOS and taskiq on the same servers.

    log (100,000 events, 1 min): events a second that are read and decoded,
    beside raw XRANGE.

    memory (100,000 events, 1 min): bytes of an event, a living job and a
    follower.

    project (200,000 events, 3 min): events a second from the log into archive
    and read model, beside reading alone and writing alone; and how far it is
    behind 2,000 events a second. With --peers also beside a projection of the
    library eventsourcing.

    replay (1,000,000 events, 5 min): events a second of a rebuild, beside
    reading the archive alone, in one process and in several; and how long
    readers wait for the swap. With --peers as project.

    steady (1,000,000 events, 6 min): what Redis holds while so many events
    go through it and are archived, trimmed and expire.
    """
    from benchmarks import BENCHMARKS, WITH_PEERS, Target, bench_chaos, show_rows

    with friendly():
        if name == "chaos":
            with err.status("starting the servers", refresh_per_second=1) as status:
                found = bench_chaos(status.update, minutes=minutes)
            found.show(out)
            raise typer.Exit(0 if found.is_clean else 1)
        if name not in BENCHMARKS:
            raise ServiceError(f"no benchmark {name!r}; there is chaos, {', '.join(BENCHMARKS)}")
        if peers and name not in WITH_PEERS:
            raise ServiceError(
                f"--peers is for {', '.join(WITH_PEERS)}: the others have no peers to stand beside"
            )
        size = {} if events is None else {"events": events}
        target = Target(redis_url, database_url, with_peers=peers)
        with err.status("starting the servers", refresh_per_second=_REFRESHES_A_SECOND) as status:
            rows = BENCHMARKS[name](target, status.update, **size)
        if as_json:
            print_json([row.to_dict() for row in rows])
        else:
            show_rows(out, rows)


@test.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _test(context: typer.Context) -> None:
    """Lint, check types and imports, run the tests; with arguments, pytest alone with them."""
    python = [sys.executable, "-m"]
    pytest = [*python, "pytest"]
    if context.args:
        _begun("pytest")
        _done("pytest", subprocess.run([*pytest, *context.args], cwd=ROOT, check=False).returncode)
        return
    steps = {
        "ruff check": [*python, "ruff", "check", "--quiet", "."],
        "ruff format": [*python, "ruff", "format", "--check", "--quiet", "."],
        "import-linter": [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
    }
    for name, step in steps.items():
        _begun(name)
        _done(name, subprocess.run(step, cwd=ROOT, check=False).returncode)
    # Side by side: mypy keeps one core busy for a minute.
    _begun("mypy, pytest")
    types = subprocess.Popen([*python, "mypy"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    # A file stays in one process: its tests share servers and instances. The long ones begin.
    # One process more than there are cores: each waits for servers a third of its time.
    processes = str(len(os.sched_getaffinity(0)) + 1)
    tests = subprocess.Popen(
        [*pytest, "-n", processes, "--dist", "loadfile", "--no-loadscope-reorder"], cwd=ROOT
    )
    said, _ = types.communicate()
    if types.returncode != 0:
        tests.send_signal(signal.SIGINT)
    ended = tests.wait()
    err.print(said, end="", highlight=False, markup=False)
    _done("mypy", types.returncode)
    _done("pytest", ended)


def _begun(name: str) -> None:
    err.print(f"[bold]── {name}[/]", highlight=False)


def _done(name: str, returncode: int) -> None:
    """Nothing, if it has passed."""
    if returncode != 0:
        err.print(f"[bold red]headrace:[/] {name} failed", highlight=False)
        raise typer.Exit(returncode)
