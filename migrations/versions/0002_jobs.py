"""The read model: jobs, and the checkpoints of its fold."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATUSES = (
    "'queued', 'starting', 'scaffold', 'code', 'deps', 'checks', 'cancelling', 'ready', 'failed', "
    "'cancelled'"
)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("goal", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("base_build", sa.Integer),
        sa.Column("build_number", sa.Integer),
        sa.Column("manifest", sa.Text),
        sa.Column("failed_phase", sa.Text),
        sa.Column("failure_kind", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("debug_id", sa.Text),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", sa.Double, nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("position", sa.Text, nullable=False),
        sa.UniqueConstraint("tenant", "project_id", "build_number", name="jobs_build_number"),
        sa.CheckConstraint(f"status in ({STATUSES})", name="jobs_status"),
    )
    op.create_index("jobs_tenant_id", "jobs", ["tenant", "id"])
    op.create_table(
        "checkpoints",
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("checkpoints")
    op.drop_table("jobs")
