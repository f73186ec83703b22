"""What a command leaves is not looked through when it ends."""

import gc
import weakref

from service.collector import spared


class Circle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


def test_what_a_command_leaves_is_not_looked_at_again() -> None:
    with spared():
        left = weakref.ref(Circle())
    gc.collect()
    assert left() is not None


def test_a_command_that_goes_on_is_looked_through() -> None:
    with spared():
        left = weakref.ref(Circle())
        gc.collect()
        assert left() is None
