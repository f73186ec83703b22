"""`python -m tests.e2b_server`: serve until interrupted, and print how to use it."""

import signal
import sys
import threading

from tests.e2b_server.server import PREVIEW_URL, E2BServer


def main() -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with E2BServer() as server:
        lines = {
            "E2B_API_KEY": server.api_key,
            "E2B_API_URL": server.url,
            "E2B_SANDBOX_URL": server.url,
            "HEADRACE_E2B_PREVIEW_URL": PREVIEW_URL,
            "NO_PROXY": "127.0.0.1,localhost",
        }
        sys.stdout.writelines(f"export {name}='{value}'\n" for name, value in lines.items())
        sys.stdout.flush()
        stop.wait()


if __name__ == "__main__":
    main()
