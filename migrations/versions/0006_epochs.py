"""Epochs of the log, each with the seq it starts at: what tells a lost end from a rightful one."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "log_epochs",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("start_seq", sa.BigInteger(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("partition", "epoch"),
        sa.ForeignKeyConstraint(
            ["partition"], ["headrace.log_partitions.partition"], ondelete="CASCADE"
        ),
        schema="headrace",
    )
    op.execute(
        """
        INSERT INTO headrace.log_epochs (partition, epoch, start_seq, run)
        SELECT partition, epoch, 1, '' FROM headrace.log_partitions
        """
    )
    op.drop_column("log_partitions", "epoch", schema="headrace")


def downgrade() -> None:
    op.add_column("log_partitions", sa.Column("epoch", sa.BigInteger()), schema="headrace")
    op.execute(
        """
        UPDATE headrace.log_partitions p SET epoch =
            (SELECT max(e.epoch) FROM headrace.log_epochs e WHERE e.partition = p.partition)
        """
    )
    op.alter_column("log_partitions", "epoch", nullable=False, schema="headrace")
    op.drop_table("log_epochs", schema="headrace")
