"""The read model as a set of projections: phases, builds, projects and days beside the jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
MONEY = sa.Numeric(20, 9)


def upgrade() -> None:
    for name, kind in (
        ("worker", sa.Text),
        ("scaffold_ms", sa.BigInteger),
        ("code_ms", sa.BigInteger),
        ("deps_ms", sa.BigInteger),
        ("checks_ms", sa.BigInteger),
        ("expires_at", TIME),
        ("preview", sa.Text),
    ):
        op.add_column("jobs", sa.Column(name, kind))
    op.create_check_constraint(
        "jobs_preview", "jobs", "preview in ('running', 'paused', 'expired')"
    )
    op.create_check_constraint("jobs_version", "jobs", "version >= 1")
    op.drop_index("jobs_tenant_id", table_name="jobs")
    op.create_index("jobs_tenant", "jobs", ["tenant", "queued_at", "id"])
    op.create_index("jobs_project", "jobs", ["tenant", "project_id", "queued_at", "id"])
    op.create_index("jobs_status", "jobs", ["tenant", "status", "queued_at", "id"])
    op.create_index("jobs_tier", "jobs", ["tenant", "tier", "queued_at", "id"])
    op.create_index(
        "jobs_goal", "jobs", [sa.text("to_tsvector('simple', goal)")], postgresql_using="gin"
    )
    op.create_table(
        "phases",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME),
        sa.Column("duration_ms", sa.BigInteger),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "attempt", "round", "phase"),
        sa.CheckConstraint(
            "outcome in ('running', 'completed', 'failed', 'interrupted', 'cancelled')",
            name="phases_outcome",
        ),
        sa.CheckConstraint("phase in ('scaffold', 'code', 'deps', 'checks')", name="phases_phase"),
    )
    op.create_index("phases_tenant", "phases", ["tenant", "started_at"])
    op.create_table(
        "builds",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("goal", sa.Text, nullable=False),
        sa.Column("manifest", sa.Text),
        sa.Column("parent", sa.Integer),
        sa.Column("preview", sa.Text),
        sa.Column("preview_url", sa.Text),
        sa.Column("sandbox_id", sa.Text),
        sa.Column("workspace_path", sa.Text),
        sa.Column("cost_usd", sa.Double, nullable=False),
        sa.Column("ready_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.PrimaryKeyConstraint("tenant", "project_id", "number"),
        sa.UniqueConstraint("job_id", name="builds_job"),
        sa.CheckConstraint("number >= 1", name="builds_number"),
    )
    op.create_table(
        "projects",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("latest_build", sa.Integer),
        *[
            sa.Column(name, sa.Integer, nullable=False)
            for name in ("jobs", "ready", "failed", "cancelled")
        ],
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", MONEY, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "project_id"),
    )
    op.create_table(
        "daily_stats",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("queued", sa.Integer, nullable=False),
        sa.Column("started", sa.Integer, nullable=False),
        sa.Column("queue_wait_ms", sa.BigInteger, nullable=False),
        *[
            sa.Column(name, sa.Integer, nullable=False)
            for name in ("takeovers", "repairs", "ready", "failed", "cancelled")
        ],
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", MONEY, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "project_id", "day"),
    )


def downgrade() -> None:
    for table in ("daily_stats", "projects", "builds", "phases"):
        op.drop_table(table)
    for index in ("jobs_goal", "jobs_tier", "jobs_status", "jobs_project", "jobs_tenant"):
        op.drop_index(index, table_name="jobs")
    op.create_index("jobs_tenant_id", "jobs", ["tenant", "id"])
    for constraint in ("jobs_version", "jobs_preview"):
        op.drop_constraint(constraint, "jobs")
    for name in (
        "preview",
        "expires_at",
        "checks_ms",
        "deps_ms",
        "code_ms",
        "scaffold_ms",
        "worker",
    ):
        op.drop_column("jobs", name)
