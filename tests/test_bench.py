"""The benchmark runs, and says what it promises to say. Its numbers are not judged here."""

import anyio.to_thread
import pytest
from redis.asyncio import Redis

from benchmarks import Target
from benchmarks.append import bench_append
from service.embedded import Servers
from service.errors import SettingsInvalid


async def test_append_is_measured_beside_raw_xadd_in_the_same_run(
    redis: Redis, servers: Servers, database_url: str
) -> None:
    target = Target(servers.redis_url, database_url)
    rows = await anyio.to_thread.run_sync(lambda: bench_append(target, events=160))
    metrics = [row.metric for row in rows]
    for metric in ("append_sequential", "append_concurrent16", "append_batched"):
        assert {metric, f"{metric}_p50_ms", f"{metric}_p99_ms"} <= set(metrics)
    for row in rows:
        found = row.to_dict()
        assert set(found) == {"metric", "value", "unit", "beside", "beside_value", "ratio"}
        assert found["value"] > 0
        assert found["ratio"] == pytest.approx(row.value / row.beside_value, abs=0.001)


async def test_a_redis_that_holds_something_is_not_filled(
    redis: Redis, servers: Servers, database_url: str
) -> None:
    await redis.set("mine", "1")
    target = Target(servers.redis_url, database_url)
    with pytest.raises(SettingsInvalid, match="not empty"):
        await anyio.to_thread.run_sync(lambda: bench_append(target, events=16))
    assert await redis.keys("*") == [b"mine"]
