"""Python's garbage collector, told what it need not look at."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_OBJECTS = 20_000


@contextmanager
def spared() -> Iterator[None]:
    """Look at what is new less often while the block runs; after it the process may only end.

    What commands import is no garbage, and what a process leaves need not be looked through at its
    end: both together take a quarter of the processor time of a command that does little else.
    """
    gc.set_threshold(_NEW_OBJECTS)
    try:
        yield
    finally:
        gc.freeze()


def settle() -> None:
    """Take what is loaded by now for permanent, and look at what is new less often.

    A full collection otherwise goes through every imported module each time, which costs reads of
    the log a third of their speed and followers their p99. By default the new is looked through
    after every 700 objects, most of which jobs under way still hold: up to a tenth of a worker's
    time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
