"""Ids of events."""

import os
import time


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): the milliseconds since 1970, then chance.

    By hand: ten a job by way of `uuid6` and `UUID` took a worker a twentieth of its time.
    """
    when, chance = f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex()
    variant = "89ab"[int(chance[3], 16) & 3]
    return f"{when[:8]}-{when[8:]}-7{chance[:3]}-{variant}{chance[4:7]}-{chance[7:19]}"
