"""The public door to the tables: `suite.tables.read(folder, name)` checks a table and types it."""

from suite.records.tables import TableError, read

__all__ = ["TableError", "read"]
