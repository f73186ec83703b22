"""The wheel: workers that walk jobs through their phases with a runner and a sandbox."""

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
