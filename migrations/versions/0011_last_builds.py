"""Last build numbers in a table of their own, which no detached part of the archive takes along."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SCHEMA = "headrace"
# The read model also remembers builds of parts that are detached already. A quotation mark within a
# text of the payload has a backslash before it, so no text can pass for the number.
FILL = f"""
INSERT INTO {SCHEMA}.last_builds (tenant, project, number)
SELECT tenant, project, max(number) FROM (
    SELECT tenant, project,
           substring(encode(data, 'escape') FROM '"build_number": ?([0-9]+)')::numeric AS number
    FROM {SCHEMA}.events WHERE type = 'JobReady'
    UNION ALL
    SELECT tenant, project_id, build_number FROM jobs
) AS known
WHERE number IS NOT NULL GROUP BY tenant, project
"""


def upgrade() -> None:
    op.create_table(
        "last_builds",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("number", sa.Numeric, nullable=False),
        schema=SCHEMA,
    )
    op.execute(FILL)
    op.drop_index("events_ready", table_name="events", schema=SCHEMA)


def downgrade() -> None:
    op.create_index(
        "events_ready",
        "events",
        ["tenant", "project"],
        schema=SCHEMA,
        postgresql_where=sa.text("type = 'JobReady'"),
    )
    op.drop_table("last_builds", schema=SCHEMA)
