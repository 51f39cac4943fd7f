"""certificates marked for early renewal."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to 0007."""
    op.create_table(
        "campaigns",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("begins_at", sa.BigInteger(), nullable=False),
        sa.Column("renew_by", sa.BigInteger(), nullable=False),
        sa.Column("explanation", sa.Text()),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_campaigns")),
    )
    op.create_table(
        "campaign_members",
        sa.Column("enrollment", sa.Text(), nullable=False),
        sa.Column("campaign", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign"], ["campaigns.name"], name=op.f("fk_campaign_members_campaign")
        ),
        sa.ForeignKeyConstraint(
            ["enrollment"],
            ["certificates.enrollment"],
            name=op.f("fk_campaign_members_enrollment"),
        ),
        sa.PrimaryKeyConstraint("enrollment", "campaign", name=op.f("pk_campaign_members")),
    )
    op.create_index(
        op.f("ix_campaign_members_campaign_enrollment"),
        "campaign_members",
        ["campaign", "enrollment"],
    )
