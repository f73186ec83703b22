"""The tables of the projector itself; those of the read model stand with their projections.

The read model is in the default schema, where everybody's `psql` finds it: all of it can be thrown
away and folded again. What cannot is in the schema `headrace`.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    func,
)

from eventstore.tables import SCHEMA

metadata = MetaData()
own_metadata = MetaData(schema=SCHEMA)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
)

fold_lock = Table(
    "fold_lock",
    own_metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
)

parked = Table(
    "parked",
    own_metadata,
    Column("job", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    # The first event that is not folded; all of the job's later ones wait behind it.
    Column("partition", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="parked"),
    Column("parked_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("state in ('parked', 'discarded')", name="parked_state"),
    Index("parked_partition", "partition"),
)

projections_table = Table(
    "projections",
    own_metadata,
    Column("name", Text, primary_key=True),
    # The version of the fold that its rows were made by.
    Column("version", Integer, nullable=False),
    Column("built_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
