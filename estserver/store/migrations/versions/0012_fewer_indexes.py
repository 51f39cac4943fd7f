"""Indexes that nobody asked, or that another one serves as well, cost a page for each row.

No release has used what goes here. SQLite makes a table anew to let go of a constraint.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_STATES = "state IN ('issuing', 'valid', 'revoked', 'abandoned')"
_REVOKED = sa.text("revoked_at IS NOT NULL")
_RENEWS = sa.text("renews IS NOT NULL")
_ORDERED = sa.text("substr(authority_key, 1, 6) = 'order:'")


def upgrade() -> None:
    """Go to 0012."""
    op.drop_index(op.f("ix_audit_events_object_id"), table_name="audit_events")
    op.drop_index(op.f("ix_audit_events_request_id"), table_name="audit_events")
    op.drop_index(op.f("ix_enrollments_authority_key"), table_name="enrollments")
    op.create_index(
        op.f("ix_enrollments_authority_key"),
        "enrollments",
        ["authority_key"],
        sqlite_where=_ORDERED,
        postgresql_where=_ORDERED,
    )
    for columns in ("spki_sha256", "invitation", "serial"):
        op.drop_index(op.f(f"ix_certificates_{columns}"), table_name="certificates")
    if op.get_bind().dialect.name == "sqlite":
        _make_certificates_anew()
        return
    op.drop_constraint(op.f("uq_certificates_sha256"), "certificates", type_="unique")
    op.create_unique_constraint(
        op.f("uq_certificates_serial_issuer"), "certificates", ["serial", "issuer"]
    )
    op.drop_constraint(op.f("uq_certificates_issuer_serial"), "certificates", type_="unique")


def _make_certificates_anew() -> None:
    op.create_table(
        "certificates_anew",
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
        sa.CheckConstraint(_STATES, name=op.f("ck_certificates_state")),
        sa.ForeignKeyConstraint(
            ["enrollment"], ["enrollments.id"], name=op.f("fk_certificates_enrollment")
        ),
        sa.PrimaryKeyConstraint("enrollment", name=op.f("pk_certificates")),
        sa.UniqueConstraint("serial", "issuer", name=op.f("uq_certificates_serial_issuer")),
    )
    for statement in (
        # In the order of issue, so that neighbours in time stay neighbours.
        "INSERT INTO certificates_anew SELECT * FROM certificates ORDER BY rowid",
        # No member may be without its certificate, not even for a moment.
        "CREATE TEMPORARY TABLE members AS SELECT * FROM campaign_members",
        "DELETE FROM campaign_members",
        "DROP TABLE certificates",
        "ALTER TABLE certificates_anew RENAME TO certificates",
        "INSERT INTO campaign_members SELECT * FROM members",
        "DROP TABLE members",
    ):
        op.execute(statement)
    for rest, where in (
        (["state", "enrollment"], None),
        (["not_after", "enrollment"], None),
        (["renews"], _RENEWS),
    ):
        op.create_index(
            op.f(f"ix_certificates_{'_'.join(rest)}"), "certificates", rest, sqlite_where=where
        )
    op.create_index(
        "ix_certificates_revoked",
        "certificates",
        ["issuer", "revoked_at", "serial", "reason", "not_after", "profile"],
        sqlite_where=_REVOKED,
    )
