"""terms by which registrations are found."""

import sqlalchemy as sa
from alembic import op

from estserver.store.findable import terms_of

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_BATCH = 1000


def upgrade() -> None:
    """Go to 0009; what is registered already can be found too."""
    connection = op.get_bind()
    collation = "C" if connection.dialect.name == "postgresql" else None
    terms = op.create_table(
        "search_terms",
        sa.Column("term", sa.Text(collation=collation), nullable=False),
        sa.Column("number", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("term", "number", name=op.f("pk_search_terms")),
    )
    op.create_index(op.f("ix_search_terms_number"), "search_terms", ["number"])
    invitations = sa.table(
        "invitations",
        *(sa.column(name) for name in ("number", "name", "email", "device_id")),
        sa.column("names", sa.JSON),
    )
    last = ""
    while rows := connection.execute(
        sa.select(invitations)
        .where(invitations.c.number > last)
        .order_by(invitations.c.number)
        .limit(_BATCH)
    ).all():
        last = rows[-1].number
        found = [
            {"term": term, "number": row.number}
            for row in rows
            for term in terms_of(row.name, row.email, row.device_id, row.names)
        ]
        if found:
            connection.execute(sa.insert(terms), found)
