"""Python's garbage collector, told what it need not look at."""

import gc


def settle() -> None:
    """Take what is loaded by now for permanent.

    A full collection otherwise goes through every imported module each time, which costs reads of
    the log a third of their speed and followers their p99.
    """
    gc.collect()
    gc.freeze()
