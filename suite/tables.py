"""The public door to the tables: `suite.tables.read(folder, name)` checks a table and types it; `corpus()` gives labelled training runs."""

from suite.records.corpus import Labelled, corpus
from suite.records.store import TableError, read

__all__ = ["Labelled", "TableError", "corpus", "read"]
