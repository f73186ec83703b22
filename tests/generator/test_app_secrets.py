"""A project's secrets: which commands find them, how fresh they are, and where they never stand."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio
import pytest

from generator import SecretsUnavailable, SecretsUnreadable, why_no_name
from generator.app_environment import SECRETS_TRIES
from generator.sandboxes.local.isolation import _environment
from schemas import Phase, Preview, Status
from schemas.commands import ExpirePreview
from schemas.events import JobFailed, RetryScheduled
from tests.generator.builds import TENANT, Builds, previews
from tests.generator.doubles import ScriptedRunner, ScriptedRuntime, ScriptedSandbox, mended_app
from tests.generator.test_previews import asked

pytestmark = pytest.mark.anyio

FIRST, SECOND = "first-value-9c1f", "second-value-77ab"


@dataclass
class ScriptedSecrets:
    """Keeps `values`; its first answers are `refusals`, and then it `hangs`."""

    values: dict[str, str] = field(default_factory=lambda: {"API_TOKEN": FIRST})
    refusals: list[Exception] = field(default_factory=list)
    hangs: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def of_project(self, tenant: str, project: str) -> Mapping[str, str]:
        self.asked.append((tenant, project))
        if self.refusals:
            raise self.refusals.pop(0)
        if self.hangs:
            await anyio.sleep_forever()
        return dict(self.values)


def tokens(sandbox: ScriptedSandbox) -> list[tuple[str, str | None]]:
    """Each command of the app, with the secret it found."""
    return [(command, env.get("API_TOKEN")) for command, env in sandbox.environments]


async def test_install_tests_and_start_find_the_secrets_of_their_project(builds: Builds) -> None:
    claim, runtime, secrets = await builds.claimed(), ScriptedRuntime(), ScriptedSecrets()
    async with previews(runtime):
        service = builds.service(ScriptedRunner(), runtime, secrets=secrets)
        job = await service.execute_build(claim)
    assert job.status is Status.READY
    assert tokens(runtime.made[0]) == [("install", FIRST), ("test", FIRST), ("start", FIRST)]
    assert secrets.asked == [(TENANT, "shop")]
    assert all("HEADRACE_MARKER" in env for _, env in runtime.made[0].environments)


async def test_a_secret_stands_in_no_event_no_line_no_file_and_no_artifact(builds: Builds) -> None:
    claim, runtime, secrets = await builds.claimed(), ScriptedRuntime(), ScriptedSecrets()
    async with previews(runtime):
        service = builds.service(ScriptedRunner(), runtime, secrets=secrets)
        await service.execute_build(claim)
    said = [event.payload.model_dump_json() for event in await builds.events(claim)]
    said += [str(line) async for line in builds.progress(claim.ref)]
    assert said
    assert not [text for text in said if FIRST in text]
    assert not [path for path, data in runtime.made[0].files.items() if FIRST.encode() in data]
    files = [path for path in builds.home.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if FIRST.encode() in path.read_bytes()]


async def test_they_are_read_once_in_an_attempt_also_when_the_app_is_repaired(
    builds: Builds,
) -> None:
    claim, secrets = await builds.claimed(), ScriptedSecrets()
    failing = [1, 0]
    runtime = ScriptedRuntime(exit_codes={"test": lambda _: failing.pop(0)})
    async with previews(runtime):
        service = builds.service(ScriptedRunner(app=mended_app), runtime, secrets=secrets)
        job = await service.execute_build(claim)
    assert (job.status, job.round, len(secrets.asked)) == (Status.READY, 2, 1)
    assert {token for _, token in tokens(runtime.made[0])} == {FIRST}


async def test_a_sandbox_that_is_gone_on_with_is_started_with_the_values_of_now(
    builds: Builds,
) -> None:
    runtime, secrets = ScriptedRuntime(), ScriptedSecrets()
    async with previews(runtime):
        service = builds.service(ScriptedRunner(), runtime, secrets=secrets)
        base = await service.execute_build(await builds.claimed())
        secrets.values = {"API_TOKEN": SECOND}
        claim = await builds.claimed(
            "w2",
            base_build=1,
            base_job=base.job,
            base_manifest=base.manifest,
            in_place=True,
        )
        job = await service.execute_build(claim)
    assert (job.status, job.sandbox_id, len(runtime.made)) == (Status.READY, "sb-1", 1)
    assert tokens(runtime.made[0])[-2:] == [("test", SECOND), ("start", SECOND)]


async def test_a_preview_that_is_made_anew_and_a_restore_get_the_values_of_now(
    builds: Builds,
) -> None:
    runtime, secrets = ScriptedRuntime(), ScriptedSecrets()
    async with previews(runtime):
        service = builds.service(ScriptedRunner(), runtime, secrets=secrets)
        first = await builds.claimed()
        base = await service.execute_build(first)
        secrets.values = {"API_TOKEN": SECOND}
        await runtime.kill("sb-1")
        await builds.handler.handle(first.ref, ExpirePreview("time-out"))
        await asked(builds, first)
        job = await service.execute_build(await builds.claim("w2"))
        assert (job.preview, job.sandbox_id) == (Preview.RUNNING, "sb-2")
        assert tokens(runtime.made[1]) == [("install", SECOND), ("start", SECOND)]

        request = {"base_build": 1, "base_job": base.job, "base_manifest": base.manifest}
        restored = await builds.claimed("w3", restore=True, **request)
        assert (await service.execute_build(restored)).status is Status.READY
    assert {token for _, token in tokens(runtime.made[2])} == {SECOND}


async def test_a_keeper_that_is_away_is_asked_again_and_each_wait_is_told(builds: Builds) -> None:
    claim, runtime = await builds.claimed(), ScriptedRuntime()
    secrets = ScriptedSecrets(refusals=[SecretsUnavailable("Postgres restarts") for _ in range(7)])
    async with previews(runtime):
        service = builds.service(ScriptedRunner(), runtime, secrets=secrets)
        job = await service.execute_build(claim)
    assert job.status is Status.READY
    told = await builds.told(claim, RetryScheduled)
    assert [(one.phase, one.step, one.kind) for one in told] == [
        (Phase.DEPS, "secrets", "secrets_unavailable")
    ] * 7
    assert told[0].message == "the project's secrets cannot be read: Postgres restarts"
    assert len(runtime.made) == 1


async def test_a_keeper_that_stays_away_ends_the_build_and_its_sandbox(builds: Builds) -> None:
    claim, runtime = await builds.claimed(), ScriptedRuntime()
    secrets = ScriptedSecrets(refusals=[SecretsUnavailable("gone") for _ in range(99)])
    job = await builds.service(ScriptedRunner(), runtime, secrets=secrets).execute_build(claim)
    assert (job.failure_kind, len(secrets.asked)) == ("secrets_unavailable", SECRETS_TRIES)
    assert not runtime.living


async def test_a_keeper_that_does_not_answer_has_a_deadline(builds: Builds) -> None:
    claim, runtime, secrets = await builds.claimed(), ScriptedRuntime(), ScriptedSecrets(hangs=True)
    service = builds.service(ScriptedRunner(), runtime, secrets=secrets, call_s=0.02)
    with anyio.fail_after(20):
        job = await service.execute_build(claim)
    assert job.failure_kind == "timeout"
    assert "reading the project's secrets did not end within 0.02 s" in (job.error_message or "")


async def test_a_secret_that_cannot_be_decrypted_ends_the_build_at_once(builds: Builds) -> None:
    claim, runtime = await builds.claimed(), ScriptedRuntime()
    secrets = ScriptedSecrets(refusals=[SecretsUnreadable("add key 1a2b3c4d")])
    job = await builds.service(ScriptedRunner(), runtime, secrets=secrets).execute_build(claim)
    (failed,) = await builds.told(claim, JobFailed)
    assert (failed.kind, failed.message, job.retries) == ("secrets", "add key 1a2b3c4d", 0)
    assert runtime.made[0].commands == []


async def test_the_simulated_loop_reads_no_secrets(builds: Builds) -> None:
    claim, secrets = await builds.claimed(), ScriptedSecrets()
    job = await builds.service(None, secrets=secrets).execute_build(claim)
    assert (job.status, secrets.asked) == (Status.READY, [])


@pytest.mark.parametrize("name", ["API_TOKEN", "A", "_X", "X9", "DATABASE_URL", "A" * 100])
def test_a_secret_is_called_as_a_variable_is(name: str) -> None:
    assert why_no_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *("", "9X", "api_token", "A-B", "A B", "A=B", "ÄPFEL", "A\n", "A" * 101),
        *("HEADRACE_JOB", "LD_PRELOAD", "E2B_SANDBOX", "BASH_ENV", "PORT", "HTTPS_PROXY", "UID"),
        *_environment("/usr"),
    ],
)
def test_a_secret_takes_no_name_that_an_app_has_a_variable_of_its_own_with(name: str) -> None:
    assert why_no_name(name) is not None
