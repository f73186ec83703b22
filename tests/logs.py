"""A log for each test: empty and open, as `open_log` leaves it where there was none.

To make it so takes a tenth of what opening does, which verifies that a log made just now is whole.
"""

from collections.abc import Callable
from uuid import uuid4

from redis.asyncio import Redis

from eventstore import Archive, EventStore
from eventstore.keys import FORMAT, Keys
from eventstore.scripts import Scripts
from eventstore.verification import FIRST_EPOCH, Verification, check_server

PARTITIONS = 4


async def new_log(
    redis: Redis, archive: Archive, execute: Callable[[str], None], *, tenant_cap: int
) -> EventStore:
    """The log, on an empty Redis and a database as new, in which `execute` runs a statement."""
    server, scripts = await check_server(redis), Scripts(redis)
    lineages = {partition: str(uuid4()) for partition in range(PARTITIONS)}
    for partition, lineage in lineages.items():
        keys = Keys(partition)
        await scripts(
            "create",
            [keys.meta, keys.log, keys.work("high"), keys.work("normal")],
            [lineage, FIRST_EPOCH, server, FORMAT, PARTITIONS, 0],
        )
    partitions = ", ".join(f"({number}, '{one}', 'open')" for number, one in lineages.items())
    epochs = ", ".join(f"({number}, {FIRST_EPOCH}, 1, '')" for number in lineages)
    execute(
        f"INSERT INTO headrace.log_partitions (partition, lineage, state) VALUES {partitions};"
        f"INSERT INTO headrace.log_epochs (partition, epoch, start_seq, run) VALUES {epochs}"
    )
    verification = Verification(redis, archive, PARTITIONS)
    verification.server, verification.lineages = server, lineages
    await verification.guard(redis)
    return EventStore(redis, archive, verification, partitions=PARTITIONS, tenant_cap=tenant_cap)
