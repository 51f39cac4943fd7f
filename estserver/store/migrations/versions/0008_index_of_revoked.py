"""What CRLs are made of in an index of its own, which certificates in force do not burden."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to 0008."""
    op.drop_index(op.f("ix_certificates_issuer_revoked_at"), table_name="certificates")
    op.create_index(
        "ix_certificates_revoked",
        "certificates",
        ["issuer", "revoked_at", "serial", "reason", "not_after", "profile"],
        sqlite_where=sa.text("revoked_at IS NOT NULL"),
        postgresql_where=sa.text("revoked_at IS NOT NULL"),
    )
