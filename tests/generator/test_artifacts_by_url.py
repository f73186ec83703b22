"""A store of artifacts by URL, with what the environment says of the account."""

from collections.abc import Iterator

import pytest

from generator import ArtifactStore
from generator.errors import ArtifactsUnavailable
from tests.s3_server import BUCKET, S3Server, s3_server

pytestmark = pytest.mark.anyio

FILES = {"app.py": b"print('hi')\n", "no": b""}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        for name, value in {**server.settings, "allow_http": "true"}.items():
            monkeypatch.setenv(f"AWS_{name.upper()}", value)
        yield server


async def test_a_bucket_and_a_prefix_hold_all_that_is_stored(s3: S3Server) -> None:
    artifacts = ArtifactStore.at(f"s3://{BUCKET}/of/us")
    manifest = await artifacts.put(FILES)
    assert await artifacts.get(manifest) == FILES
    assert all(key.startswith("of/us/blobs/") for key in s3.objects)
    # Another process with the same settings finds it.
    assert await ArtifactStore.at(f"s3://{BUCKET}/of/us").get(manifest) == FILES


async def test_an_account_that_is_refused_is_told(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    with pytest.raises(ArtifactsUnavailable, match="403"):
        await ArtifactStore.at(f"s3://{BUCKET}").put(FILES)
    assert s3.objects == {}
