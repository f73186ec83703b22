"""A build as a person watches it: what is folded from its stream, and how that looks."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from schemas import Phase
from service.client import Client, Entry

LOG_LINES = 6
_STEPS = ("queued", *Phase)


@dataclass(slots=True)
class Step:
    """One line of the checklist."""

    state: str = "waiting"
    started: datetime | None = None
    duration_s: float | None = None
    remark: str = ""
    retried: tuple[datetime, str] | None = None
    """When what failed is tried again, and what is to be said from then on."""

    def remark_at(self, now: datetime) -> str:
        """What is said beside it."""
        if self.state != "done" and self.retried and now >= self.retried[0]:
            return self.retried[1]
        return self.remark


@dataclass(slots=True)
class Watched:
    """What is known of a job so far. Fed with entries, it never looks at a clock."""

    job_id: str
    goal: str
    project: str
    status: str = "queued"
    events: int = 0
    attempt: int = 0
    round: int = 1
    queued_at: datetime | None = None
    result: dict[str, Any] = field(default_factory=dict)
    cancelled_by: str | None = None
    """Who asked for it while it ran; of one that was queued the result says so."""
    ended_at: datetime | None = None
    files: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    repair_cost_usd: float = 0.0
    repair_tokens: int = 0
    mended: list[str] = field(default_factory=list)
    """What failed, by round, and went back to the runner."""
    steps: dict[str, Step] = field(default_factory=lambda: {name: Step() for name in _STEPS})
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.status in ("ready", "failed", "cancelled")

    @property
    def duration_s(self) -> float:
        """From queued to ended, by the events' own times."""
        if self.queued_at is None or self.ended_at is None:
            return 0.0
        return (self.ended_at - self.queued_at).total_seconds()

    def take(self, entry: Entry) -> str | None:
        """Fold one entry; a line that says it in plain text, None where nothing is worth one."""
        if entry.name == "reset":
            return "          (events were lost; from the beginning)"
        if entry.name == "progress":
            return self._take_progress(entry.data["kind"], entry.data["data"])
        at = datetime.fromisoformat(entry.data["time"])
        self.events = entry.data["jobversion"]
        return self._take_event(entry.name, entry.data["data"], at)

    def _take_event(self, name: str, data: dict[str, Any], at: datetime) -> str | None:
        self._count(data)
        match name:
            case "JobQueued":
                self.queued_at = at
                self.steps["queued"] = Step("running", at)
                return f"queued    job {self.job_id}"
            case "JobStarted":
                self.status, self.attempt = "starting", data["attempt"]
                self._end("queued", "done", at)
                if self.attempt == 1:
                    return f"starting  {data['worker']}"
                self._start_over("interrupted")
                return f"starting  {data['worker']} takes over (attempt {self.attempt})"
            case "PhaseStarted":
                self.status, self.round = data["phase"], data["round"]
                if data["phase"] == Phase.CODE and self.round > 1:
                    for later in (Phase.DEPS, Phase.CHECKS):  # what failed stays to be read
                        self.steps[later] = Step(remark=self.steps[later].remark)
                self.steps[data["phase"]] = Step("running", at)
                again = f" (round {self.round})" if self.round > 1 else ""
                return f"{data['phase']:<9} …{again}"
            case "RetryScheduled":
                text = f"{data['step']} failed, again in {data['wait_s']:.1f} s: {data['message']}"
                step = self.steps[data["phase"]]
                step.remark = _short(text, 80)
                again = f"{data['step']}, try {data['tries'] + 1}, after: {data['message']}"
                step.retried = (at + timedelta(seconds=data["wait_s"]), _short(again, 80))
                return f"{data['phase']:<9} {text}"
            case "PhaseCompleted":
                step = self.steps[data["phase"]]
                step.remark = _remark(data["evidence"])
                self._end(data["phase"], "done", at)
                return f"{data['phase']:<9} done in {data['duration_ms'] / 1000:.2f} s" + (
                    f"  {step.remark}" if step.remark else ""
                )
            case "ChecksFailed":
                phase = data["phase"]
                what = data["message"] or data["command"]
                self.mended.append(f"{phase}: {_short(what, 80)}")
                self._end(phase, "failed", at)
                self.steps[phase].remark, self.steps[phase].retried = _short(what, 80), None
                output = data["output"].splitlines()[-LOG_LINES:]
                self.log.extend(output)
                return "\n".join([f"{phase:<9} failed: {what}", *map(_quoted, output)])
            case "CancelRequested":
                self.status, self.cancelled_by = "cancelling", data["by"]
                return f"cancelling, asked by {data['by']}"
            case "JobReady" | "JobFailed" | "JobCancelled":
                self.status = name.removeprefix("Job").lower()
                self.result, self.ended_at = data, at
                for step_name, step in self.steps.items():
                    if step.state == "running":
                        self._end(step_name, _END[name], at)
                return None
        return None

    def _count(self, data: dict[str, Any]) -> None:
        """Add what an event says was used; in a later round than the first it was for a repair."""
        self.round = data.get("round", self.round)
        tokens = data.get("input_tokens", 0) + data.get("output_tokens", 0)
        self.tokens += tokens
        self.cost_usd += data.get("cost_usd", 0.0)
        if self.round > 1:
            self.repair_tokens += tokens
            self.repair_cost_usd += data.get("cost_usd", 0.0)

    def _take_progress(self, kind: str, data: dict[str, Any]) -> str | None:
        if kind == "file":
            self.files += 1
            self.steps["code"].remark = f"{self.files} files"
            self.steps["code"].retried = None
            line = f"wrote {data['path']} ({data['size_bytes']} bytes)"
        elif kind == "log":
            line = data["text"]
        else:
            line = f"{kind}: {data}"
        self.log.extend(line.splitlines())
        return "\n".join(map(_quoted, line.splitlines()))

    def _start_over(self, state: str) -> None:
        """What ran when its worker was lost runs no more; the next worker begins it again."""
        for step in self.steps.values():
            if step.state == "running":
                step.state = state

    def _end(self, name: str, state: str, at: datetime) -> None:
        step = self.steps[name]
        if step.state != "running":
            return  # a takeover does not end what had ended before
        step.state = state
        if step.started:
            step.duration_s = (at - step.started).total_seconds()


class Screen:
    """Shows a `Watched`: a live checklist at a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._began = time.monotonic()

    def show(self, watched: Watched, line: str | None) -> None:
        """Show what `watched` has become; `line` is what its last entry said."""
        if not self._console.is_terminal:
            if line:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        if self._live is None:
            draw: Callable[[], RenderableType] = lambda: self._draw(watched)  # noqa: E731
            self._live = Live(get_renderable=draw, console=self._console, refresh_per_second=12)
            self._live.start()

    def close(self) -> None:
        """Leave the last picture standing."""
        if self._live:
            self._live.stop()
            self._live = None

    def _draw(self, watched: Watched) -> RenderableType:
        head = Text.assemble(
            ("Headrace  ", "bold cyan"), (_short(watched.goal), "bold"), "\n",
            (f"project {watched.project} · job {watched.job_id}", "dim"),
            (_again(watched), "yellow"), "\n",
        )  # fmt: skip
        table = Table.grid(padding=(0, 2))
        table.add_column(width=2)
        table.add_column(width=9)
        table.add_column(justify="right", width=8)
        table.add_column(overflow="ellipsis", no_wrap=True)
        now = datetime.now(UTC)
        for name, step in watched.steps.items():
            table.add_row(
                self._mark(step), Text(name, _STYLE[step.state]), _took(step), step.remark_at(now)
            )
        parts: list[RenderableType] = [head, table]
        if watched.log and watched.status != "ready":
            parts.append(Text())
            parts += [Text(f"  {_short(line, 110)}", "dim") for line in watched.log]
        return Group(*parts)

    def _mark(self, step: Step) -> RenderableType:
        return self._spinner if step.state == "running" else Text(*_MARK[step.state])


async def watch(client: Client, watched: Watched, screen: Screen) -> Watched:
    """Follow a job to its end, showing it."""
    try:
        async for entry in client.follow(watched.job_id):
            screen.show(watched, watched.take(entry))
    finally:
        screen.close()
    return watched


_STYLE = {
    "waiting": "dim",
    "running": "cyan",
    "done": "",
    "failed": "red",
    "interrupted": "yellow",
    "stopped": "yellow",
}
_MARK = {
    "waiting": ("·", "dim"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
    "interrupted": ("↻", "yellow"),
    "stopped": ("■", "yellow"),
}


def cost(usd: float, of_repairs_usd: float) -> str:
    """Money as a person reads it, that for repairs apart."""
    if not usd:
        return ""
    return f"${usd:.4g}" + (f" (repairs ${of_repairs_usd:.4g})" if of_repairs_usd else "")


def summary(watched: Watched) -> str:
    """How it ended, in rich markup: what a person does next stands in it."""
    ended = _ended(watched)
    if watched.tokens or watched.cost_usd:
        money = cost(watched.cost_usd, watched.repair_cost_usd)
        ended += f"\n  Used       {watched.tokens:,} tokens{', ' if money else ''}{money}"
    return ended


def _ended(watched: Watched) -> str:
    result = watched.result
    if watched.status == "ready":
        lines = [
            f"[bold green]READY[/]  {result['build_version']}  in {watched.duration_s:.1f} s, "
            f"{watched.events} events"
        ]
        if result["preview_url"]:
            lines.append(f"  Preview    [bold link]{escape(result['preview_url'])}[/]")
        if result["workspace_path"]:
            lines.append(f"  Files      {escape(result['workspace_path'])}")
        if watched.mended:
            used = f" ({watched.repair_tokens:,} tokens)" if watched.repair_tokens else ""
            what = escape("; ".join(watched.mended))
            lines.append(f"  Repairs    {len(watched.mended)}{used}: {what}")
        return "\n".join(lines)
    if watched.status == "failed":
        phase = f" in {result['phase']}" if result["phase"] else ""
        return (
            f"[bold red]FAILED[/]{phase}: {escape(result['message'])}\n"
            f"  Debug id   {escape(result['debug_id'])}\n"
            f"  Log        ./headrace logs {watched.job_id}\n"
            f"  History    ./headrace replay show {watched.job_id}"
        )
    return f"[bold yellow]CANCELLED[/] by {escape(watched.cancelled_by or result['by'])}"


_END = {"JobReady": "done", "JobFailed": "failed", "JobCancelled": "stopped"}


def _again(watched: Watched) -> str:
    """What is out of the ordinary: a repair, a takeover, a cancel under way."""
    said = []
    if watched.round > 1:
        said.append(f"repair {watched.round - 1}")
    if watched.attempt > 1:
        said.append(f"attempt {watched.attempt}")
    if watched.status == "cancelling":
        said.append("cancelling …")
    return "".join(f" · {one}" for one in said)


def _quoted(line: str) -> str:
    return f"          | {line}"


def _remark(evidence: dict[str, Any]) -> str:
    if evidence.get("simulated"):
        return "simulated"
    if "restored_build" in evidence:
        return f"{evidence['files']} files of build {evidence['restored_build']}, as they were"
    if "files" in evidence:
        return f"{evidence['files']} files by the {evidence['runner']} runner"
    if evidence.get("base_files"):
        return f"{evidence['base_files']} files of build {evidence.get('base_build')}"
    if "create_ms" in evidence:
        return f"sandbox {evidence['sandbox_id']}"
    if "probe_status" in evidence:
        return f"tests passed, preview answered {evidence['probe_status']}"
    return ""


def _took(step: Step) -> str:
    if step.duration_s is not None:
        return f"{step.duration_s:.2f} s"
    if step.state == "running" and step.started:
        return f"{max(0.0, time.time() - step.started.timestamp()):.1f} s"
    return ""


def _short(line: str, most: int = 100) -> str:
    line = " ".join(line.split())
    return line if len(line) <= most else line[: most - 1] + "…"
