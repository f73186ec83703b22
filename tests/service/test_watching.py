"""What a person sees of a build that does not go straight: retries, repairs, takeovers, cancels."""

from collections.abc import Sequence
from datetime import timedelta
from io import StringIO

from rich.console import Console

from schemas import Phase
from schemas.events import (
    CancelRequested,
    ChecksFailed,
    JobCancelled,
    Known,
    PhaseStarted,
    RetryScheduled,
)
from service.client import Entry
from service.watching import Screen, Watched, summary
from tests.histories import NOON, entered, phases, queued, ready, started


def watched(events: Sequence[Known]) -> tuple[Watched, str]:
    """The job as it is seen after these events, and the lines that told them."""
    seen, lines = Watched("j-1", "a list", "shop"), []
    for version, payload in enumerate(events, 1):
        data = {
            "time": (NOON + timedelta(seconds=version)).isoformat(),
            "jobversion": version,
            "data": payload.model_dump(mode="json"),
        }
        lines.append(seen.take(Entry(f"{version}-0", payload.type, data)) or "")
    return seen, "\n".join(lines)


def drawn(seen: Watched) -> str:
    console = Console(file=StringIO(), width=120, force_terminal=False)
    console.print(Screen(console)._draw(seen))
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


BEGUN = [queued(), started(), *phases(Phase.SCAFFOLD, Phase.CODE), entered(Phase.DEPS)]


def test_a_retry_says_what_is_waited_for_and_how_long() -> None:
    retry = RetryScheduled(
        phase=Phase.DEPS, step="create_sandbox", tries=1, kind="x", message="full", wait_s=2.5
    )
    seen, lines = watched([*BEGUN, retry])
    assert "deps      create_sandbox failed, again in 2.5 s: full" in lines
    step, at = seen.steps["deps"], NOON + timedelta(seconds=len(BEGUN) + 1)
    assert step.remark_at(at) == "create_sandbox failed, again in 2.5 s: full"
    # Nobody waits any more: what is under way now may take long.
    assert step.remark_at(at + timedelta(seconds=2.5)) == "create_sandbox, try 2, after: full"
    assert "create_sandbox, try 2, after: full" in drawn(seen)
    step.state = "done"
    assert "try 2" not in step.remark_at(at + timedelta(seconds=3))


def test_a_repair_says_what_failed_and_which_round_it_is() -> None:
    failed = ChecksFailed(
        phase=Phase.DEPS,
        round=1,
        fingerprint="f",
        command="npm ci",
        exit_code=1,
        output="npm ERR!",
        message="it cannot be installed",
    )
    seen, lines = watched([*BEGUN, failed, PhaseStarted(phase=Phase.CODE, round=2)])
    assert "deps      failed: it cannot be installed\n          | npm ERR!" in lines
    assert "code      … (round 2)" in lines
    assert (seen.steps["code"].state, seen.steps["deps"].state) == ("running", "waiting")
    assert "· repair 1" in drawn(seen)
    assert "it cannot be installed" in drawn(seen)


def test_the_end_says_how_often_was_repaired_what_had_failed_and_what_that_used() -> None:
    def failure(phase: Phase, number: int, message: str) -> ChecksFailed:
        return ChecksFailed(
            phase=phase,
            round=number,
            fingerprint=message,
            command="npm ci",
            exit_code=1,
            output="",
            message=message,
        )

    first = [queued(), started(), *phases(Phase.CODE)]
    repairs = [
        failure(Phase.DEPS, 1, "it cannot be [installed]"),
        *phases(Phase.CODE, number=2),
        failure(Phase.CHECKS, 2, "the app's own tests fail"),
        *phases(Phase.CODE, number=3),
    ]
    seen, _ = watched([*first, *repairs, ready()])
    said = Console(file=StringIO(), width=200)
    said.print(summary(seen), highlight=False)
    assert said.file.getvalue().splitlines()[-2:] == [  # type: ignore[attr-defined]
        "  Repairs    2 (26 tokens): deps: it cannot be [installed]; "
        "checks: the app's own tests fail",
        "  Used       39 tokens, $0.75 (repairs $0.5)",
    ]
    assert "Repairs" not in summary(watched([*first, ready()])[0])


def test_a_takeover_says_who_goes_on_and_what_was_interrupted() -> None:
    seen, lines = watched([*BEGUN, started(2)])
    assert "takes over (attempt 2)" in lines
    assert seen.steps["deps"].state == "interrupted"
    assert "· attempt 2" in drawn(seen)
    assert seen.steps["queued"].duration_s == 1.0, "it waited before the first one alone"


def test_a_cancelled_step_was_stopped_and_did_not_fail() -> None:
    seen, lines = watched([*BEGUN, CancelRequested(by="ann")])
    assert "cancelling, asked by ann" in lines
    assert "· cancelling …" in drawn(seen)
    seen, _ = watched([*BEGUN, CancelRequested(by="ann"), JobCancelled(by="worker")])
    assert seen.steps["deps"].state == "stopped"
    assert "CANCELLED[/] by ann" in summary(seen)
    seen, _ = watched([queued(), JobCancelled(by="bob")])
    assert summary(seen).endswith("by bob")
