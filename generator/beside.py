"""Work with something else beside it, as one piece."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def beside(
    background: Callable[[], Coroutine[Any, Any, None]], work: Callable[[], Awaitable[T]]
) -> T:
    """What `work` gives. `background` runs as long, and is cancelled then; it raises nothing.

    An error of `work` leaves as itself: a task group alone would wrap it in a group.
    """
    error: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(background)
        try:
            result = await work()
        except Exception as raised:  # noqa: BLE001 - raised again below
            error = raised
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    return result
