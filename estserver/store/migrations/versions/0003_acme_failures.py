"""validity that orders ask for, early authorizations, and what fails again and again over ACME.

The column `error` of orders, which nothing ever filled, goes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to 0003."""
    op.drop_column("acme_orders", "error")
    op.add_column("acme_orders", sa.Column("not_before", sa.BigInteger(), nullable=True))
    op.add_column("acme_orders", sa.Column("not_after", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_acme_orders_expires_at"), "acme_orders", ["expires_at"], unique=False)
    op.add_column(
        "acme_authorizations",
        sa.Column("early", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.create_index(
        op.f("ix_acme_authorizations_expires_at"),
        "acme_authorizations",
        ["expires_at"],
        unique=False,
    )
    op.create_table(
        "acme_failures",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("identifiers", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("paused_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account"], ["acme_accounts.id"], name=op.f("fk_acme_failures_account")
        ),
        sa.PrimaryKeyConstraint("account", "digest", name=op.f("pk_acme_failures")),
    )
    op.create_index(op.f("ix_acme_failures_last_at"), "acme_failures", ["last_at"], unique=False)
    op.create_index(
        op.f("ix_acme_failures_paused_at"), "acme_failures", ["paused_at"], unique=False
    )
