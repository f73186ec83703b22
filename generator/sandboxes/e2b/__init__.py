"""Sandboxes in the E2B cloud.

Importing this takes a second, as E2B's own SDK does: import it when a sandbox is needed.
"""

from generator.sandboxes.e2b.runtime import E2BRuntime

__all__ = ["E2BRuntime"]
