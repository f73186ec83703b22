"""Secrets of a project over HTTP, and how they are kept in Postgres."""

import base64
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from eventstore import CommandHandler, Hub, connect_postgres
from generator import SecretsUnavailable, SecretsUnreadable
from service.project_secrets import (
    BATCH,
    MAX_OF_PROJECT,
    MAX_OF_PROJECT_BYTES,
    MAX_OF_TENANT,
    MAX_VALUE_BYTES,
    ProjectSecrets,
    forget,
)
from service.secret_keys import SecretKeys, SecretRef, parse_keys
from tests.histories import TENANT
from tests.remains import found_in_postgres, found_in_redis
from tests.service.quiet_api import RIVAL, SECRETS_KEY, QuietApi, quiet_api

pytestmark = pytest.mark.anyio

SECRET = "hunter2-4711"
NEW_KEY = base64.b64encode(b"n" * 32).decode()
PATH = "/v1/projects/shop/secrets"


@pytest.fixture
async def api(handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> AsyncIterator[QuietApi]:
    async with quiet_api(handler, hub, engine) as made:
        yield made


def kept(engine: AsyncEngine, keys: str = SECRETS_KEY) -> ProjectSecrets:
    return ProjectSecrets(engine, SecretKeys(parse_keys(keys)))


async def put(client: httpx.AsyncClient, name: str, value: Any, *, path: str = PATH) -> None:
    response = await client.put(f"{path}/{name}", json={"value": value})
    assert (response.status_code, response.content) == (204, b""), response.text


async def test_a_secret_is_set_listed_without_its_value_set_anew_and_removed(api: QuietApi) -> None:
    assert await api.get(PATH) == {"secrets": []}
    await put(api.client, "B_TOKEN", SECRET)
    await put(api.client, "A_TOKEN", "")
    first = (await api.get(PATH))["secrets"]
    assert [one["name"] for one in first] == ["A_TOKEN", "B_TOKEN"]
    assert [sorted(one) for one in first] == [["created_at", "name", "updated_at"]] * 2
    await put(api.client, "B_TOKEN", "another")
    second = (await api.get(PATH))["secrets"]
    assert second[1]["created_at"] == first[1]["created_at"]
    assert second[1]["updated_at"] > first[1]["updated_at"]
    assert await kept(api.engine).of_project(TENANT, "shop") == {
        "A_TOKEN": "",
        "B_TOKEN": "another",
    }
    assert (await api.client.delete(f"{PATH}/A_TOKEN")).status_code == 204
    gone = await api.client.delete(f"{PATH}/A_TOKEN")
    assert gone.status_code == 404
    assert gone.json()["detail"] == "there is no secret A_TOKEN of project shop"
    assert await kept(api.engine).of_project(TENANT, "shop") == {"B_TOKEN": "another"}


async def test_tenants_neither_see_nor_set_nor_remove_each_others_secrets(api: QuietApi) -> None:
    await put(api.client, "TOKEN", SECRET)
    assert (await api.rival.get(PATH)).json() == {"secrets": []}
    assert (await api.rival.delete(f"{PATH}/TOKEN")).status_code == 404
    await put(api.rival, "TOKEN", "theirs")
    assert await kept(api.engine).of_project(TENANT, "shop") == {"TOKEN": SECRET}
    assert await kept(api.engine).of_project(RIVAL, "shop") == {"TOKEN": "theirs"}
    assert await kept(api.engine).of_project(TENANT, "blog") == {}


async def test_without_a_key_nothing_is_told(api: QuietApi) -> None:
    nobody = {"Authorization": "Bearer hr_no"}
    for method in ("GET", "PUT", "DELETE"):
        path = PATH if method == "GET" else f"{PATH}/TOKEN"
        answer = await api.client.request(method, path, json={"value": SECRET}, headers=nobody)
        assert answer.status_code == 401


async def test_a_value_stands_nowhere_in_postgres_or_redis_and_in_no_output(
    api: QuietApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        await put(api.client, "TOKEN", SECRET)
    assert await found_in_postgres(api.engine, SECRET) == []
    assert await found_in_redis(api.store.redis, SECRET) == []
    assert SECRET not in str(logs)
    assert SECRET not in caplog.text


BAD_BODIES: list[tuple[bytes, str]] = [
    (f'{{"value": ["{SECRET}"]}}'.encode(), "value"),
    (f'{{"value": "x", "more": "{SECRET}"}}'.encode(), "more"),
    (f'"{SECRET}"'.encode(), "body"),
    (f"{SECRET}".encode(), "body"),
    (f'{{"value": "{SECRET}'.encode(), "body"),
    (f'{{"value": "{SECRET}\\u0000"}}'.encode(), "value"),
    (f'{{"value": "{SECRET}\\ud800"}}'.encode(), "value"),
    (b'{"value": "\xff' + SECRET.encode() + b'"}', "body"),
    (b"", "body"),
    (f'{{"value": "{SECRET * 3000}"}}'.encode(), "value"),
    (b"{}", "value"),
    (b'{"value": null}', "value"),
]


@pytest.mark.parametrize(("body", "field"), BAD_BODIES)
async def test_a_body_that_cannot_be_used_is_refused_without_an_echo_of_it(
    api: QuietApi, caplog: pytest.LogCaptureFixture, body: bytes, field: str
) -> None:
    headers = {"Content-Type": "application/json"}
    with capture_logs() as logs:
        answer = await api.client.put(f"{PATH}/TOKEN", content=body, headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    if answer.status_code == 422:
        assert answer.json()["errors"][0]["field"] == field
    for said in (answer.text, str(answer.headers), str(logs), caplog.text):
        assert "hunter2" not in said
    assert await api.get(PATH) == {"secrets": []}


async def test_a_body_beyond_all_bounds_is_refused_as_any_other_is(api: QuietApi) -> None:
    answer = await api.client.put(f"{PATH}/TOKEN", json={"value": "x" * 300_000})
    assert answer.status_code == 413


@pytest.mark.parametrize("name", ["9X", "api_token", "A-B", "PORT", "LD_PRELOAD", "A" * 101])
async def test_a_name_that_no_secret_can_have_is_refused(api: QuietApi, name: str) -> None:
    answer = await api.client.put(f"{PATH}/{name}", json={"value": SECRET})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "name"
    assert SECRET not in answer.text
    for absent in (name, "%00"):
        assert (await api.client.delete(f"{PATH}/{absent}")).status_code == 404


async def test_what_cannot_be_a_project_has_no_secrets(api: QuietApi) -> None:
    for project in ("No", "%00", "a" * 64):
        path = f"/v1/projects/{project}/secrets"
        assert (await api.client.get(path)).status_code == 404
        assert (await api.client.put(f"{path}/A", json={"value": "x"})).status_code == 404
        assert (await api.client.delete(f"{path}/A")).status_code == 404


async def test_a_project_has_a_bounded_number_of_secrets_and_bytes(api: QuietApi) -> None:
    for number in range(MAX_OF_PROJECT - 4):
        await put(api.client, f"S_{number}", "x")
    async with anyio.create_task_group() as tasks:
        for number in range(MAX_OF_PROJECT - 4, MAX_OF_PROJECT + 8):
            set_one = partial(api.client.put, f"{PATH}/S_{number}", json={"value": "x"})
            tasks.start_soon(set_one)
    assert len((await api.get(PATH))["secrets"]) == MAX_OF_PROJECT
    full = await api.client.put(f"{PATH}/ONE_MORE", json={"value": "x"})
    assert (full.status_code, full.json()["errors"][0]["field"]) == (422, "name")
    assert "remove another" in full.json()["detail"]
    name = (await api.get(PATH))["secrets"][0]["name"]
    await put(api.client, name, "what is there can be changed")

    elsewhere = "/v1/projects/blog/secrets"
    for number in range(MAX_OF_PROJECT_BYTES // MAX_VALUE_BYTES):
        await put(api.client, f"S_{number}", "ü" * (MAX_VALUE_BYTES // 2), path=elsewhere)
    large = await api.client.put(f"{elsewhere}/MORE", json={"value": "x"})
    assert (large.status_code, large.json()["errors"][0]["field"]) == (422, "value")
    await put(api.client, "S_0", "shorter", path=elsewhere)
    await put(api.client, "MORE", "x", path=elsewhere)


async def test_a_tenant_has_a_bounded_number_of_secrets_and_delays_no_other(api: QuietApi) -> None:
    async with api.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO headrace.project_secrets (tenant, project, name, key_id, ciphertext) "
                f"SELECT '{TENANT}', 'p' || n / 50, 'S_' || n, 'k', '' "
                f"FROM generate_series(1, {MAX_OF_TENANT}) AS n"
            )
        )
    answer = await api.client.put(f"{PATH}/TOKEN", json={"value": "x"})
    assert "remove some" in answer.json()["detail"]
    await put(api.rival, "TOKEN", "x")


async def test_with_servers_of_ones_own_and_no_key_a_put_says_what_to_set(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine
) -> None:
    async with quiet_api(handler, hub, engine, secrets=ProjectSecrets(engine, SecretKeys())) as api:
        answer = await api.client.put(f"{PATH}/TOKEN", json={"value": SECRET})
        assert answer.status_code == 503
        assert "HEADRACE_SECRETS_KEY is not set" in answer.json()["detail"]
        assert await api.get(PATH) == {"secrets": []}
    assert await ProjectSecrets(engine, SecretKeys()).of_project(TENANT, "shop") == {}


async def test_a_worker_with_another_key_says_which_one_it_lacks(api: QuietApi) -> None:
    await put(api.client, "TOKEN", SECRET)
    (key,) = parse_keys(SECRETS_KEY)
    with pytest.raises(SecretsUnreadable, match=f"secret TOKEN of project shop .* key {key.id}"):
        await kept(api.engine, NEW_KEY).of_project(TENANT, "shop")


async def test_a_row_that_was_moved_to_another_project_is_of_no_use_there(api: QuietApi) -> None:
    await put(api.client, "TOKEN", SECRET)
    async with api.engine.begin() as connection:
        await connection.execute(text("UPDATE headrace.project_secrets SET tenant = 'globex'"))
    with pytest.raises(SecretsUnreadable, match="another's: set it again"):
        await kept(api.engine).of_project(RIVAL, "shop")


async def test_with_postgres_away_a_read_may_be_tried_again() -> None:
    nowhere = connect_postgres("postgresql://nobody@/nothing?host=/nonexistent")
    with pytest.raises(SecretsUnavailable, match="Postgres does not answer"):
        await kept(nowhere).of_project(TENANT, "shop")


async def test_a_rotation_encrypts_all_with_the_first_key_once_and_changes_no_value(
    api: QuietApi,
) -> None:
    old, both = kept(api.engine), kept(api.engine, f"{NEW_KEY},{SECRETS_KEY}")
    refs = [SecretRef(f"t{n % 3}", f"p{n % 7}", f"S_{n}") for n in range(BATCH + 7)]
    for ref in refs:
        await old.put(ref, f"value of {ref.name}")
    before = await old.names("t1", "p1")
    rotated = await both.rotate()
    assert (rotated.rotated, rotated.unreadable) == (BATCH + 7, 0)
    assert (await both.rotate()).rotated == 0
    new = kept(api.engine, NEW_KEY)
    for ref in refs:
        assert (await new.of_project(ref.tenant, ref.project))[ref.name] == f"value of {ref.name}"
    assert await new.names("t1", "p1") == before


async def test_a_rotation_goes_on_behind_what_it_cannot_decrypt_and_tells_of_it(
    api: QuietApi,
) -> None:
    await kept(api.engine, NEW_KEY).put(SecretRef("acme", "shop", "A"), "x")
    await kept(api.engine).put(SecretRef("acme", "shop", "B"), "y")
    third = base64.b64encode(b"3" * 32).decode()
    rotated = await kept(api.engine, f"{third},{SECRETS_KEY}").rotate()
    assert (rotated.rotated, rotated.unreadable) == (1, 1)
    assert "tenant acme: secret A of project shop cannot be decrypted" in rotated.reasons[0]


async def test_what_is_forgotten_is_of_one_project_or_of_one_tenant(api: QuietApi) -> None:
    secrets = kept(api.engine)
    for tenant in ("acme", "globex"):
        for project in ("shop", "blog", "wiki"):
            await secrets.put(SecretRef(tenant, project, "A"), "x")
    assert await forget(api.engine, "acme", "shop") == 1
    assert await forget(api.engine, "acme", None) == 2
    assert await secrets.of_project("globex", "shop") == {"A": "x"}


async def test_the_openapi_names_the_routes_and_shows_the_value_as_a_password(
    api: QuietApi,
) -> None:
    document = await api.get("/openapi.json")
    routes = document["paths"]["/v1/projects/{project_id}/secrets/{name}"]
    assert sorted(routes) == ["delete", "put"]
    value = document["components"]["schemas"]["SecretValue"]["properties"]["value"]
    assert (value["format"], value["writeOnly"]) == ("password", True)
