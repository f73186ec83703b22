"""The wheel: workers that walk jobs through their phases with a runner and a sandbox."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generator.artifacts import ArtifactStore
    from generator.deadlines import Deadlines, Patience
    from generator.errors import (
        ArtifactMissing,
        GenerationError,
        SandboxUnavailable,
        SecretsUnavailable,
        SecretsUnreadable,
    )
    from generator.heart import Heart
    from generator.log_redaction import current_redactor
    from generator.rate import Rate
    from generator.reaper import Found, Reaper
    from generator.redaction import KEYS_ONLY, Redactor
    from generator.runner import Allowance, Runner
    from generator.sandbox import SandboxRuntime, SandboxRuntimeFactory
    from generator.secrets import Secrets, why_no_name
    from generator.service import GenerationService
    from generator.transcript import LogLine, kept_lines, log_lines
    from generator.worker import Worker

__all__ = [
    "KEYS_ONLY",
    "Allowance",
    "ArtifactMissing",
    "ArtifactStore",
    "Deadlines",
    "Found",
    "GenerationError",
    "GenerationService",
    "Heart",
    "LogLine",
    "Patience",
    "Rate",
    "Reaper",
    "Redactor",
    "Runner",
    "SandboxRuntime",
    "SandboxRuntimeFactory",
    "SandboxUnavailable",
    "Secrets",
    "SecretsUnavailable",
    "SecretsUnreadable",
    "Worker",
    "current_redactor",
    "kept_lines",
    "log_lines",
    "why_no_name",
]

# Imported when they are first asked for: to take secrets out of a sentence needs no clients of
# databases.
_PLACES = {
    "Allowance": "runner",
    "ArtifactMissing": "errors",
    "ArtifactStore": "artifacts",
    "Deadlines": "deadlines",
    "Found": "reaper",
    "GenerationError": "errors",
    "GenerationService": "service",
    "Heart": "heart",
    "KEYS_ONLY": "redaction",
    "LogLine": "transcript",
    "Patience": "deadlines",
    "Rate": "rate",
    "Reaper": "reaper",
    "Redactor": "redaction",
    "Runner": "runner",
    "SandboxRuntime": "sandbox",
    "SandboxRuntimeFactory": "sandbox",
    "SandboxUnavailable": "errors",
    "Secrets": "secrets",
    "SecretsUnavailable": "errors",
    "SecretsUnreadable": "errors",
    "Worker": "worker",
    "current_redactor": "log_redaction",
    "kept_lines": "transcript",
    "log_lines": "transcript",
    "why_no_name": "secrets",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
