"""What may stand in a payload, and what is stopped at the door."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas import Phase
from schemas.events import MAX_GOAL_CHARS, JobQueued, JobStarted, Payload, PhaseCompleted
from tests.histories import queued


def evidence(facts: dict[str, Any]) -> PhaseCompleted:
    return PhaseCompleted(phase=Phase.CODE, duration_ms=1, evidence=facts)


@pytest.mark.parametrize("text", ["a\0b", "\0", "\ud800", "a\udfff", "\udc00\ud800"])
def test_text_that_cannot_be_stored_is_refused_wherever_it_stands(text: str) -> None:
    with pytest.raises(ValidationError):
        queued(goal=text)
    with pytest.raises(ValidationError):
        JobStarted(attempt=1, worker=text)
    with pytest.raises(ValidationError):
        evidence({"fact": text})
    with pytest.raises(ValidationError):
        evidence({text: "fact"})


@pytest.mark.parametrize("text", ["🙂", "\U0010ffff", "ü\n\t\x01", "\ue000", "\ufeff", "\u2028"])
def test_all_other_text_is_taken_as_it_is(text: str) -> None:
    assert queued(goal=text).goal == text
    assert evidence({text: text}).evidence == {text: text}


def test_a_goal_has_at_least_one_character_and_at_most_so_many() -> None:
    with pytest.raises(ValidationError, match="at least 1 character"):
        queued(goal="")
    with pytest.raises(ValidationError, match=f"at most {MAX_GOAL_CHARS} characters"):
        queued(goal="🙂" * (MAX_GOAL_CHARS + 1))
    assert len(queued(goal="🙂" * MAX_GOAL_CHARS).goal) == MAX_GOAL_CHARS


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_json_cannot_say_are_refused(number: float) -> None:
    with pytest.raises(ValidationError):
        evidence({"fact": number})
    with pytest.raises(ValidationError):
        PhaseCompleted(phase=Phase.CODE, duration_ms=1, cost_usd=number)


@pytest.mark.parametrize("name", ["tenant", "user_id", "project_id"])
@pytest.mark.parametrize("value", ["", "Acme", "a/b", "-a", "a\n", "ä", "a" * 64])
def test_ids_in_a_payload_have_the_shape_of_ids(name: str, value: str) -> None:
    fields = {"tenant": "acme", "user_id": "ann", "project_id": "shop", "goal": "a list"}
    with pytest.raises(ValidationError, match=name):
        JobQueued.model_validate(fields | {name: value})


def test_a_payload_never_changes() -> None:
    payload = queued()
    with pytest.raises(ValidationError, match="frozen"):
        payload.goal = "another"  # type: ignore[misc]


def test_every_payload_is_described_for_its_readers() -> None:
    assert all(model.__doc__ for model in Payload.__subclasses__())
