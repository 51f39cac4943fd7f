"""initial schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to 0001."""
    op.create_table(
        "attempts",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_attempts")),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("writer", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("follows", sa.Text(), nullable=False),
        sa.Column("previous", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
        sa.UniqueConstraint("writer", "seq", name=op.f("uq_audit_events_writer_seq")),
    )
    op.create_index(
        op.f("ix_audit_events_object_id"), "audit_events", ["object", "id"], unique=False
    )
    op.create_index(
        op.f("ix_audit_events_request_id"), "audit_events", ["request_id"], unique=False
    )
    op.create_table(
        "blocked_keys",
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("blocked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("spki_sha256", name=op.f("pk_blocked_keys")),
    )
    op.create_table(
        "crls",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("this_update", sa.BigInteger(), nullable=False),
        sa.Column("next_update", sa.BigInteger(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "number", name=op.f("pk_crls")),
    )
    op.create_table(
        "invitations",
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("device_id", sa.Text(), nullable=True),
        sa.Column("organization", sa.Text(), nullable=False),
        sa.Column("names", sa.JSON(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("doors", sa.Text(), nullable=False),
        sa.Column("units", sa.Integer(), nullable=False),
        sa.Column("units_used", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("approval", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("renew_until", sa.BigInteger(), nullable=True),
        sa.Column("pin_scheme", sa.Text(), nullable=False),
        sa.Column("pin_hash", sa.LargeBinary(), nullable=False),
        sa.Column("pin_salt", sa.LargeBinary(), nullable=False),
        sa.Column("pin_generation", sa.Integer(), nullable=False),
        sa.Column("pin_failures", sa.Integer(), nullable=False),
        sa.Column("pin_failed_at", sa.BigInteger(), nullable=False),
        sa.Column("pin_dead", sa.Boolean(), nullable=False),
        sa.Column("renewal_pin", sa.Boolean(), nullable=False),
        sa.Column("replaced", sa.Boolean(), nullable=False),
        sa.Column("url_generation", sa.Integer(), nullable=False),
        sa.Column("url_hash", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "state IN ('held', 'open', 'cancelled')", name=op.f("ck_invitations_state")
        ),
        sa.CheckConstraint(
            "units_used >= 0 AND units_used <= units", name=op.f("ck_invitations_units")
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_invitations")),
        sa.UniqueConstraint("url_hash", name=op.f("uq_invitations_url_hash")),
    )
    op.create_index(
        op.f("ix_invitations_created_at_number"),
        "invitations",
        ["created_at", "number"],
        unique=False,
    )
    op.create_index(op.f("ix_invitations_pin_hash"), "invitations", ["pin_hash"], unique=False)
    op.create_table(
        "enrollments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("correlation", sa.Text(), nullable=False),
        sa.Column("authority_key", sa.Text(), nullable=False),
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("invitation", sa.Text(), nullable=True),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("via", sa.Text(), nullable=False),
        sa.Column("applicant", sa.Text(), nullable=False),
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("names", sa.LargeBinary(), nullable=False),
        sa.Column("spki", sa.LargeBinary(), nullable=False),
        sa.Column("renews", sa.Text(), nullable=True),
        sa.Column("proof", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("taken_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'approved', 'rejected', 'issuing', 'issued', 'abandoned')",
            name=op.f("ck_enrollments_state"),
        ),
        sa.ForeignKeyConstraint(
            ["invitation"], ["invitations.number"], name=op.f("fk_enrollments_invitation")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrollments")),
        sa.UniqueConstraint("correlation", name=op.f("uq_enrollments_correlation")),
    )
    op.create_index(
        op.f("ix_enrollments_authority_key_spki_sha256"),
        "enrollments",
        ["authority_key", "spki_sha256"],
        unique=False,
    )
    op.create_index(op.f("ix_enrollments_invitation"), "enrollments", ["invitation"], unique=False)
    op.create_index(op.f("ix_enrollments_state_id"), "enrollments", ["state", "id"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("template", sa.Text(), nullable=False),
        sa.Column("invitation", sa.Text(), nullable=True),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('queued', 'sent', 'failed')", name=op.f("ck_outbox_state")),
        sa.ForeignKeyConstraint(
            ["invitation"], ["invitations.number"], name=op.f("fk_outbox_invitation")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(op.f("ix_outbox_state_due_at"), "outbox", ["state", "due_at"], unique=False)
    op.create_table(
        "certificate_bytes",
        sa.Column("enrollment", sa.Text(), nullable=False),
        sa.Column("tbs", sa.LargeBinary(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["enrollment"], ["enrollments.id"], name=op.f("fk_certificate_bytes_enrollment")
        ),
        sa.PrimaryKeyConstraint("enrollment", name=op.f("pk_certificate_bytes")),
    )
    op.create_table(
        "certificates",
        sa.Column("enrollment", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("names", sa.JSON(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("invitation", sa.Text(), nullable=True),
        sa.Column("via", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=True),
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("renews", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state = 'revoked') = (revoked_at IS NOT NULL)", name=op.f("ck_certificates_revoked")
        ),
        sa.CheckConstraint(
            "state IN ('issuing', 'valid', 'revoked', 'abandoned')",
            name=op.f("ck_certificates_state"),
        ),
        sa.ForeignKeyConstraint(
            ["enrollment"], ["enrollments.id"], name=op.f("fk_certificates_enrollment")
        ),
        sa.PrimaryKeyConstraint("enrollment", name=op.f("pk_certificates")),
        sa.UniqueConstraint("issuer", "serial", name=op.f("uq_certificates_issuer_serial")),
        sa.UniqueConstraint("sha256", name=op.f("uq_certificates_sha256")),
    )
    op.create_index(
        op.f("ix_certificates_invitation"), "certificates", ["invitation"], unique=False
    )
    op.create_index(
        op.f("ix_certificates_issuer_revoked_at"),
        "certificates",
        ["issuer", "revoked_at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_certificates_not_after_enrollment"),
        "certificates",
        ["not_after", "enrollment"],
        unique=False,
    )
    op.create_index(op.f("ix_certificates_renews"), "certificates", ["renews"], unique=False)
    op.create_index(op.f("ix_certificates_serial"), "certificates", ["serial"], unique=False)
    op.create_index(
        op.f("ix_certificates_spki_sha256"), "certificates", ["spki_sha256"], unique=False
    )
    op.create_index(
        op.f("ix_certificates_state_enrollment"),
        "certificates",
        ["state", "enrollment"],
        unique=False,
    )
