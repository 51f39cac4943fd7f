"""an audit trail that the database itself keeps append-only; a floor for CRL numbers."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Erasing what a row says, for good, is the one change allowed: its place in the chain stays.
_KEPT = ("id", "writer", "seq", "at", "follows", "previous", "hash")
_ERASED = {
    "event": "purged",
    "actor": "",
    "object": "",
    "request_id": "",
    "source": "",
    "detail": "{}",
}
_IS_ERASURE = " AND ".join(
    [f"NEW.{name} = OLD.{name}" for name in _KEPT]
    + [f"NEW.{name} = '{value}'" for name, value in _ERASED.items()]
)
_REFUSE = """
CREATE FUNCTION audit_events_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_events is append-only' USING ERRCODE = 'integrity_constraint_violation';
END $$
"""


def _guard_sqlite() -> None:
    for change, condition in (("update", f"WHEN NOT ({_IS_ERASURE})"), ("delete", "")):
        op.execute(
            f"CREATE TRIGGER audit_events_no_{change} BEFORE {change} ON audit_events {condition} "
            "BEGIN SELECT RAISE(ABORT, 'audit_events is append-only'); END"
        )


def _guard_postgresql() -> None:
    op.execute(_REFUSE)
    for change, scope in (
        ("update", f"FOR EACH ROW WHEN (NOT ({_IS_ERASURE}))"),
        ("delete", "FOR EACH ROW"),
        ("truncate", "FOR EACH STATEMENT"),
    ):
        op.execute(
            f"CREATE TRIGGER audit_events_no_{change} BEFORE {change} ON audit_events {scope} "
            "EXECUTE FUNCTION audit_events_refuse()"
        )


def upgrade() -> None:
    """Go to 0005."""
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
    else:
        _guard_sqlite()
    op.create_table(
        "crl_floors",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", name=op.f("pk_crl_floors")),
    )
