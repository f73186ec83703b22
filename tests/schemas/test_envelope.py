"""An event on its way through the log, and as others see it."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given

from schemas import RecordedEvent, UndecodableEvent, cloud_event, format_time, from_fields
from schemas.events import Known, UnknownEvent
from tests.histories import JOB, build, recorded
from tests.schemas.payloads import any_payload, times

ODD_DATA = '{ "a" : [ ],"big":123456789012345678901234567890, "🙂":{"":[[{}]]} }'.encode()


def fields(event: RecordedEvent) -> dict[bytes, bytes]:
    """The entry of an event in a stream, as the log writes it."""
    return {
        b"id": event.id.encode(),
        b"type": event.type.encode(),
        b"tenant": event.tenant.encode(),
        b"project": event.project.encode(),
        b"job": event.job.encode(),
        b"version": str(event.version).encode(),
        b"time": format_time(event.time).encode(),
        b"cause": event.cause.encode(),
        b"trace": event.trace.encode(),
        b"data": event.data,
    }


def unknown(data: bytes = ODD_DATA) -> RecordedEvent:
    """An event of a type that a newer writer added."""
    (event,) = recorded(build()[:1])
    return event._replace(type="JobPraised", data=data, payload=UnknownEvent())


# --- the log's entry -----------------------------------------------------------------------------


@given(any_payload)
def test_an_event_comes_back_from_its_entry(payload: Known) -> None:
    (event,) = recorded([payload])
    event = event._replace(cause="cmd-1", trace="00-abc-def-01")
    assert from_fields(fields(event)) == event


def test_an_event_of_an_unknown_type_keeps_its_bytes() -> None:
    read = from_fields(fields(unknown()))
    assert read == unknown()
    assert read.data == ODD_DATA


def test_an_entry_with_damaged_data_is_undecodable() -> None:
    (event,) = recorded(build()[:1])
    with pytest.raises(UndecodableEvent):
        from_fields(fields(event) | {b"data": b"{"})


@pytest.mark.parametrize(
    "entry", [{}, {b"type": b"JobQueued"}, {b"job": b"x", b"work": b"1"}], ids=str
)
def test_a_foreign_entry_is_undecodable(entry: dict[bytes, bytes]) -> None:
    with pytest.raises(UndecodableEvent):
        from_fields(entry)


@given(times)
def test_a_time_is_written_in_utc_and_read_as_the_same_instant(time: datetime) -> None:
    try:
        written = format_time(time)
    except OverflowError:  # the first and last hours of the calendar, seen from another zone
        return
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", written)
    assert datetime.fromisoformat(written) == time


def test_times_sort_as_text() -> None:
    zone = timezone(timedelta(hours=2))
    early = datetime(2026, 3, 1, 13, 59, 59, 999_999, tzinfo=zone)
    late = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert early < late
    assert format_time(early) < format_time(late)


# --- the CloudEvent ------------------------------------------------------------------------------


def test_a_cloud_event_says_what_happened_to_whom_and_when() -> None:
    (event,) = recorded(build()[:1])
    event = event._replace(cause="cmd-1", trace="00-abc-def-01")
    assert cloud_event(event) == {
        "specversion": "1.0",
        "id": event.id,
        "source": "/headrace/acme/shop",
        "type": "headrace.JobQueued",
        "subject": JOB,
        "time": "2026-03-01T12:00:01.000000Z",
        "datacontenttype": "application/json",
        "tenant": "acme",
        "project": "shop",
        "job": JOB,
        "jobversion": 1,
        "cause": "cmd-1",
        "traceparent": "00-abc-def-01",
        "data": json.loads(event.data),
    }


@pytest.mark.parametrize("event", [*recorded(build()), unknown()], ids=lambda event: event.type)
def test_every_cloud_event_has_what_the_specification_requires(event: RecordedEvent) -> None:
    attributes = cloud_event(event)
    for required in ("specversion", "id", "source", "type"):
        assert isinstance(attributes[required], str)
        assert attributes[required]
    assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in attributes)
    # Attributes are text, numbers or truth; only the data may be more.
    assert all(isinstance(v, str | int) for k, v in attributes.items() if k != "data")
    assert json.loads(json.dumps(attributes)) == attributes


def test_source_and_id_together_are_unique() -> None:
    seen = [(c["source"], c["id"]) for c in map(cloud_event, recorded(build()))]
    assert len(set(seen)) == len(build())


def test_attributes_without_a_value_are_left_out() -> None:
    attributes = cloud_event(recorded(build())[0])
    assert not {"cause", "traceparent"} & attributes.keys()


def test_an_unknown_event_reaches_others_with_all_of_its_data() -> None:
    attributes = cloud_event(from_fields(fields(unknown())))
    assert attributes["type"] == "headrace.JobPraised"
    assert attributes["data"] == {
        "a": [],
        "big": 123456789012345678901234567890,
        "🙂": {"": [[{}]]},
    }
