"""Failures of an app that its runner may mend: when they are equal, and when to give up. Pure."""

import re
from collections.abc import Sequence
from hashlib import sha256

from generator.budget import exhausted
from generator.errors import CheckFailed
from generator.output import clean, for_people, last_line
from generator.runner import Failure
from schemas import Job
from schemas.commands import NO_USAGE, RecordFailedChecks
from schemas.events import ChecksFailed

# What differs between two runs that fail for the same reason, and what stands for it then. Plain
# numbers stay: `expected 3, got 4` is another failure than `expected 3, got 5`.
_VARYING = tuple(
    (re.compile(pattern, re.IGNORECASE), stand_in)
    for pattern, stand_in in (
        (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
        (r"\b0x[0-9a-f]+\b", "<address>"),
        (r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,}\b", "<hash>"),
        (r"\b\d{4}-\d\d-\d\d([t ]\d\d:\d\d(:\d\d([.,]\d+)?)?)?(z|[+-]\d\d:?\d\d)?", "<time>"),
        (r"\b\d{1,2}/[a-z]{3}/\d{4}[: ]\d\d:\d\d:\d\d", "<time>"),
        (r"\b\d\d:\d\d:\d\d([.,]\d+)?\b", "<time>"),
        (r"\b\d+([.,]\d+)? ?(ns|µs|us|ms|s|secs?|seconds?|m|min|minutes?)\b", "<duration>"),
        (r"\b(pid|process|port|thread)([ =:#]+)\d+", r"\1\2<number>"),
        (r"(127\.0\.0\.1|localhost|0\.0\.0\.0|\[::1?\]):\d+", r"\1:<port>"),
        (r"(/var)?/tmp/[^\s'\":,)]+", "<temporary>"),
        (r"[ \t]+", " "),
    )
)


def fingerprint(failure: CheckFailed) -> str:
    """Equal for equal failures, whenever and wherever they happen."""
    text = clean(f"{failure.command}\n{failure.exit_code}\n{failure}\n{failure.output}")
    for pattern, stand_in in _VARYING:
        text = pattern.sub(stand_in, text)
    return sha256(text.strip().encode()).hexdigest()[:16]


def record(failure: CheckFailed) -> RecordFailedChecks:
    """The command that puts a failure into the log."""
    return RecordFailedChecks(
        fingerprint=fingerprint(failure),
        command=failure.command,
        exit_code=failure.exit_code,
        output=failure.output,
        message=for_people(failure),
    )


def to_mend(job: Job) -> Failure | None:
    """What the runner has to mend in this round: a takeover reads it in the log."""
    failed = job.last_failure
    if job.round == 1 or failed is None:
        return None
    return Failure(_what_failed(failed), failed.command, failed.exit_code, failed.output)


def why_not_repair(job: Job) -> str | None:
    """Why the next round does not begin, in words; None when it may.

    A question to the job alone, so that a takeover answers it alike.
    """
    if job.round == 1:
        return None
    if job.restore:
        return "a restored build keeps its files, so that nothing is repaired in it"
    if job.limits.max_repairs == 0:
        return "no repair is allowed (max_repairs is 0)"
    if job.failures[-1] in job.failures[:-1]:
        return "the same failure came back"
    if len(job.failures) > job.limits.max_repairs:
        times = "repair was" if job.limits.max_repairs == 1 else "repairs were"
        return f"{job.limits.max_repairs} {times} tried, and no more are allowed (max_repairs)"
    if spent := exhausted(job, NO_USAGE):
        return f"the budget leaves nothing for a repair: {spent}"
    return None


def review_text(reason: str, failures: Sequence[ChecksFailed]) -> str:
    """What a person reads who has to decide how to go on: what was tried, and the ways out."""
    tried = [f"round {failed.round}: {_what_failed(failed)}" for failed in failures]
    return "\n".join(
        [
            f"The app does not pass its checks: {reason}. What was tried:",
            *tried,
            "Read the last failure, then ask again: say in the goal what has to be different, "
            "allow more repairs or a larger budget, or go on from an earlier build.",
        ]
    )


def _what_failed(failed: ChecksFailed) -> str:
    if failed.message:
        return failed.message
    ended = "did not end" if failed.exit_code is None else f"ended with {failed.exit_code}"
    return f"`{failed.command}` {ended}{last_line(failed.output)}"
