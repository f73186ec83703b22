"""Numbers that are proposed: hints, so few refusals are what counts. The log decides."""

import pytest

from eventstore import CommandHandler, EventStore
from generator.numbering import Numbering

TENANT, PROJECT = "acme", "shop"


@pytest.fixture
def numbering(store: EventStore) -> Numbering:
    return Numbering(store)


async def proposed(numbering: Numbering, count: int) -> list[int]:
    return [await numbering.propose(TENANT, PROJECT) for _ in range(count)]


async def test_builds_that_end_together_are_given_numbers_in_a_row(numbering: Numbering) -> None:
    assert await proposed(numbering, 3) == [1, 2, 3]
    assert await numbering.propose(TENANT, "another") == 1


async def test_it_goes_on_behind_the_newest_build(
    numbering: Numbering, handler: CommandHandler
) -> None:
    store = handler.store
    await store.redis.hset(store.keys(TENANT).builds, f"{TENANT}/{PROJECT}", "7")
    assert await proposed(numbering, 2) == [8, 9]


async def test_whom_another_process_has_overtaken_goes_on_behind_it(numbering: Numbering) -> None:
    first, second = await proposed(numbering, 2)
    again = [
        numbering.propose_after(TENANT, PROJECT, refused=number, last=5)
        for number in (first, second)
    ]
    assert again == [6, 7]


async def test_a_number_that_nobody_took_is_proposed_again(numbering: Numbering) -> None:
    _, second, third = await proposed(numbering, 3)  # the first one's build was cancelled
    assert numbering.propose_after(TENANT, PROJECT, refused=second, last=0) == 1
    # The other one is refused too, and then once more, as it is overtaken by the second.
    assert numbering.propose_after(TENANT, PROJECT, refused=third, last=0) == 1
    assert numbering.propose_after(TENANT, PROJECT, refused=1, last=1) == 2
