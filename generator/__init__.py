"""The wheel: workers that walk jobs through their phases with a runner and a sandbox."""

from generator.artifacts import ArtifactStore
from generator.build import Deadlines
from generator.errors import GenerationError, SandboxUnavailable
from generator.heart import Heart
from generator.runner import Runner
from generator.sandbox import SandboxRuntime, SandboxRuntimeFactory
from generator.service import GenerationService
from generator.worker import Worker

__all__ = [
    "ArtifactStore",
    "Deadlines",
    "GenerationError",
    "GenerationService",
    "Heart",
    "Runner",
    "SandboxRuntime",
    "SandboxRuntimeFactory",
    "SandboxUnavailable",
    "Worker",
]
