"""Names of things, and where their tenants live."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from schemas import Position, Slug, is_id, partition_of

slug: TypeAdapter[str] = TypeAdapter(Slug)
small = st.integers(0, 10**9 - 1)
large = st.integers(0, 10**18 - 1)

GOOD = ["a", "7", "acme", "a-b_c", "0--", "a" * 63, "01900000-0000-7000-8000-000000000001"]
BAD = [
    "",
    "-a",
    "_a",
    "A",
    "a b",
    "a/b",
    "a.b",
    "a:b",
    "a{b}",
    "ä",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "a" * 64,
    "a\n",
    "a\r",
    "\na",
    "a\0",
]


@pytest.mark.parametrize("text", GOOD)
def test_an_id_is_taken(text: str) -> None:
    assert is_id(text)
    assert slug.validate_python(text) == text


@pytest.mark.parametrize("text", BAD)
def test_what_would_have_to_be_escaped_somewhere_is_no_id(text: str) -> None:
    assert not is_id(text)
    with pytest.raises(ValidationError):
        slug.validate_python(text)


@given(st.text(max_size=70))
def test_both_forms_of_the_rule_agree(text: str) -> None:
    try:
        slug.validate_python(text)
    except ValidationError:
        assert not is_id(text)
    else:
        assert is_id(text)


# --- partitions ----------------------------------------------------------------------------------


def test_a_tenant_stays_in_its_partition_for_ever() -> None:
    # Written down once: a log that was made with these numbers is read with these numbers.
    assert [partition_of(tenant, 8) for tenant in ("acme", "globex", "initech")] == [6, 2, 0]
    assert partition_of("acme", 1) == 0


def test_tenants_spread_over_all_partitions() -> None:
    tenants = Counter(partition_of(f"tenant-{n}", 8) for n in range(8_000))
    assert set(tenants) == set(range(8))
    assert max(tenants.values()) < 2 * min(tenants.values())


# --- positions -----------------------------------------------------------------------------------


@given(small, large, large)
def test_a_position_comes_back_from_its_text(partition: int, epoch: int, seq: int) -> None:
    position = Position(partition, epoch, seq)
    assert Position.parse(str(position)) == position
    assert str(position) == f"{partition}:{position.entry_id}"
    assert Position.at(partition, position.entry_id) == position


@pytest.mark.parametrize("entry_id", ["", "1", "1-2-3", "0:1-2", "$", "-"])
def test_nothing_stands_at_what_is_no_entry_id(entry_id: str) -> None:
    with pytest.raises(ValueError, match="not a position"):
        Position.at(0, entry_id)


@given(st.text("0123456789:- \n+٣", max_size=12))
def test_what_parses_is_exactly_what_str_gives(text: str) -> None:
    try:
        position = Position.parse(text)
    except ValueError:
        return
    assert str(position) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-2",
        "1:2",
        "1:2-",
        ":1-2",
        "1:-2",
        "-1:1-2",
        "1:1-2\n",
        " 1:1-2",
        "1:1-2-3",
        "1:1:2",
        "+1:1-2",
        "1:01-2",
        "٣:1-2",
        "1:1_0-2",
        "1:1.0-2",
        "1234567890:1-2",
        "1:1-1234567890123456789",
        "$",
        "x" * 10_000,
    ],
)
def test_what_is_no_position_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ValueError, match="not a position") as caught:
        Position.parse(text)
    assert len(str(caught.value)) < 200


def test_positions_of_a_partition_are_ordered_by_epoch_and_then_sequence() -> None:
    ordered = [Position(0, 1, 9), Position(0, 1, 10), Position(0, 2, 1), Position(0, 10, 1)]
    mixed = [ordered[number] for number in (2, 0, 3, 1)]
    assert sorted(mixed) == ordered
