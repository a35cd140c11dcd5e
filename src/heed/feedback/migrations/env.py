"""What Alembic runs for every change of the tables: on the connection it was given, within its transaction."""

from __future__ import annotations

from alembic import context

from heed.feedback.schema import Base

connection = context.config.attributes["connection"]
# SQLite cannot alter most of a table: Alembic copies it.
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=connection.dialect.name == "sqlite")
with context.begin_transaction():
    context.run_migrations()
