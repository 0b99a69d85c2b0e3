"""Plain text tables for people."""

from __future__ import annotations

import numbers

from suite.records.cells import format_value


def format_table(rows: list[dict], columns) -> str:
    """Plain text with aligned columns, numbers to the right; None is shown as "-"."""
    def text(value):
        kind = "boolean" if isinstance(value, bool) else "number" if isinstance(value, numbers.Real) else "string"
        return "-" if value is None else format_value(value, kind)

    body = [[text(row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(columns, *body)]
    right = [all(isinstance(row.get(name), (numbers.Real, type(None))) for row in rows) for name in columns]
    return "\n".join("  ".join(cell.rjust(width) if to_right else cell.ljust(width)
                               for cell, width, to_right in zip(cells, widths, right)).rstrip()
                     for cells in [list(columns), *body])
