"""From recorded bytes to payloads: every type, unknown ones, old ones, damaged ones."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings

from schemas import Phase, UndecodableEvent, decode
from schemas.decoding import PAYLOADS, UPCASTERS, Upcaster
from schemas.events import JobQueued, JobStarted, Known, PhaseCompleted, UnknownEvent, Unreadable
from tests.histories import new, queued
from tests.schemas.payloads import any_payload, payloads


def data_of(payload: Known) -> bytes:
    """The bytes under which the log keeps a payload."""
    (event,) = new([payload])
    return event.data


@given(any_payload)
@settings(max_examples=100)
def test_every_payload_comes_back_from_its_bytes(payload: Known) -> None:
    data = data_of(payload)
    read = decode(payload.type, data)
    assert read == payload
    assert not isinstance(read, UnknownEvent)
    # 1, 1.0 and True are equal in Python: the bytes tell them apart.
    assert data_of(read) == data


def test_every_event_type_is_tried_and_has_a_name_of_its_own() -> None:
    assert set(payloads) == set(get_args(Known)) == set(PAYLOADS.values())
    assert len(PAYLOADS) == len(get_args(Known))


def test_evidence_keeps_the_kinds_of_its_facts() -> None:
    evidence = {"n": 1, "x": 1.0, "yes": True, "s": "1", "big": 2**100, "none": None, "🙂": "ü"}
    payload = PhaseCompleted(phase=Phase.CHECKS, duration_ms=1, evidence=evidence)
    read = decode(payload.type, data_of(payload))
    assert isinstance(read, PhaseCompleted)
    assert [(key, type(value), value) for key, value in read.evidence.items()] == [
        (key, type(value), value) for key, value in evidence.items()
    ]


def test_a_type_of_a_newer_writer_is_unknown_whatever_its_data() -> None:
    for data in (b"{}", b"[]", b'{"deep":[[{"a":[]}]]}', b"not even JSON"):
        assert decode("JobPraised", data) == UnknownEvent()


def test_fields_of_a_newer_writer_are_passed_over() -> None:
    assert decode("JobStarted", b'{"attempt":1,"worker":"w1","mood":"good"}') == JobStarted(
        attempt=1, worker="w1"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"attempt":1}',
        b'{"attempt":0,"worker":"w1"}',
        b'{"attempt":"one","worker":"w1"}',
        b'{"attempt":1,"worker":"\xff"}',
        b'{"attempt":1,"worker":"\\u0000"}',
        b'{"attempt":1,"worker":"\\ud800"}',
        b'{"attempt":1,"worker":"w1"} and more',
    ],
)
def test_damaged_data_is_named_and_kept(data: bytes) -> None:
    with pytest.raises(UndecodableEvent, match="JobStarted cannot be decoded") as caught:
        decode("JobStarted", data)
    assert (caught.value.event_type, caught.value.data) == ("JobStarted", data)


@pytest.mark.parametrize(
    ("event_type", "data", "reason"),
    [
        ("JobStarted", b'{"attempt":0}', "attempt: Input should be greater than or equal to 1"),
        ("JobStarted", b'{"attempt":0}', "; worker: Field required"),
        ("JobStarted", b'["a secret"]', "the payload: Input should be an object"),
        ("JobQueued", b'{"goal":"a secret"}', "KeyError: 'title'"),
        ("JobQueued", b'{"title":"a secret"', "JSONDecodeError: Expecting"),
    ],
)
def test_what_cannot_be_decoded_names_type_and_reason_in_one_line_and_keeps_secrets(
    event_type: str, data: bytes, reason: str
) -> None:
    with pytest.raises(UndecodableEvent) as caught:
        decode(event_type, data, payloads={"JobStarted": JobStarted}, upcasters=CHAIN)
    message = str(caught.value)
    assert message.startswith(f"{event_type} cannot be decoded: ")
    assert reason in message
    assert "\n" not in message
    assert "secret" not in message


# --- what has been recorded ----------------------------------------------------------------------

ON_RECORD: dict[str, bytes] = {
    "JobQueued": b'{"tenant":"acme","user_id":"ann","project_id":"shop","goal":"a list",'
    b'"tier":"pro","base_build":2}',
    "JobStarted": b'{"attempt":1,"worker":"w1"}',
    "PhaseStarted": b'{"phase":"scaffold","round":1}',
    "RetryScheduled": b'{"phase":"deps","round":1,"step":"install","tries":1,"kind":"network",'
    b'"message":"no answer","wait_s":0.5,"input_tokens":0,"output_tokens":0,"cost_usd":0.0}',
    "PhaseCompleted": b'{"phase":"checks","round":2,"duration_ms":7,"evidence":{"status":200},'
    b'"manifest":"files-1","input_tokens":10,"output_tokens":3,"cost_usd":0.25}',
    "SandboxCreated": b'{"sandbox_id":"sb-1","provider":"local","ends_at":"2026-03-01T13:00:00Z"}',
    "ChecksFailed": b'{"round":1,"fingerprint":"f-1","command":"pytest","exit_code":null,'
    b'"output":"red"}',
    "CancelRequested": b'{"by":"ann","reason":"too slow"}',
    "JobReady": b'{"build_number":1,"build_version":"build_v0_1","sandbox_id":"sb-1",'
    b'"preview_url":"https://8080-sb-1.example","workspace_path":"/home/user/project",'
    b'"manifest":"files-1"}',
    "JobFailed": b'{"phase":"deps","kind":"runner","message":"try another goal",'
    b'"debug_id":"dbg-1"}',
    "JobCancelled": b'{"by":"ann","reason":"too slow"}',
    "PreviewRequested": b'{"by":"ann"}',
    "PreviewPaused": b"{}",
    "PreviewResumed": b'{"sandbox_id":"sb-2","preview_url":"https://8080-sb-2.example",'
    b'"ends_at":"2026-03-01T13:00:00Z"}',
    "PreviewExpired": b'{"reason":"time-out"}',
}
"""An event of every wire type as it stands in logs. Lines are added here and never changed."""


def test_every_wire_type_is_on_record() -> None:
    assert ON_RECORD.keys() == {*PAYLOADS, *UPCASTERS}


@pytest.mark.parametrize("event_type", ON_RECORD)
def test_what_is_on_record_is_read_in_full(event_type: str) -> None:
    read = decode(event_type, ON_RECORD[event_type])
    assert not isinstance(read, UnknownEvent | Unreadable)
    if event_type in PAYLOADS:
        assert json.loads(data_of(read)).items() >= json.loads(ON_RECORD[event_type]).items()


# --- old versions --------------------------------------------------------------------------------


def split_goal(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """`JobQueued` once had a title and a text."""
    title, text = values.pop("title"), values.pop("text")
    return "JobQueued.v2", {**values, "goal": f"{title.strip()}: {text}"}


def rename_owner(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """`JobQueued.v2` said `owner`."""
    return "JobQueued.v3", {**values, "user_id": values.pop("owner")}


CHAIN: dict[str, Upcaster] = {"JobQueued": split_goal, "JobQueued.v2": rename_owner}
NEWEST = {"JobQueued.v3": JobQueued}
OLDEST = {
    "tenant": "acme",
    "owner": "ann",
    "project_id": "shop",
    "title": "lists ",
    "text": "for two",
}


@pytest.mark.parametrize(
    ("event_type", "data"),
    [
        ("JobQueued", OLDEST),
        (
            "JobQueued.v2",
            {"tenant": "acme", "owner": "ann", "project_id": "shop", "goal": "lists: for two"},
        ),
        (
            "JobQueued.v3",
            {"tenant": "acme", "user_id": "ann", "project_id": "shop", "goal": "lists: for two"},
        ),
    ],
)
def test_every_old_version_is_brought_up_to_the_newest(
    event_type: str, data: dict[str, Any]
) -> None:
    read = decode(event_type, json.dumps(data).encode(), payloads=NEWEST, upcasters=CHAIN)
    assert read == queued(goal="lists: for two")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b'"text"', b"{}", b'{"title":7,"text":"x"}', b"\xff"]
)
def test_an_old_version_with_damaged_data_is_undecodable(data: bytes) -> None:
    with pytest.raises(UndecodableEvent):
        decode("JobQueued", data, payloads=NEWEST, upcasters=CHAIN)


def test_a_chain_that_ends_at_no_known_type_is_undecodable() -> None:
    with pytest.raises(UndecodableEvent):
        decode("JobQueued", json.dumps(OLDEST).encode(), payloads={}, upcasters=CHAIN)


def test_what_an_upcaster_makes_is_checked_like_anything_else() -> None:
    broken = json.dumps(OLDEST | {"tenant": "No Slug"}).encode()
    with pytest.raises(UndecodableEvent):
        decode("JobQueued", broken, payloads=NEWEST, upcasters=CHAIN)
