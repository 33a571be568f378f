"""Runs inside Alembic: the connection comes from `data.labels.store.database`, no file."""

from alembic import context

from data.labels.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
# The caller holds the transaction, so that a change that fails leaves nothing half done.
context.run_migrations()
