"""Which projects may have secrets is known without Postgres."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore, connect_postgres
from generator import SecretsUnavailable
from service.project_secrets import ProjectSecrets
from service.secret_keys import SecretKeys, SecretRef, parse_keys
from service.secret_marks import SecretMarks
from tests.histories import TENANT
from tests.service.quiet_api import SECRETS_KEY

pytestmark = pytest.mark.anyio

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
TOKEN = SecretRef(TENANT, "shop", "TOKEN")


@pytest.fixture
def marks(store: EventStore) -> SecretMarks:
    return SecretMarks(store.redis, store.partitions)


def kept(engine: AsyncEngine, marks: SecretMarks) -> ProjectSecrets:
    return ProjectSecrets(engine, SecretKeys(parse_keys(SECRETS_KEY)), marks)


async def test_a_build_of_a_project_that_never_had_a_secret_needs_no_postgres(
    engine: AsyncEngine, marks: SecretMarks
) -> None:
    away = connect_postgres(NOWHERE)
    assert await kept(away, marks).of_project(TENANT, "shop") == {}
    await kept(engine, marks).put(TOKEN, "x")
    with pytest.raises(SecretsUnavailable):
        await kept(away, marks).of_project(TENANT, "shop")
    assert await kept(away, marks).of_project(TENANT, "blog") == {}
    assert await kept(away, marks).of_project("globex", "shop") == {}
    assert await kept(engine, marks).of_project(TENANT, "shop") == {"TOKEN": "x"}
    await away.dispose()


async def test_a_mark_stays_when_the_secret_could_not_be_kept_or_was_removed(
    engine: AsyncEngine, marks: SecretMarks
) -> None:
    await kept(engine, marks).put(TOKEN, "x")
    assert await kept(engine, marks).remove(TOKEN)
    assert await marks.may_have(TENANT, "shop")
    away = connect_postgres(NOWHERE)
    with pytest.raises(Exception, match="Postgres"):
        await kept(away, marks).put(SecretRef(TENANT, "blog", "TOKEN"), "x")
    assert await marks.may_have(TENANT, "blog")
    await away.dispose()


async def test_marks_that_redis_lost_are_set_again_from_what_is_kept(
    engine: AsyncEngine, store: EventStore, marks: SecretMarks
) -> None:
    for tenant in (TENANT, "globex"):
        await kept(engine, marks).put(TOKEN._replace(tenant=tenant), "x")
    for partition in range(store.partitions):
        await store.redis.delete(f"hr:{{{partition}}}:secrets")
    assert not await marks.may_have(TENANT, "shop")
    await marks.mark_all(engine)
    assert await marks.may_have(TENANT, "shop")
    assert await marks.may_have("globex", "shop")
    assert not await marks.may_have("globex", "blog")
