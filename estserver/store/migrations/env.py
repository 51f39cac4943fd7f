"""Alembic's entry point: runs the revisions on the connection that `migrate` hands over."""

from alembic import context

from estserver.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
)
context.run_migrations()
