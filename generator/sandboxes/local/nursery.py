"""The process of a worker that makes supervisors, by forking: Python starts once for all of them.

It ends with its worker; the supervisors do not. Its input is a socket: each message on it is one
supervisor to be made, with three descriptors: its `Spec`, its socket to the worker, and its log.
"""

import gc
import json
import os
import socket
import sys
from contextlib import suppress

from . import supervisor

DESCRIPTORS = 3
FORK = b"f"


def main() -> None:
    """Serve until the worker hangs up."""
    asked = socket.socket(fileno=os.dup(0))
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, len(FORK), DESCRIPTORS)
        if not message:
            return
        spec, worker, log = descriptors
        try:
            _bear(asked, spec, worker, log)
        except OSError as error:
            said = json.dumps({"failed": f"no process can be made: {error}"}).encode()
            with suppress(OSError):  # nobody waits for it any more
                os.write(worker, said)
        for descriptor in descriptors:
            os.close(descriptor)
        # The first one does not wait for this, and the others find it done.
        from . import inodes, switchboard  # noqa: F401

        gc.freeze()  # what is shared stays shared


def _bear(asked: socket.socket, spec: int, worker: int, log: int) -> None:
    """Make a supervisor that is nobody's child and in a session of its own."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        asked.close()
        os.setsid()
        if os.fork():
            return
        for standard, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
            os.dup2(descriptor, standard)
        os.close(log)
        with open(spec) as told:
            supervisor.main(json.load(told), socket.socket(fileno=worker))
    except Exception:  # noqa: BLE001 - into the log, as Python does
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(0)
