"""ACME's own tables. What follows from other columns has none."""

import sqlalchemy as sa

from estserver.store.tables import metadata

accounts = sa.Table(
    "acme_accounts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("thumbprint", sa.Text, nullable=False, unique=True),
    sa.Column("jwk", sa.JSON, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("contacts", sa.JSON, nullable=False),
    sa.Column("terms", sa.Text),
    # One account to an invitation: the unique column is what keeps parallel bindings apart.
    sa.Column("invitation", sa.Text, sa.ForeignKey("invitations.number"), unique=True),
    sa.Column("binding", sa.JSON),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.CheckConstraint("status IN ('valid', 'deactivated', 'revoked')", name="status"),
)
nonces = sa.Table(
    "acme_nonces",
    metadata,
    sa.Column("nonce", sa.Text, primary_key=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)
orders = sa.Table(
    "acme_orders",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account", sa.Text, sa.ForeignKey("acme_accounts.id"), nullable=False),
    sa.Column("identifiers", sa.JSON, nullable=False),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("authorizations", sa.JSON, nullable=False),
    sa.Column("replaces", sa.Text, index=True),
    sa.Column("not_before", sa.BigInteger),
    sa.Column("not_after", sa.BigInteger),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index(None, "account", "created_at", "id"),
)
authorizations = sa.Table(
    "acme_authorizations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account", sa.Text, sa.ForeignKey("acme_accounts.id"), nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("wildcard", sa.Boolean, nullable=False),
    sa.Column("rule", sa.Text),
    sa.Column("deactivated", sa.Boolean, nullable=False),
    # Made by newAuthz, before there was any order.
    sa.Column("early", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index(None, "account", "value"),
)
challenges = sa.Table(
    "acme_challenges",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column(
        "authorization",
        sa.Text,
        sa.ForeignKey("acme_authorizations.id"),
        nullable=False,
        index=True,
    ),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("thumbprint", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.BigInteger),
    sa.Column("validated_at", sa.BigInteger),
    sa.Column("error", sa.JSON),
    sa.CheckConstraint("status IN ('pending', 'processing', 'valid', 'invalid')", name="status"),
    sa.Index(None, "status", "due_at"),
)
failures = sa.Table(
    "acme_failures",
    metadata,
    sa.Column("account", sa.Text, sa.ForeignKey("acme_accounts.id"), primary_key=True),
    # SHA-256 of `identifiers`, which can be longer than an index takes.
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("identifiers", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("times", sa.Integer, nullable=False),
    sa.Column("first_at", sa.BigInteger, nullable=False),
    sa.Column("last_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("paused_at", sa.BigInteger, index=True),
)
