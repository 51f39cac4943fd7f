"""CRLs as frames around entries that they share, and of one profile alone."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to 0006. A CRL that is there stays as it is, and the next one is made at once."""
    old = sa.table(
        "crls", *map(sa.column, ("issuer", "number", "this_update", "next_update", "der"))
    )
    kept = op.get_bind().execute(sa.select(old)).mappings().all()
    op.drop_table("crls")
    new = op.create_table(
        "crls",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("this_update", sa.BigInteger(), nullable=False),
        sa.Column("next_update", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
        sa.Column("tail", sa.LargeBinary(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("entries_size", sa.BigInteger(), nullable=False),
        sa.Column("entries_count", sa.BigInteger(), nullable=False),
        sa.Column("base_number", sa.BigInteger(), nullable=False),
        sa.Column("base_size", sa.BigInteger(), nullable=False),
        sa.Column("delta_head", sa.LargeBinary(), nullable=True),
        sa.Column("delta_tail", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("issuer", "number", name=op.f("pk_crls")),
    )
    op.create_table(
        "crl_entries",
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("entries", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("generation", "position", name=op.f("pk_crl_entries")),
    )
    for row in kept:
        op.get_bind().execute(
            sa.insert(new).values(
                issuer=row["issuer"],
                number=row["number"],
                scope="",
                this_update=row["this_update"],
                next_update=row["next_update"],
                head=row["der"],
                tail=b"",
                generation=0,
                entries_size=0,
                entries_count=0,
                base_number=row["number"],
                base_size=0,
            )
        )
