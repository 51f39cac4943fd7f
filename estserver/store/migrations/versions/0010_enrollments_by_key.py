"""Enrollments by their key alone; renewals in an index that first certificates do not burden."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to 0010."""
    op.drop_index(op.f("ix_enrollments_authority_key_spki_sha256"), table_name="enrollments")
    op.create_index(op.f("ix_enrollments_authority_key"), "enrollments", ["authority_key"])
    op.create_index(op.f("ix_enrollments_spki_sha256"), "enrollments", ["spki_sha256"])
    op.drop_index(op.f("ix_certificates_renews"), table_name="certificates")
    op.create_index(
        op.f("ix_certificates_renews"),
        "certificates",
        ["renews"],
        sqlite_where=sa.text("renews IS NOT NULL"),
        postgresql_where=sa.text("renews IS NOT NULL"),
    )
