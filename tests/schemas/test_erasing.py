"""What is left of an event when its job is erased."""

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Phase, decode, evolve
from schemas.decoding import PAYLOADS, UPCASTERS
from schemas.erasing import HASH, KEPT, RULES, tombstone
from schemas.events import JobFailed, JobQueued, Known, Limits, PhaseCompleted, UnknownEvent
from tests.histories import job_histories, recorded
from tests.schemas.payloads import any_payload

SECRET = "a diary for Erika Mustermann"


def erased(event_type: str, data: bytes) -> bytes:
    return tombstone(event_type, data, sha256=sha256(data).hexdigest())


def left_of(payload: Known) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(erased(payload.type, payload.model_dump_json().encode()))
    return found


@pytest.mark.parametrize("event_type", sorted(PAYLOADS))
def test_of_every_field_of_every_event_it_is_decided_whether_it_stays(event_type: str) -> None:
    assert RULES[event_type].keys() == PAYLOADS[event_type].model_fields.keys()


def test_every_wire_type_that_can_be_read_has_rules() -> None:
    assert RULES.keys() == {*PAYLOADS, *UPCASTERS}


@given(any_payload)
def test_a_tombstone_is_an_event_of_its_type_with_the_hash_of_what_stood_there(
    payload: Known,
) -> None:
    data = payload.model_dump_json().encode()
    left = erased(payload.type, data)
    assert json.loads(left)[HASH] == sha256(data).hexdigest()
    read = decode(payload.type, left)
    assert type(read) is type(payload)
    for name, rule in RULES[payload.type].items():
        expected = getattr(payload, name) if rule is KEPT else rule
        assert getattr(read, name) == expected


@given(any_payload)
def test_the_tombstone_of_a_tombstone_is_itself(payload: Known) -> None:
    once = erased(payload.type, payload.model_dump_json().encode())
    assert erased(payload.type, once) == once


@given(job_histories())
def test_an_erased_job_has_gone_the_same_way_and_used_the_same(history: list[Known]) -> None:
    before = after = None
    for event in recorded(history):
        data = erased(event.type, event.data)
        before = evolve(before, event)
        after = evolve(after, event._replace(data=data, payload=decode(event.type, data)))
        if before is None or after is None:
            assert before is after
            continue
        for name in (
            "tenant", "project", "tier", "base_build", "status", "version", "queued_at",
            "started_at", "finished_at", "updated_at", "attempt", "round", "completed",
            "scaffold_ms", "code_ms", "deps_ms", "checks_ms", "build_number", "build_version",
            "failed_phase", "failure_kind", "debug_id", "input_tokens", "output_tokens", "cost_usd",
        ):  # fmt: skip
            assert getattr(after, name) == getattr(before, name), name


def test_of_a_request_who_asked_and_what_for_is_gone() -> None:
    left = left_of(
        JobQueued(tenant="acme", user_id="erika", project_id="shop", goal=SECRET, tier="pro")
    )
    del left[HASH]
    assert left == {
        "tenant": "acme",
        "user_id": "erased",
        "project_id": "shop",
        "goal": "[erased]",
        "tier": "pro",
        "base_build": None,
        "base_manifest": None,
        "base_job": None,
        "restore": False,
        "in_place": False,
        "limits": Limits().model_dump(),
    }


def test_of_a_failure_kind_and_debug_id_stay() -> None:
    left = left_of(JobFailed(phase=Phase.CODE, kind="runner", message=SECRET, debug_id="dbg-1"))
    del left[HASH]
    assert left == {
        "phase": "code",
        "kind": "runner",
        "message": "[erased]",
        "debug_id": "dbg-1",
        "log": None,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": 0.0,
    }


def test_of_a_phase_evidence_and_files_are_gone_and_the_bill_stays() -> None:
    left = left_of(
        PhaseCompleted(
            phase=Phase.CHECKS,
            duration_ms=7,
            evidence={SECRET: SECRET},
            manifest="ab" * 32,
            input_tokens=2**60,
            cost_usd=0.1,
        )
    )
    assert left["evidence"] == {}
    assert left["manifest"] is None
    assert (left["duration_ms"], left["input_tokens"], left["cost_usd"]) == (7, 2**60, 0.1)


def test_a_field_that_a_newer_writer_added_is_left_out() -> None:
    data = json.dumps({"attempt": 1, "worker": "w", "owner": SECRET}).encode()
    assert json.loads(erased("JobStarted", data)).keys() == {"attempt", "worker", HASH}


def test_an_event_of_an_unknown_type_is_left_with_its_hash_alone() -> None:
    data = json.dumps({"attempt": 1, "goal": SECRET}).encode()
    left = erased("JobPraised", data)
    assert json.loads(left) == {HASH: sha256(data).hexdigest()}
    assert decode("JobPraised", left) == UnknownEvent()
    assert erased("JobPraised", left) == left


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b'"' + SECRET.encode() + b'"',
        b'{"attempt":0,"worker":"' + SECRET.encode() + b'"}',
        b'{"attempt":1,"worker":"' + SECRET.encode() + b'"',
    ],
)
def test_a_payload_that_cannot_be_decoded_is_left_with_its_hash_alone(data: bytes) -> None:
    left = erased("JobStarted", data)
    assert json.loads(left) == {HASH: sha256(data).hexdigest()}
    assert erased("JobStarted", left) == left


@given(st.binary())
def test_of_whatever_bytes_there_is_a_tombstone(data: bytes) -> None:
    left = erased("JobQueued", data)
    assert erased("JobQueued", left) == left


def test_a_field_that_only_looks_like_a_hash_is_not_taken_for_one() -> None:
    data = json.dumps({HASH: SECRET}).encode()
    assert json.loads(erased("JobPraised", data)) == {HASH: sha256(data).hexdigest()}
