"""A secret on its whole way: set over HTTP, found by the app, and nowhere else."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from structlog.testing import capture_logs

from eventstore import CommandHandler, Hub, connect_postgres
from generator import Patience
from schemas import Status
from service import wiring
from service.migrating import upgrade
from service.project_secrets import ProjectSecrets
from service.secret_keys import SecretKeys, SecretRef
from service.settings import RunnerKind
from tests.generator.builds import TENANT, Builds, previews
from tests.generator.doubles import ScriptedRunner, ScriptedRuntime
from tests.projector.killable import KillablePostgres
from tests.remains import found_in_files, found_in_postgres, found_in_redis
from tests.service import secret_app
from tests.service.instances import Running, running_instance, visitor
from tests.service.secret_app import built, ended, is_told, set_secret

pytestmark = pytest.mark.anyio

VALUES = ("first-9c1f-'quoted' $HOME", "second-77ab\nof two lines", "third-5e5e-grüße")


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(wiring, "make_runner", secret_app.runner)
    async with running_instance(tmp_path, RunnerKind.TEMPLATE) as one:
        yield one


async def test_an_app_finds_the_value_that_was_set_last_and_nobody_else_ever_sees_one(
    running: Running,
) -> None:
    with capture_logs() as logs:
        async with visitor(running.instance.url, running.instance.key) as client:
            # Without it the app's install command fails: it is given to that one, too.
            assert (await built(running, client, limits={"max_repairs": 0})).status is Status.FAILED

            await set_secret(client, VALUES[0])
            first = await built(running, client)
            assert first.status is Status.READY, first.error_message
            assert await is_told(first, VALUES[0])

            await set_secret(client, VALUES[1])
            assert await is_told(first, VALUES[0])
            change = {"goal": "a change", "base_build": 1, "in_place": True}
            second = await built(running, client, **change)
            assert second.sandbox_id == first.sandbox_id
            assert await is_told(second, VALUES[1])

            await set_secret(client, VALUES[2])
            preview = "/v1/projects/default/builds/2/preview"
            await client.delete(preview)
            assert (await client.post(preview)).status_code == 202
            assert await is_told(await ended(running, client, second.job), VALUES[2])

            restored = await client.post("/v1/projects/default/builds/1/restore")
            third = await ended(running, client, restored.json()["job_id"])
            assert third.status is Status.READY
            assert await is_told(third, VALUES[2])

    for word in ("first-9c1f", "second-77ab", "third-5e5e"):
        assert await found_in_postgres(running.log.engine, word) == []
        assert (word, await found_in_redis(running.log.store.redis, word)) == (word, [])
        assert found_in_files(word, running.settings.home) == []
        assert word not in str(logs)


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """For a server of the test's own: a short path, for it listens there."""
    with TemporaryDirectory(prefix="hr-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
async def postgres(server_folder: Path) -> AsyncIterator[KillablePostgres]:
    server = KillablePostgres(server_folder)
    await server.start()
    yield server
    server.kill()


async def test_a_postgres_that_restarts_when_a_secret_is_wanted_costs_the_build_a_moment(
    handler: CommandHandler, hub: Hub, tmp_path: Path, postgres: KillablePostgres
) -> None:
    engine = connect_postgres(postgres.url)
    await upgrade(engine)
    secrets = ProjectSecrets(engine, SecretKeys(file=tmp_path / "secrets.key"))
    await secrets.put(SecretRef(TENANT, "shop", "API_TOKEN"), VALUES[0])
    builds, runtime = Builds(handler, hub, tmp_path), ScriptedRuntime()
    claim = await builds.claimed()
    patience = Patience(first_s=0.2)
    service = builds.service(ScriptedRunner(), runtime, secrets=secrets, patience=patience)
    postgres.kill()
    async with previews(runtime), anyio.create_task_group() as tasks:
        tasks.start_soon(service.execute_build, claim)
        await builds.until(claim.ref, "RetryScheduled", step="secrets")
        await postgres.start()
        await builds.until(claim.ref, "JobReady")
    await engine.dispose()
    (made,) = runtime.made
    assert [env["API_TOKEN"] for _, env in made.environments] == [VALUES[0]] * 3
