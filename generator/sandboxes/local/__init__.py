"""Sandboxes on this machine."""

from generator.sandboxes.local.isolation import Limits
from generator.sandboxes.local.runtime import LocalRuntime

__all__ = ["Limits", "LocalRuntime"]
