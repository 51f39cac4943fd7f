"""The schema, as SQLAlchemy Core tables. `migrations/` brings a database to it.

Times are stored as integers: seconds since 1970 UTC, which sort, compare and survive every driver.
Bytes of certificates lie in a table of their own so that lists and lookups never page through them.
Partial indexes are the same on PostgreSQL; to say so here would load its dialect for everybody.
"""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("number", sa.Text, primary_key=True),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("email", sa.Text),
    sa.Column("device_id", sa.Text),
    sa.Column("organization", sa.Text, nullable=False),
    sa.Column("names", sa.JSON, nullable=False),
    sa.Column("language", sa.Text, nullable=False),
    sa.Column("doors", sa.Text, nullable=False),
    sa.Column("units", sa.Integer, nullable=False),
    sa.Column("units_used", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("approval", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("renew_until", sa.BigInteger),
    sa.Column("pin_scheme", sa.Text, nullable=False),
    sa.Column("pin_hash", sa.LargeBinary, nullable=False),
    sa.Column("pin_salt", sa.LargeBinary, nullable=False),
    sa.Column("pin_generation", sa.Integer, nullable=False),
    sa.Column("pin_failures", sa.Integer, nullable=False),
    sa.Column("pin_failed_at", sa.BigInteger, nullable=False),
    sa.Column("pin_dead", sa.Boolean, nullable=False),
    sa.Column("renewal_pin", sa.Boolean, nullable=False),
    sa.Column("replaced", sa.Boolean, nullable=False),
    sa.Column("url_generation", sa.Integer, nullable=False),
    sa.Column("url_hash", sa.LargeBinary, unique=True),
    sa.CheckConstraint("units_used >= 0 AND units_used <= units", name="units"),
    sa.CheckConstraint("state IN ('held', 'open', 'cancelled')", name="state"),
    sa.Index(None, "pin_hash"),
    sa.Index(None, "created_at", "number"),
)

search_terms = sa.Table(
    "search_terms",
    metadata,
    # Compared octet by octet on both databases, so that a prefix is a range of the index.
    sa.Column(
        "term", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), primary_key=True
    ),
    sa.Column("number", sa.Text, primary_key=True),
    sa.Index(None, "number"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("window_start", sa.BigInteger, nullable=False),
)

ORDERED = sa.text("substr(authority_key, 1, 6) = 'order:'")
"""The enrollments that are looked up by `authority_key`: who does must say this as well."""

enrollments = sa.Table(
    "enrollments",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("correlation", sa.Text, nullable=False),
    sa.Column("authority_key", sa.Text, nullable=False),
    sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
    sa.Column("invitation", sa.Text, sa.ForeignKey("invitations.number")),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("via", sa.Text, nullable=False),
    sa.Column("applicant", sa.Text, nullable=False),
    sa.Column("subject", sa.LargeBinary, nullable=False),
    sa.Column("names", sa.LargeBinary, nullable=False),
    sa.Column("spki", sa.LargeBinary, nullable=False),
    sa.Column("renews", sa.Text),
    sa.Column("proof", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("decided_by", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("taken_at", sa.BigInteger),
    sa.CheckConstraint(
        "state IN ('pending', 'approved', 'rejected', 'issuing', 'issued', 'abandoned')",
        name="state",
    ),
    # One question, one enrollment; of an order there is one whatever the key.
    sa.UniqueConstraint("spki_sha256", "correlation"),
    sa.Index(
        None,
        "correlation",
        unique=True,
        sqlite_where=sa.text("substr(correlation, 1, 6) = 'order:'"),
    ),
    sa.Index(None, "authority_key", sqlite_where=ORDERED),
    sa.Index(None, "invitation"),
    sa.Index(None, "state", "id"),
)

# Not indexed by key and invitation, which its enrollment has too, nor by SHA-256: who presents a
# certificate shows its serial. An index of what is random is one more page for each row.
certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("enrollment", sa.Text, sa.ForeignKey("enrollments.id"), primary_key=True),
    sa.Column("issuer", sa.Text, nullable=False),
    sa.Column("serial", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("names", sa.JSON, nullable=False),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("invitation", sa.Text),
    sa.Column("via", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("not_before", sa.BigInteger, nullable=False),
    sa.Column("not_after", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.LargeBinary),
    sa.Column("spki_sha256", sa.LargeBinary, nullable=False),
    sa.Column("renews", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", sa.BigInteger),
    sa.Column("reason", sa.Text),
    sa.Column("comment", sa.Text),
    sa.UniqueConstraint("serial", "issuer"),
    sa.CheckConstraint("state IN ('issuing', 'valid', 'revoked', 'abandoned')", name="state"),
    sa.CheckConstraint("(state = 'revoked') = (revoked_at IS NOT NULL)", name="revoked"),
    sa.Index(None, "state", "enrollment"),
    sa.Index(None, "not_after", "enrollment"),
    # All that a CRL is made of, and nothing else.
    sa.Index(
        "ix_certificates_revoked",
        "issuer",
        "revoked_at",
        "serial",
        "reason",
        "not_after",
        "profile",
        sqlite_where=sa.text("revoked_at IS NOT NULL"),
    ),
    sa.Index(
        None,
        "renews",
        sqlite_where=sa.text("renews IS NOT NULL"),
    ),
)

certificate_bytes = sa.Table(
    "certificate_bytes",
    metadata,
    sa.Column("enrollment", sa.Text, sa.ForeignKey("enrollments.id"), primary_key=True),
    sa.Column("tbs", sa.LargeBinary, nullable=False),
    sa.Column("der", sa.LargeBinary),
)

blocked_keys = sa.Table(
    "blocked_keys",
    metadata,
    sa.Column("spki_sha256", sa.LargeBinary, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("blocked_at", sa.BigInteger, nullable=False),
)

hold_endings = sa.Table(
    "hold_endings",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("issuer", sa.Text, nullable=False),
    sa.Column("serial", sa.Text, nullable=False),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Index(None, "issuer", "profile", "at"),
)
"""Holds that were released or became revocations for good: what CRLs listed otherwise before."""

crls = sa.Table(
    "crls",
    metadata,
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("this_update", sa.BigInteger, nullable=False),
    sa.Column("next_update", sa.BigInteger, nullable=False),
    # The signed CRL around its entries, which are those of the generation up to `entries_size`.
    sa.Column("head", sa.LargeBinary, nullable=False),
    sa.Column("tail", sa.LargeBinary, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("entries_size", sa.BigInteger, nullable=False),
    sa.Column("entries_count", sa.BigInteger, nullable=False),
    # Its delta CRL has the entries from here on.
    sa.Column("base_number", sa.BigInteger, nullable=False),
    sa.Column("base_size", sa.BigInteger, nullable=False),
    sa.Column("delta_head", sa.LargeBinary),
    sa.Column("delta_tail", sa.LargeBinary),
    # When that base was made; and what is different since in what the base had already.
    sa.Column("base_at", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("delta_changes", sa.LargeBinary, nullable=False, server_default=""),
    # How many holds of its scope had ended when its generation began.
    sa.Column("holds_ended", sa.BigInteger, nullable=False, server_default="0"),
)

crl_entries = sa.Table(
    "crl_entries",
    metadata,
    sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
    # Where they stand among the entries of the generation, in bytes.
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entries", sa.LargeBinary, nullable=False),
)

crl_floors = sa.Table(
    "crl_floors",
    metadata,
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)
"""Numbers that were published before a restore forgot them: the next CRL gets a higher one."""

campaigns = sa.Table(
    "campaigns",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("begins_at", sa.BigInteger, nullable=False),
    sa.Column("renew_by", sa.BigInteger, nullable=False),
    sa.Column("explanation", sa.Text),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
)

campaign_members = sa.Table(
    "campaign_members",
    metadata,
    sa.Column("enrollment", sa.Text, sa.ForeignKey("certificates.enrollment"), primary_key=True),
    sa.Column("campaign", sa.Text, sa.ForeignKey("campaigns.name"), primary_key=True),
    sa.Index(None, "campaign", "enrollment"),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("template", sa.Text, nullable=False),
    sa.Column("invitation", sa.Text, sa.ForeignKey("invitations.number")),
    sa.Column("recipient", sa.Text, nullable=False),
    sa.Column("language", sa.Text, nullable=False),
    sa.Column("values", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("sent_at", sa.BigInteger),
    sa.Column("error", sa.Text),
    sa.CheckConstraint("state IN ('queued', 'sent', 'failed')", name="state"),
    sa.Index(None, "state", "due_at"),
)

compatibility = sa.Table(
    "compatibility",
    metadata,
    sa.Column("oldest", sa.Text, primary_key=True),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
)

audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("writer", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("object", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("follows", sa.Text, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("writer", "seq"),
)
