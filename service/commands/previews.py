"""The preview of a build: asking for it, ending it."""

from datetime import UTC, datetime
from typing import Annotated, Any

import anyio
import typer

from service.client import Client
from service.commands.terminal import AsJson, Project, api, friendly, out, print_json, run
from service.errors import ApiError

LONGEST_S = 900.0
_LOOK_AGAIN_S = 0.3


def preview(
    number: Annotated[int, typer.Argument(min=1, help="The build's number.", show_default=False)],
    project: Project = "default",
    end: Annotated[bool, typer.Option("--end", help="End it; its files stay.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let the preview of a build answer: kept alive, woken, or made anew from its files."""

    async def ask(url: str, key: str) -> dict[str, Any]:
        async with Client(url, key) as client:
            if end:
                return await client.preview("DELETE", project, number)
            state = await client.preview("POST", project, number)
            with anyio.move_on_after(LONGEST_S):
                while state["preview"] == "waking":
                    await anyio.sleep(_LOOK_AGAIN_S)
                    state = await client.preview("GET", project, number)
            return state

    with friendly():
        state = run(ask, *api())
        if as_json:
            print_json(state)
        elif end:
            out.print(f"The preview of build {number} has ended; its files are kept.")
        elif state["preview"] == "running":
            words = preview_words(state["preview"], state["expires_at"])
            out.print(f"[bold link]{state['preview_url']}[/]  {words}", highlight=False)
        else:
            raise ApiError(
                0,
                f"the preview of build {number} is {state['preview']}: see why with "
                f"./headrace replay show {state['job_id']}",
            )


def preview_words(preview: str | None, expires_at: str | None) -> str:
    """How a preview is and how long it lasts, in a word or two: `ends in 12 min`."""
    if preview != "running" or expires_at is None:
        return preview or ""
    left = duration_words((datetime.fromisoformat(expires_at) - datetime.now(UTC)).total_seconds())
    return f"ends in {left}" if left else "ends now"


def duration_words(seconds: float) -> str:
    """A time in the largest unit that fits, rounded down; empty when there is none."""
    if seconds <= 0:
        return ""
    for size_s, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{int(seconds // size_s)} {name}"
    return f"{int(seconds)} s"
