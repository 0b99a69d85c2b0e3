"""The public door to the tables: `suite.tables.read(folder, name)` checks a table and types it."""

from suite.records.store import TableError, read

__all__ = ["TableError", "read"]
