"""Keep a core busy for so many seconds, and say the turns a second of a loop.

A script that imports nothing of ours, so that several that are started at once begin at once.
"""

import sys
import time


def spin(for_s: float) -> float:
    """Turns a second of a loop that makes and drops objects, as a fold does."""
    turns = 0
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < for_s:
        for number in range(100):
            {"number": number, "text": str(number)}.copy()
        turns += 1
    return turns / took


if __name__ == "__main__":
    sys.stdout.write(f"{spin(float(sys.argv[1]))}\n")
