"""Who waits for news is told whether there was a ring."""

from eventstore import Waker


async def test_a_wait_says_whether_it_was_woken() -> None:
    waker = Waker()
    assert not await waker.wait(0.01)
    waker.wake()
    assert await waker.wait(60)
    assert not await waker.wait(0.01)
