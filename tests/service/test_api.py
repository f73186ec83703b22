"""The HTTP API of a whole instance: what it accepts, what it refuses and in which words."""

import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest

from schemas import JobRef, Position
from schemas.events import MAX_GOAL_CHARS
from service.api import MAX_BODY_BYTES
from service.instance import LOCAL_TENANT
from service.keys import KeyRing, new_key
from service.problems import MEDIA_TYPE
from tests.service.instances import PATIENCE_S, Running, visitor, whole_stream

pytestmark = pytest.mark.anyio

GOAL = "a todo list for two people"


async def submitted(client: httpx.AsyncClient, **request: Any) -> str:
    """The id of a job that was just accepted."""
    response = await client.post("/v1/jobs", json={"goal": GOAL, **request})
    assert response.status_code == 202, response.text
    job: str = response.json()["job_id"]
    return job


async def post_raw(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return await client.post("/v1/jobs", content=body, headers=headers)


def problem_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document that a refusal must be (RFC 9457)."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == MEDIA_TYPE
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["title"]
    return problem


@pytest.fixture
async def rival(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks with the key of another tenant, whose jobs lie in the same partition as ours."""
    key, partition = new_key(), running.log.store.partition
    tenants = (f"rival-{uuid4()}" for _ in count())
    tenant = next(each for each in tenants if partition(each) == partition(LOCAL_TENANT))
    await KeyRing(running.log.engine).add(key, tenant=tenant, name="test")
    async with visitor(running.instance.url, key) as made:
        yield made


# --- submit ---------------------------------------------------------------------------------------


async def test_an_accepted_job_says_where_it_is_and_where_the_log_stands(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post("/v1/jobs", json={"goal": f"  {GOAL}\n", "project_id": "shop"})
    assert response.status_code == 202
    accepted = response.json()
    assert response.headers["Location"] == accepted["url"] == f"/v1/jobs/{accepted['job_id']}"
    assert response.headers["Headrace-Position"] == accepted["position"]
    assert Position.parse(accepted["position"]).seq >= 1
    assert (accepted["status"], accepted["version"]) == ("queued", 1)
    found = (await client.get(accepted["url"])).json()
    assert (found["goal"], found["project_id"]) == (GOAL, "shop")


async def test_a_job_is_there_the_moment_it_was_accepted(client: httpx.AsyncClient) -> None:
    async def submit_and_get() -> None:
        found = await client.get(f"/v1/jobs/{await submitted(client)}")
        assert found.status_code == 200, found.text

    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(submit_and_get)


async def test_a_repeated_request_with_its_key_gives_the_first_job_and_appends_nothing(
    client: httpx.AsyncClient, running: Running
) -> None:
    headers = {"Idempotency-Key": "order-1"}
    request = {"goal": GOAL, "project_id": "twice"}
    first, again = [await client.post("/v1/jobs", json=request, headers=headers) for _ in range(2)]
    assert first.status_code == again.status_code == 202
    assert first.headers["Location"] == again.headers["Location"]
    assert first.headers["Headrace-Position"] == again.headers["Headrace-Position"]
    await whole_stream(client, first.json()["job_id"])
    store = running.log.store
    log = await store.read_log(store.partition(LOCAL_TENANT), None)
    queued = [
        entry.event.job
        for entry in log
        if entry.event.project == "twice" and entry.event.type == "JobQueued"
    ]
    assert queued == [first.json()["job_id"]]


async def test_a_key_used_for_another_request_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order-2"}
    await client.post("/v1/jobs", json={"goal": GOAL}, headers=headers)
    other = await client.post("/v1/jobs", json={"goal": "something else"}, headers=headers)
    assert "order-2" in problem_of(other, 422)["detail"]


async def test_two_tenants_may_use_the_same_idempotency_key(
    client: httpx.AsyncClient, rival: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": "order-3"}
    mine = await client.post("/v1/jobs", json={"goal": GOAL}, headers=headers)
    theirs = await rival.post("/v1/jobs", json={"goal": "their own idea"}, headers=headers)
    assert theirs.status_code == 202
    assert theirs.json()["job_id"] != mine.json()["job_id"]


# --- list -----------------------------------------------------------------------------------------


async def test_pages_hold_every_job_of_a_filter_once_and_newest_first(
    client: httpx.AsyncClient,
) -> None:
    made = [await submitted(client, project_id="pages") for _ in range(5)]
    await submitted(client, project_id="elsewhere")
    filters = {"project": "pages", "status": "ready"}
    with anyio.fail_after(PATIENCE_S):
        while len((await client.get("/v1/jobs", params=filters)).json()["jobs"]) < 5:
            await anyio.lowlevel.checkpoint()
    found: list[str] = []
    page: dict[str, Any] = {"next": None}
    while page["next"] or not found:
        before = {"before": page["next"]} if page["next"] else {}
        page = (await client.get("/v1/jobs", params={**filters, "limit": 2, **before})).json()
        ids = [job["job_id"] for job in page["jobs"]]
        assert 0 < len(ids) <= 2
        assert not set(ids) & set(found)
        found += ids
    assert found == made[::-1]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "status=done", "before=A+B", "project=.."]
)
async def test_a_filter_that_makes_no_sense_is_refused(
    client: httpx.AsyncClient, query: str
) -> None:
    name = query.partition("=")[0]
    problem = problem_of(await client.get(f"/v1/jobs?{query}"), 422)
    assert [fault["field"] for fault in problem["errors"]] == [name]


# --- whose it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer hr_wrong", "Basic {key}", "{key}", "Bearer {key}x"],
)
async def test_without_a_known_key_nothing_is_answered(
    running: Running, authorization: str | None
) -> None:
    headers = {}
    if authorization is not None:
        headers["Authorization"] = authorization.format(key=running.instance.key)
    async with visitor(running.instance.url) as stranger:
        for method, path in (
            ("GET", "/v1/jobs"),
            ("POST", "/v1/jobs"),
            ("GET", "/v1/jobs/x/stream"),
        ):
            response = await stranger.request(method, path, headers=headers, json={"goal": GOAL})
            problem_of(response, 401)
            assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_the_job_of_another_tenant_looks_like_none_at_all(
    client: httpx.AsyncClient, rival: httpx.AsyncClient
) -> None:
    job, nobodys = await submitted(client), str(uuid4())
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/stream")):
        answers = [
            problem_of(await rival.request(method, f"/v1/jobs/{each}{path}"), 404)
            for each in (job, nobodys)
        ]
        theirs, none = [json.dumps(answer) for answer in answers]
        assert theirs.replace(job, "?") == none.replace(nobodys, "?")
    assert (await rival.get("/v1/jobs")).json() == {"jobs": [], "next": None}
    (ended,) = [m for m in await whole_stream(client, job) if m.event == "JobReady"]
    assert ended.data["data"]["build_number"] >= 1


# --- goals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "goal",
    [
        "🛒 a shopping list for 👩‍👩‍👧",
        "قائمة مهام لشخصين",
        "a list \u202etsil a",
        "a list\u2028of two\x85lines",
        "'; DROP TABLE jobs; --",
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "${HOME} `id` {{7*7}} %s \\",
        "x" * MAX_GOAL_CHARS,
    ],
    ids=lambda goal: ascii(goal[:20]),
)
async def test_any_words_are_a_goal_and_stay_as_they_are(
    client: httpx.AsyncClient, goal: str
) -> None:
    job = await submitted(client, goal=goal)
    messages = await whole_stream(client, job)
    assert messages[0].data["data"]["goal"] == goal
    assert messages[-1].event == "JobReady"
    assert (await client.get(f"/v1/jobs/{job}")).json()["goal"] == goal
    assert (await client.get("/v1/jobs")).status_code == 200


@pytest.mark.parametrize(
    ("goal", "reason"),
    [
        (b'""', "it is empty"),
        (b'" \\n\\t "', "it is empty"),
        (b'"%s"' % (b"x" * (MAX_GOAL_CHARS + 1)), f"at most {MAX_GOAL_CHARS} fit"),
        (b'"%s"' % (b"x" * 100_000), "it has 100000 characters"),
        (b'"a\\u0000b"', "NUL"),
        (b'"a\\ud800b"', "surrogates"),
        (b"5", "string"),
        (b"null", "string"),
        (b'["a list"]', "string"),
    ],
    ids=lambda value: ascii(value[:20]),
)
async def test_what_is_no_goal_is_refused_with_the_reason(
    client: httpx.AsyncClient, goal: bytes, reason: str
) -> None:
    problem = problem_of(await post_raw(client, b'{"goal": %s}' % goal), 422)
    assert [fault["field"] for fault in problem["errors"]] == ["goal"]
    assert reason in problem["detail"]


# --- requests that cannot be used -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b'{"goal": "a list",}', "body"),
        (b"\xff\xfe", "body"),
        (b"[]", "body"),
        (b'"a list"', "body"),
        (b"{}", "goal"),
        (b'{"goal": "a list", "gaol": 1}', "gaol"),
        (b'{"goal": "a list", "a\\ud800b": 1}', None),
        (b'{"goal": "a list", "project_id": "a b"}', "project_id"),
        (b'{"goal": "a list", "project_id": ""}', "project_id"),
        (b'{"goal": "a list", "project_id": "../shop"}', "project_id"),
        (b'{"goal": "a list", "project_id": "-shop"}', "project_id"),
        (b'{"goal": "a list", "project_id": "Shop"}', "project_id"),
        (b'{"goal": "a list", "project_id": "\\ud800"}', "project_id"),
        (b'{"goal": "a list", "project_id": "%s"}' % (b"x" * 64), "project_id"),
        (b'{"goal": "a list", "user_id": "ann@example.org"}', "user_id"),
        (b'{"goal": "a list", "tier": "gold"}', "tier"),
    ],
    ids=lambda value: ascii(value[-30:]) if value else "none",
)
async def test_a_request_that_cannot_be_used_is_refused_by_field(
    client: httpx.AsyncClient, body: bytes, field: str | None
) -> None:
    problem = problem_of(await post_raw(client, body), 422)
    assert problem["detail"]
    if field is not None:
        assert [fault["field"] for fault in problem["errors"]] == [field]


@pytest.mark.parametrize("body", [b"\xff", b'{"goal": "\xff"}', b"[" * 100_000])
async def test_a_body_that_is_no_json_text_is_a_bad_request(
    client: httpx.AsyncClient, body: bytes
) -> None:
    problem_of(await post_raw(client, body), 400)


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "naïve", "a/b"])
async def test_an_idempotency_key_out_of_shape_is_refused(
    client: httpx.AsyncClient, key: str
) -> None:
    headers = {b"Idempotency-Key": key.encode("latin-1")}
    problem_of(await client.post("/v1/jobs", json={"goal": GOAL}, headers=headers), 422)


async def test_a_body_that_says_it_is_too_large_is_refused(client: httpx.AsyncClient) -> None:
    padding = "x" * MAX_BODY_BYTES
    problem = problem_of(await client.post("/v1/jobs", json={"goal": GOAL, "x": padding}), 413)
    assert str(MAX_BODY_BYTES) in problem["title"]


async def test_a_body_of_unsaid_length_is_refused_as_soon_as_it_is_too_large(
    running: Running,
) -> None:
    size = MAX_BODY_BYTES + 1
    request = (
        "POST /v1/jobs HTTP/1.1\r\n"
        "Host: headrace\r\n"
        f"Authorization: Bearer {running.instance.key}\r\n"
        "Content-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
        f"{size:x}\r\n"
    )
    port = httpx.URL(running.instance.url).port
    assert port is not None
    with anyio.fail_after(PATIENCE_S):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(request.encode() + b" " * size)  # and its end never comes
            answer = b""
            while b"}" not in answer:
                answer += await stream.receive()
    assert b" 413 " in answer.splitlines()[0]
    assert MEDIA_TYPE.encode() in answer


@pytest.mark.parametrize(
    "job",
    [
        "01890000-0000-7000-8000-000000000000",
        "no-such-job",
        "%00",
        "%ff",
        "a%0d%0ab",
        "..%2f..%2fetc%2fpasswd",
        "'%20OR%201=1",
        "%F0%9F%98%80",
        "*",
        "x" * 5_000,
    ],
    ids=lambda job: job[:20],
)
async def test_what_is_no_job_is_not_found(client: httpx.AsyncClient, job: str) -> None:
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/stream")):
        problem_of(await client.request(method, f"/v1/jobs/{job}{path}"), 404)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/v2/jobs", 404), ("DELETE", "/v1/jobs", 405)],
)
async def test_what_is_not_offered_is_a_problem_document_too(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    problem_of(await client.request(method, path), status)


# --- cancel ---------------------------------------------------------------------------------------


async def test_a_job_that_has_ended_cannot_be_cancelled(
    client: httpx.AsyncClient, running: Running
) -> None:
    job = await submitted(client)
    await whole_stream(client, job)
    problem = problem_of(await client.post(f"/v1/jobs/{job}/cancel"), 409)
    assert "ready" in problem["detail"]
    events = await running.log.store.read_job(JobRef(LOCAL_TENANT, job))
    assert events[-1].type == "JobReady"
