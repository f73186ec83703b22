"""A secret on its whole way: set over HTTP, found by the app, and nowhere else."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from schemas import Status
from service import wiring
from service.settings import RunnerKind
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
        assert await found_in_redis(running.log.store.redis, word) == []
        assert found_in_files(word, running.settings.home) == []
        assert word not in str(logs)
