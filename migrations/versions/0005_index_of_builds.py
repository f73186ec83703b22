"""An index of the archive's READY events: where a project's last build number is read from."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "events_ready",
        "events",
        ["tenant", "project"],
        schema="headrace",
        postgresql_where=sa.text("type = 'JobReady'"),
    )


def downgrade() -> None:
    op.drop_index("events_ready", table_name="events", schema="headrace")
