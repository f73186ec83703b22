"""Looks at jobs: when they ring, again where one failed, now and then, and not too late."""

from collections.abc import AsyncIterator

import anyio
import pytest

from eventstore import RedisUnavailable, lookout
from eventstore.lookout import Lookout


@pytest.fixture
async def looks() -> AsyncIterator[Lookout]:
    out = Lookout()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(out.run)
            yield out
            tasks.cancel_scope.cancel()


class Sight:
    """A look that fails in these ways, one after the other, and succeeds then."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.calls = 0
        self.seen = anyio.Event()

    async def look(self) -> None:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        self.seen.set()


async def test_only_who_looks_at_the_job_that_rings_is_called(looks: Lookout) -> None:
    one, other = Sight(), Sight()
    with looks.looking("one", one.look), looks.looking("other", other.look):
        looks.ring("one")
        await one.seen.wait()
    assert other.calls == 0


async def test_a_look_that_redis_refused_is_made_again(
    looks: Lookout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "_BACKOFF_S", 0)
    one = Sight(RedisUnavailable("away"))
    with looks.looking("one", one.look):
        looks.ring("one")
        await one.seen.wait()
    assert one.calls == 2


async def test_a_look_that_breaks_ends_no_other(looks: Lookout) -> None:
    broken, other = Sight(ZeroDivisionError()), Sight()
    with looks.looking("broken", broken.look), looks.looking("other", other.look):
        looks.ring("broken")
        await anyio.wait_all_tasks_blocked()
        looks.ring("other")
        await other.seen.wait()
    assert broken.calls == 1


async def test_a_lost_bell_costs_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_AGAIN_S", 0.01)
    looks, one = Lookout(), Sight()
    with anyio.fail_after(20), looks.looking("one", one.look):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(looks.run)
            await one.seen.wait()
            tasks.cancel_scope.cancel()


async def test_nobody_is_called_behind_the_block(looks: Lookout) -> None:
    gone, here = Sight(), Sight()
    with looks.looking("one", gone.look):
        looks.ring("one")
    with looks.looking("one", here.look):
        looks.ring("one")
        await here.seen.wait()
    assert gone.calls == 0
