"""What a job's commands, its app and its model have said: logs."""

from typing import Annotated, Any

import typer
from rich.text import Text

from schemas import Phase, Status
from service.client import Client
from service.commands.jobs import JobArgument, ask
from service.commands.terminal import err, friendly, out, print_json

_STYLE = {
    "command": "bold",
    "stderr": "yellow",
    "server": "magenta",
    "model": "cyan",
    "note": "dim italic",
}


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    phase: Annotated[Phase | None, typer.Option(help="Only what was said in this phase.")] = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(help="Only this one: command, stdout, stderr, server, model or note."),
    ] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", help="Only the last lines.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Show the log of a job: the whole of it once it has ended, and until then what was shown."""

    async def show(client: Client) -> str | None:
        entry: str | None = None
        async for line in client.logs(job, phase=phase, stream=stream, tail=tail):
            if "entry" in line:
                entry = line["entry"]
            else:
                _show(line, as_json=as_json)
        return await _follow(client, entry) if follow and entry is not None else None

    async def _follow(client: Client, after: str) -> str | None:
        """Show what comes behind an entry of the job's stream; how the job ended."""
        status: str | None = None
        async for entry in client.follow(job, after=after):
            status = _STATUS.get(entry.name, status)
            if entry.name != "progress":
                continue
            said = _CAPPED if entry.data["kind"] == "capped" else entry.data["data"]
            if "stream" not in said:  # a file that was written
                continue
            if (phase in (None, said["phase"])) and (not stream or said["stream"] in stream):
                for text in said["text"].split("\n"):
                    _show({"time": entry.data["time"], **said, "text": text}, as_json=as_json)
        return status

    with friendly():
        if status := ask(show):
            err.print(f"[dim]job {job} is {status}[/]", highlight=False)


_CAPPED = {"phase": "", "stream": "note", "text": "no more of this job is shown live"}
_STATUS = {"JobReady": Status.READY, "JobFailed": Status.FAILED, "JobCancelled": Status.CANCELLED}


def _show(line: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(line)
        return
    style = _STYLE.get(line["stream"], "")
    text = f"$ {line['text']}" if line["stream"] == "command" else line["text"]
    said = Text(text, style=style)
    if out.is_terminal:
        said = Text.assemble((f"{line['phase']:<9} ", "dim"), said)
    out.print(said, soft_wrap=True, highlight=False)
