"""A loopback server that speaks E2B's protocol and really runs what it is told to.

The control plane and envd, on which the real SDK can stand without knowing: requests and answers
follow the SDK's own schemas (its wheel carries envd's ASGI applications) and envd's published
source. Every sandbox is a bubblewrap with its own files, processes and network, so that
`/home/user` and port 8080 are true in each.

    python -m tests.e2b_server        prints the settings that lead to it
    from tests.e2b_server import E2BServer

It trusts whoever can reach it and is no isolation to rely on.
"""

from tests.e2b_server.server import E2BServer

__all__ = ["E2BServer"]
