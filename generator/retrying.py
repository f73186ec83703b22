"""Trying again what may pass, said in the log before each wait."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count
from typing import TypeVar

import anyio
import structlog

from generator.build import Build
from generator.errors import GenerationError
from generator.output import for_people
from schemas.commands import ScheduleRetry

T = TypeVar("T")

log = structlog.get_logger()


def may_pass(error: GenerationError) -> bool:
    """Whether the same step may succeed later."""
    return error.may_pass


async def retrying(
    build: Build,
    step: str,
    action: Callable[[], Awaitable[T]],
    *,
    again: Callable[[GenerationError], bool] = may_pass,
    tries: int | None = None,
) -> T:
    """What `action` gives, which is tried again after an error that `again` says yes to.

    As the build's patience has it, at most `tries` times. Each further try is told in the log, as
    `step`, before the wait. Raises the last error.
    """
    patience = build.patience if tries is None else replace(build.patience, tries=tries)
    waited_s = 0.0
    for number in count(1):
        try:
            return await action()
        except GenerationError as error:
            asked_s = getattr(error, "retry_after_s", None)
            chance = random.random()  # noqa: S311 - no secret
            wait_s = round(patience.wait_s(number, asked_s, chance), 3)
            waited_s += wait_s
            if waited_s > patience.total_s or number >= patience.tries or not again(error):
                raise
            retry = ScheduleRetry(step, number, error.kind, for_people(error), wait_s)
        await build.tell(retry)
        log.warning("step_retried", job=build.job.job, step=step, tries=number, kind=retry.kind)
        await anyio.sleep(wait_s)
    raise AssertionError("the loop ends by returning or raising")
