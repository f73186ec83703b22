"""A row over one that is there already: in memory and in the database the same."""

from itertools import product
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.ext.asyncio import AsyncEngine

from projector.projection import Merge, Projection
from tests.projector.contents import scalar

pytestmark = pytest.mark.anyio

VALUES = (None, 1, 2, 5)
TABLE = Table("there", MetaData(), Column("job", Text, primary_key=True), Column("n", Integer))


def merged(merge: Merge, *values: int | None) -> Any:
    """What a column comes to that takes these values one after the other."""
    projection = Projection(TABLE, merge={"n": merge})
    first, *others = [{"job": "j", "n": value} for value in values]
    for other in others:
        projection.merge_into(first, other)
    return first["n"]


@pytest.mark.parametrize("merge", Merge)
async def test_a_merge_comes_to_the_same_in_a_batch_and_over_a_row(
    engine: AsyncEngine, merge: Merge
) -> None:
    for old, new in product(VALUES, VALUES):
        expression = merge.value.format("n", "there")
        there, excluded = (
            f"(SELECT {'NULL' if value is None else value}::int AS n)" for value in (old, new)
        )
        query = f"SELECT {expression} FROM {there} AS there, {excluded} AS excluded"
        assert merged(merge, old, new) == await scalar(engine, query), (old, new)


@pytest.mark.parametrize("merge", [one for one in Merge if one is not Merge.REPLACE])
def test_what_is_not_known_leaves_what_is_there(merge: Merge) -> None:
    assert merged(merge, 3, None) == merged(merge, None, 3) == 3


@pytest.mark.parametrize("merge", [Merge.ADD, Merge.MOST, Merge.LEAST])
def test_sums_and_extremes_are_the_same_in_any_order(merge: Merge) -> None:
    for one, two, three in product(VALUES, repeat=3):
        assert merged(merge, one, two, three) == merged(merge, three, one, two)
        assert merged(merge, one, merged(merge, two, three)) == merged(merge, one, two, three)
