"""Sandboxes on this machine."""

from generator.sandboxes.local.isolation import Limits
from generator.sandboxes.local.runtime import Holding, LocalRuntime

__all__ = ["Holding", "Limits", "LocalRuntime"]
