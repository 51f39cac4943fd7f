"""Holds that end: what CRLs must list otherwise than before."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to 0011."""
    op.create_table(
        "hold_endings",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hold_endings")),
    )
    op.create_index(
        op.f("ix_hold_endings_issuer_profile_at"), "hold_endings", ["issuer", "profile", "at"]
    )
    for column in (
        sa.Column("base_at", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("delta_changes", sa.LargeBinary(), nullable=False, server_default=""),
        sa.Column("holds_ended", sa.BigInteger(), nullable=False, server_default="0"),
    ):
        op.add_column("crls", column)
