"""accounts, nonces, orders, authorizations and challenges of ACME."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to 0002."""
    op.create_table(
        "acme_accounts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("thumbprint", sa.Text(), nullable=False),
        sa.Column("jwk", sa.JSON(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("contacts", sa.JSON(), nullable=False),
        sa.Column("terms", sa.Text(), nullable=True),
        sa.Column("invitation", sa.Text(), nullable=True),
        sa.Column("binding", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "status IN ('valid', 'deactivated', 'revoked')", name=op.f("ck_acme_accounts_status")
        ),
        sa.ForeignKeyConstraint(
            ["invitation"], ["invitations.number"], name=op.f("fk_acme_accounts_invitation")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acme_accounts")),
        sa.UniqueConstraint("invitation", name=op.f("uq_acme_accounts_invitation")),
        sa.UniqueConstraint("thumbprint", name=op.f("uq_acme_accounts_thumbprint")),
    )
    op.create_table(
        "acme_nonces",
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_acme_nonces")),
    )
    op.create_index(op.f("ix_acme_nonces_expires_at"), "acme_nonces", ["expires_at"], unique=False)
    op.create_table(
        "acme_orders",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("identifiers", sa.JSON(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("authorizations", sa.JSON(), nullable=False),
        sa.Column("replaces", sa.Text(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account"], ["acme_accounts.id"], name=op.f("fk_acme_orders_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acme_orders")),
    )
    op.create_index(
        op.f("ix_acme_orders_account_created_at_id"),
        "acme_orders",
        ["account", "created_at", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_acme_orders_replaces"), "acme_orders", ["replaces"], unique=False)
    op.create_table(
        "acme_authorizations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("wildcard", sa.Boolean(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=True),
        sa.Column("deactivated", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account"], ["acme_accounts.id"], name=op.f("fk_acme_authorizations_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acme_authorizations")),
    )
    op.create_index(
        op.f("ix_acme_authorizations_account_value"),
        "acme_authorizations",
        ["account", "value"],
        unique=False,
    )
    op.create_table(
        "acme_challenges",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("authorization", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("thumbprint", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("validated_at", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'processing', 'valid', 'invalid')",
            name=op.f("ck_acme_challenges_status"),
        ),
        sa.ForeignKeyConstraint(
            ["authorization"],
            ["acme_authorizations.id"],
            name=op.f("fk_acme_challenges_authorization"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acme_challenges")),
    )
    op.create_index(
        op.f("ix_acme_challenges_authorization"), "acme_challenges", ["authorization"], unique=False
    )
    op.create_index(
        op.f("ix_acme_challenges_status_due_at"),
        "acme_challenges",
        ["status", "due_at"],
        unique=False,
    )
