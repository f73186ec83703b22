"""Builds of a project: list, show, files, diff, download, restore."""

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from service.client import Client
from service.commands.jobs import ask, follow_job
from service.commands.previews import preview_words
from service.commands.terminal import AsJson, Project, err, friendly, out, print_json
from service.errors import ServiceError

_PAGE = 200
_PREVIEW_STYLE = {"running": "green", "waking": "cyan", "paused": "yellow", "expired": "dim"}
_LINE_STYLES = (
    ("+++", "bold"),
    ("---", "bold"),
    ("@@", "cyan"),
    ("+", "green"),
    ("-", "red"),
    (" ", ""),
)

builds = typer.Typer(invoke_without_command=True, add_completion=False)

Number = Annotated[int, typer.Argument(min=1, help="The build's number.", show_default=False)]


@builds.callback()
def list_(
    context: typer.Context,
    project: Project = "default",
    limit: Annotated[int, typer.Option(min=1, max=_PAGE, help="How many.")] = 20,
    before: Annotated[int | None, typer.Option(min=1, help="Only lower numbers.")] = None,
    as_json: AsJson = False,
) -> None:
    """The builds of a project, newest first; and what is in them."""
    if context.invoked_subcommand is not None:
        return
    with friendly():
        page = ask(lambda client: client.builds(project, before=before, limit=limit))
    if as_json:
        print_json(page["builds"])
    else:
        out.print(_table(page["builds"]) if page["builds"] else "No builds yet.")


@builds.command()
def show(number: Number, project: Project = "default", as_json: AsJson = False) -> None:
    """One build: what for, from which, where it runs, and its files."""

    async def question(client: Client) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        build = await client.build(project, number)
        listed = await client.files(project, number) if build["manifest"] else {"files": []}
        return build, listed["files"]

    with friendly():
        build, listed = ask(question)
    if as_json:
        print_json({**build, "files": listed})
        return
    size_bytes = sum(file["size_bytes"] for file in listed)
    facts = {
        "Goal": build["goal"],
        "From": f"build {build['parent']}" if build["parent"] else "nothing",
        "Ready": _when(build["ready_at"]),
        "Preview": f"{_preview(build) or 'none'} {build['preview_url'] or ''}".strip(),
        "Files": f"{len(listed)}, {size_bytes:,} bytes" if listed else "none",
        "Job": build["job_id"],
        "Cost": f"${build['cost_usd']:.4f}",
    }
    out.print(f"[bold]{build['version']}[/] of {build['project_id']}", highlight=False)
    for name, value in facts.items():
        out.print(Text(f"  {name:<9}{value}"), highlight=False, soft_wrap=True)


@builds.command()
def files(number: Number, project: Project = "default", as_json: AsJson = False) -> None:
    """The files of a build."""
    with friendly():
        listed = ask(lambda client: client.files(project, number))
    if as_json:
        print_json(listed["files"])
        return
    for file in listed["files"]:
        line = f"{file['mode']}  {file['size_bytes']:>9,}  {file['sha256'][:12]}  {file['path']}"
        out.print(Text(line), highlight=False, soft_wrap=True)


@builds.command()
def diff(
    first: Annotated[int, typer.Argument(min=1, metavar="N", help="From this build …")],
    second: Annotated[
        int | None,
        typer.Argument(min=1, metavar="M", help="… to this one; alone, N against its parent."),
    ] = None,
    project: Project = "default",
    as_json: AsJson = False,
) -> None:
    """What changed from build N to build M, as a patch that `git apply` takes."""
    number, against = (first, None) if second is None else (second, first)
    with friendly():
        found = ask(lambda client: client.diff(project, number, against))
    if as_json:
        print_json(found)
        return
    for file in found["files"]:
        if file["patch"] is not None:
            for line in file["patch"].removesuffix("\n").split("\n"):
                out.print(_coloured(line), highlight=False, soft_wrap=True)
        else:
            err.print(f"{file['path']}: {file['change']}, {file['note']}", highlight=False)
    if not found["files"]:
        err.print(f"Builds {found['against']} and {found['number']} have the same files.")


@builds.command()
def download(
    number: Number,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to: FILE.zip or FILE.tar.gz."),
    ] = None,
    project: Project = "default",
) -> None:
    """All files of a build as a zip or tar.gz."""
    with friendly():
        target = output or Path(f"{project}-build_v0_{number}.zip")
        form = _form(target)
        size_bytes = ask(_downloading(project, number, form, target))
        out.print(f"{target}: {size_bytes:,} bytes", highlight=False, soft_wrap=True, markup=False)


@builds.command()
def restore(
    number: Number,
    project: Project = "default",
    tier: Annotated[str | None, typer.Option(help="free or pro.")] = None,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Watch it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a new build with exactly the files of build N."""
    with friendly():
        accepted = ask(lambda client: client.restore(project, number, tier))
        if as_json:
            print_json(accepted)
        elif not follow:
            out.print(f"queued as job [bold]{accepted['job_id']}[/]", highlight=False)
    if follow:
        follow_job(accepted["job_id"], err if as_json else out)


def _downloading(
    project: str, number: int, form: str, target: Path
) -> Callable[[Client], Awaitable[int]]:
    async def act(client: Client) -> int:
        size_bytes = 0
        with _whole(target) as file:
            async for piece in client.archive(project, number, form):
                size_bytes += file.write(piece)
        return size_bytes

    return act


@contextmanager
def _whole(target: Path) -> Iterator[BinaryIO]:
    """A file that is at `target` once the block has ended well, and nowhere if it did not."""
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(target)
    except OSError as error:
        raise ServiceError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _form(target: Path) -> str:
    for form in ("zip", "tar.gz"):
        if target.name.endswith(f".{form}"):
            return form
    if target.name.endswith(".tgz"):
        return "tar.gz"
    raise ServiceError(f"{target}: name it .zip or .tar.gz, so that I know how to pack it")


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("BUILD", "FROM", "READY", "PREVIEW"):
        table.add_column(title, no_wrap=True, justify="right" if title == "FROM" else "left")
    table.add_column("GOAL", overflow="fold")
    for build in found:
        preview = f"{build['preview_url'] or ''} {_preview(build)}".strip()
        table.add_row(
            f"[bold]{build['version']}[/]",
            str(build["parent"] or ""),
            _when(build["ready_at"]),
            Text(preview, _PREVIEW_STYLE.get(build["preview"] or "", "")),
            escape(" ".join(build["goal"].split())[:100]),
        )
    return table


def _preview(build: dict[str, Any]) -> str:
    return preview_words(build["preview"], build["expires_at"])


def _when(time: str) -> str:
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _coloured(line: str) -> Text:
    if not sys.stdout.isatty():
        return Text(line)
    style = next((style for start, style in _LINE_STYLES if line.startswith(start)), "bold")
    return Text(line, style)
