"""What is not a server: the settings, the instance that runs, the runner, the sandboxes."""

import time
from typing import TYPE_CHECKING

import anyio

from generator import SandboxRuntime
from generator.errors import GenerationError
from service.doctor.finding import Finding, count, duration, ok, problem, warning
from service.errors import SettingsInvalid
from service.instance import Instance
from service.settings import RunnerKind, SandboxKind, Settings
from service.wiring import make_llm_runner, make_sandbox_runtime

if TYPE_CHECKING:
    from generator.sandboxes.local import Holding

RUNNER_S = 30.0
SANDBOX_S = 20.0
SANDBOX_LIFE_S = 60


def check_settings(settings: Settings) -> Finding:
    """What builds here are made with. That the settings can be used is known already."""
    runner = (
        "no runner" if settings.runner_kind is RunnerKind.NONE else f"{settings.runner_kind} runner"
    )
    says = (
        f"{runner}, {settings.sandbox_kind} sandboxes, "
        f"{count(settings.slots, 'slot')}, lease {settings.lease_s:g} s"
    )
    if settings.broken_app:
        return warning(
            "settings",
            f"{says}; broken apps are asked for",
            f"HEADRACE_BROKEN_APP is {settings.broken_app}: every build fails there, on purpose.",
            "unset HEADRACE_BROKEN_APP",
        )
    return ok("settings", says)


def check_instance(settings: Settings) -> Finding:
    """Whether Headrace runs on this home."""
    instance = Instance.find(settings)
    if instance is None:
        return ok("instance", f"none runs on {settings.home}")
    return ok("instance", f"{instance.url} (process {instance.pid})")


async def check_runner(settings: Settings) -> Finding:
    """Puts a tiny question to each model that would write code; other runners need nothing."""
    if settings.runner_kind is not RunnerKind.LLM:
        return ok("runner", f"{settings.runner_kind}: needs nobody")
    why = "Without a model every build fails in its phase code."
    try:
        with anyio.fail_after(RUNNER_S * len(settings.models)):
            taken_s = await make_llm_runner(settings).ask_all()
    except TimeoutError:
        remedy = "try again, or set HEADRACE_MODEL to another model"
        return problem("runner", f"no answer within {RUNNER_S:g} s", why, remedy)
    except (GenerationError, SettingsInvalid) as error:
        reason, _, remedy = str(error).rpartition(": ")
        return problem("runner", reason or remedy, why, remedy)
    answers = (f"{name} answers in {duration(taken)}" for name, taken in taken_s.items())
    return ok("runner", ", ".join(answers))


async def check_sandbox(settings: Settings) -> Finding:
    """Makes a local sandbox and ends it; of E2B it asks which there are."""
    if settings.runner_kind is RunnerKind.NONE:
        return ok("sandbox", "none needed: HEADRACE_RUNNER is none")
    why = "Without sandboxes every build fails in its phase deps."
    try:
        with anyio.fail_after(SANDBOX_S):
            return await _try_sandbox(make_sandbox_runtime(settings), settings.sandbox_kind)
    except TimeoutError:
        return problem("sandbox", f"none within {SANDBOX_S:g} s", why, "try again with less load")
    except (GenerationError, OSError, ValueError) as error:
        reason, _, remedy = str(error).partition(": ")
        return problem("sandbox", reason, why, remedy or "see docs/operations.md")


async def _try_sandbox(runtime: SandboxRuntime, kind: SandboxKind) -> Finding:
    if kind is SandboxKind.E2B:
        return ok("sandbox", f"E2B answers; it has {count(len(await runtime.list({})), 'sandbox')}")
    began = time.monotonic()
    from generator.sandboxes.local import LocalRuntime

    assert isinstance(runtime, LocalRuntime)  # noqa: S101 - so it is for this kind
    sandbox = await runtime.create(metadata={"purpose": "doctor"}, timeout_s=SANDBOX_LIFE_S)
    try:
        holding = await runtime.holding(sandbox)
    finally:
        with anyio.CancelScope(shield=True):
            await runtime.kill(sandbox.sandbox_id)
    return judge_sandbox(holding, time.monotonic() - began)


def judge_sandbox(holding: "Holding", took_s: float) -> Finding:
    """What contained the sandbox that was made and ended."""
    hosts = ", ".join(holding.install_hosts)
    parts = (
        f"system calls {'filtered' if holding.filtered else 'not filtered'}",
        f"{' and '.join(holding.counted) or 'nothing'} counted by cgroups",
        f"network for installs from {hosts}" if hosts else "no network",
    )
    says = f"one was made here and ended, in {duration(took_s)}: {'; '.join(parts)}"
    if not holding.filtered:
        return problem(
            "sandbox",
            says,
            "The kernel is open to whatever an app tries with it.",
            "use a kernel with CONFIG_SECCOMP_FILTER, or run sandboxes in E2B: set E2B_API_KEY",
        )
    if "memory" not in holding.counted:
        return warning(
            "sandbox",
            says,
            "Memory is limited for each process of an app, not for all of them together.",
            "let Headrace make memory cgroups (systemd: Delegate=yes in its unit)",
        )
    return ok("sandbox", says)
