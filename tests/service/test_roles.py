"""Headrace in parts: API, projector and worker as processes of their own, on servers by name."""

import signal
from pathlib import Path

import pytest

from service.embedded import embedded_servers
from tests.service.command_line import CommandLine, command_line_on
from tests.service.homes import furnish
from tests.service.instances import visitor

pytestmark = pytest.mark.anyio


async def test_each_part_runs_by_itself_and_together_they_are_a_headrace(tmp_path: Path) -> None:
    await furnish(tmp_path)
    with command_line_on(tmp_path), embedded_servers(tmp_path) as servers:
        parts = CommandLine(
            tmp_path,
            {
                "REDIS_URL": servers.redis_url,
                "DATABASE_URL": servers.database_url,
                "HEADRACE_PARTITIONS": "1",
                "HEADRACE_RUNNER": "none",
                "HEADRACE_PORT": "0",
            },
        )
        with parts.started("api") as api, parts.started("projector") as projector:
            url = api.line_with("API is up").split()[-1]
            projector.line_with("Projector is up")
            async with visitor(url, (tmp_path / "key").read_text().strip()) as client:
                asked = (await client.post("/v1/jobs", json={"goal": "a list"})).json()
                listed = await client.get("/v1/jobs", params={"after": asked["position"]})
                (one,) = listed.json()["jobs"]  # from the read model, which somebody folds
                assert (one["job_id"], one["status"]) == (asked["job_id"], "queued")
                with parts.started("worker") as worker:
                    async with client.stream("GET", asked["stream_url"]) as stream:
                        seen = [line async for line in stream.aiter_lines()]
                    assert "event: JobReady" in seen
                    assert worker.end(signal.SIGTERM) == 0
            assert projector.end(signal.SIGTERM) == 0
            assert api.end(signal.SIGTERM) == 0
