"""One index finds a key and keeps a question from being answered twice; there were two.

SQLite makes a table anew to let go of a constraint.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_STATES = "state IN ('pending', 'approved', 'rejected', 'issuing', 'issued', 'abandoned')"
_AUTHORITY_OF_ORDER = sa.text("substr(authority_key, 1, 6) = 'order:'")
_QUESTION_OF_ORDER = sa.text("substr(correlation, 1, 6) = 'order:'")


def upgrade() -> None:
    """Go to 0013."""
    op.drop_index(op.f("ix_enrollments_spki_sha256"), table_name="enrollments")
    if op.get_bind().dialect.name == "sqlite":
        _make_enrollments_anew()
    else:
        op.create_unique_constraint(
            op.f("uq_enrollments_spki_sha256_correlation"),
            "enrollments",
            ["spki_sha256", "correlation"],
        )
        op.drop_constraint(op.f("uq_enrollments_correlation"), "enrollments", type_="unique")
    op.create_index(
        op.f("ix_enrollments_correlation"),
        "enrollments",
        ["correlation"],
        unique=True,
        sqlite_where=_QUESTION_OF_ORDER,
        postgresql_where=_QUESTION_OF_ORDER,
    )


def _make_enrollments_anew() -> None:
    op.create_table(
        "enrollments_anew",
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
        sa.CheckConstraint(_STATES, name=op.f("ck_enrollments_state")),
        sa.ForeignKeyConstraint(
            ["invitation"], ["invitations.number"], name=op.f("fk_enrollments_invitation")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrollments")),
        sa.UniqueConstraint(
            "spki_sha256", "correlation", name=op.f("uq_enrollments_spki_sha256_correlation")
        ),
    )
    for statement in (
        # In the order they came in, so that neighbours in time stay neighbours.
        "INSERT INTO enrollments_anew SELECT * FROM enrollments ORDER BY rowid",
        "DROP TABLE enrollments",
        "ALTER TABLE enrollments_anew RENAME TO enrollments",
    ):
        op.execute(statement)
    op.create_index(op.f("ix_enrollments_invitation"), "enrollments", ["invitation"])
    op.create_index(op.f("ix_enrollments_state_id"), "enrollments", ["state", "id"])
    op.create_index(
        op.f("ix_enrollments_authority_key"),
        "enrollments",
        ["authority_key"],
        sqlite_where=_AUTHORITY_OF_ORDER,
    )
