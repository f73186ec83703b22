"""Ids of events."""

from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

from eventstore.ids import new_id


def test_an_id_is_a_uuid_of_version_7() -> None:
    ids = [UUID(new_id()) for _ in range(100)]
    assert {(one.version, one.variant) for one in ids} == {(7, RFC_4122)}
    assert len(set(ids)) == 100


def test_an_id_begins_with_its_time_and_is_written_as_others_are() -> None:
    before, one = datetime.now(UTC), new_id()
    made = datetime.fromtimestamp((UUID(one).int >> 80) / 1000, UTC)
    assert before - timedelta(milliseconds=1) <= made <= datetime.now(UTC)
    assert one == str(UUID(one))
