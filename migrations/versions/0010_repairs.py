"""What repairs and retries cost, where a job's output is kept, and whether it restores a build."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

COUNTS = (
    ("repair_input_tokens", sa.BigInteger),
    ("repair_output_tokens", sa.BigInteger),
    ("repair_cost_usd", sa.Double),
    ("retries", sa.Integer),
)


def upgrade() -> None:
    # What was folded before has none of these: its rows are right as they are.
    for name, kind in COUNTS:
        op.add_column("jobs", sa.Column(name, kind, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("restore", sa.Boolean, nullable=False, server_default="false"))
    op.add_column("jobs", sa.Column("log", sa.Text))


def downgrade() -> None:
    for name in ("log", "restore", *(name for name, _ in reversed(COUNTS))):
        op.drop_column("jobs", name)
