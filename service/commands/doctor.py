"""Saying what is wrong: doctor."""

import sys
from collections import defaultdict

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.commands.terminal import (
    AsJson,
    err,
    out,
    print_json,
    reached_servers,
    run_until_interrupted,
)
from service.doctor import Finding, Level, examine, unreached
from service.doctor.finding import problem
from service.doctor.surroundings import (
    check_instance,
    check_runner,
    check_sandbox,
    check_settings,
)
from service.embedded import Servers
from service.errors import ServiceError, SettingsInvalid
from service.instance import Instance
from service.known_secrets import redactor_of_this_process
from service.logging import configure_logging
from service.settings import Settings

_TICKS = {
    Level.OK: ("✓", "green"),
    Level.WARNING: ("!", "yellow"),
    Level.PROBLEM: ("✗", "red"),
    Level.UNKNOWN: ("·", "dim"),
}


def doctor(as_json: AsJson = False) -> None:
    """Say what is wrong, why it matters, and what mends it.

    It examines settings, servers, secrets, log, jobs, read model, runner and sandboxes.

    It changes nothing; the embedded servers are started for it unless they run.

    Exit code 1 when there is a problem; warnings alone leave it at 0.
    """
    redactor = redactor_of_this_process()
    configure_logging(sys.stderr, redactor)
    with err.status("Examining …"):
        findings = redactor.within(_examine())
    if as_json:
        worst = "problem" if _is_wrong(findings) else "ok"
        print_json({"status": worst, "findings": [finding.to_dict() for finding in findings]})
    else:
        show(out, findings)
    if _is_wrong(findings):
        raise typer.Exit(1)


def _is_wrong(findings: list[Finding]) -> bool:
    return any(finding.level is Level.PROBLEM for finding in findings)


def _examine() -> list[Finding]:
    try:
        settings = Settings.read()
    except SettingsInvalid as error:
        variable = str(error).split(":")[0].split()[0]
        why = "Nothing starts with it, and nothing else can be examined."
        return [problem("settings", str(error), why, f"unset {variable}")]
    findings = [check_settings(settings), check_instance(settings)]

    async def ask(servers: Servers) -> None:
        findings.extend(await examine(settings, servers, at_rest=at_rest))

    async def try_builders() -> None:
        findings.append(await check_runner(settings))
        findings.append(await check_sandbox(settings))

    at_rest = Instance.find(settings) is None and not settings.redis_url
    try:
        with reached_servers(settings) as servers:
            run_until_interrupted(lambda: ask(servers))
    except ServiceError as error:
        findings.append(unreached(error))
    run_until_interrupted(try_builders)
    return findings


def show(console: Console, findings: list[Finding]) -> None:
    """A line for each finding, then why it matters and what is to be done."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        if finding.level is not Level.UNKNOWN:
            table.add_row(_tick(finding.level), finding.check, Text(finding.says))
    for reason, checks in _unknown(findings).items():
        said = Text(f"{', '.join(checks)}: {reason}", style="dim")
        table.add_row(_tick(Level.UNKNOWN), Text("unknown", style="dim"), said)
    console.print(table)
    for level in (Level.PROBLEM, Level.WARNING):
        for finding in findings:
            if finding.level is level:
                _show_remedy(console, finding)
    console.print(Text.assemble("\n", _summary(findings)))


def _tick(level: Level) -> Text:
    tick, style = _TICKS[level]
    return Text(tick, style=style)


def _unknown(findings: list[Finding]) -> dict[str, list[str]]:
    """What could not be told, by the reason."""
    checks: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.level is Level.UNKNOWN:
            checks[finding.says].append(finding.check)
    return checks


def _show_remedy(console: Console, finding: Finding) -> None:
    style = _TICKS[finding.level][1]
    said = Table.grid(padding=(0, 2, 0, 0))
    says = Text.assemble((f"{finding.check}: ", "bold"), finding.says)
    said.add_row(_tick(finding.level), says)
    said.add_row("", Text(finding.why))
    console.print()
    console.print(said)
    # What is pasted into a shell must not be folded.
    console.print(Text.assemble(("→  ", style), (finding.remedy, "bold")), soft_wrap=True)


def _summary(findings: list[Finding]) -> Text:
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    to_think_about = f"; {warnings} to think about" if warnings else ""
    if problems:
        return Text(f"{problems} to mend{to_think_about}.", style="bold red")
    if warnings:
        return Text(f"Nothing is wrong{to_think_about}.", style="bold yellow")
    return Text("Nothing is wrong.", style="bold green")
