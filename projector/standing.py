"""How far the read model is: what is folded of each partition, and which tables are left out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from projector.projections import PROJECTIONS
from projector.writing import current, driver
from schemas import Position

_LOOK = """
SELECT (SELECT json_object_agg(name, version) FROM headrace.projections)::text AS built,
       (SELECT json_agg(json_build_array(partition, epoch, seq)) FROM public.checkpoints)::text
       AS folded
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """Up to where each partition is folded; `left_out` are the tables that wait for a backfill.

    Those are not folded into meanwhile, whatever the checkpoints say.
    """

    folded: Mapping[int, Position]
    left_out: frozenset[str] = frozenset()


async def standing(connection: AsyncConnection) -> Standing:
    """How far the read model is now, in one statement."""
    row = await (await driver(connection)).fetchrow(_LOOK)
    assert row is not None  # noqa: S101 - without a FROM there is one
    built = {one.name for one in current(PROJECTIONS, json.loads(row["built"] or "{}"))}
    folded = [Position(*parts) for parts in json.loads(row["folded"] or "[]")]
    return Standing(
        {position.partition: position for position in folded},
        frozenset(one.name for one in PROJECTIONS if one.name not in built),
    )
