"""Alembic's environment. It runs on the connection that `service.migrating` gives it."""

from alembic import context
from sqlalchemy import Connection

from eventstore.tables import SCHEMA
from eventstore.tables import metadata as archive_metadata
from projector import projections  # noqa: F401 - each adds its table to the read model
from projector.tables import metadata as read_model_metadata
from projector.tables import own_metadata
from service.keys import metadata as keys_metadata
from service.project_secrets import metadata as secrets_metadata

TARGETS = [archive_metadata, own_metadata, read_model_metadata, keys_metadata, secrets_metadata]


def _ours(name: str | None, kind: str, _: object) -> bool:
    if kind == "table" and name is not None and name.startswith("events_"):
        return False  # a part of the archive
    return kind != "schema" or name in (None, SCHEMA)


def migrate(connection: Connection) -> None:
    """Run what Alembic was asked for, all in one transaction."""
    context.configure(
        connection=connection,
        target_metadata=TARGETS,
        include_schemas=True,
        include_name=_ours,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


migrate(context.config.attributes["connection"])
