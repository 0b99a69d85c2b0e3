"""Tables for the pages."""

from collections.abc import Iterable, Mapping


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, *rows]
    first, *others = ("| " + " | ".join(map(str, line)) + " |" for line in lines)
    return "\n".join([first, "|---" * len(head) + "|", *others])


def grid(columns: Mapping[object, str], cells: Mapping[tuple, object]) -> str:
    """A Markdown table of schemes by columns (key: its head) from cells by (scheme, key); "-" where there is none."""
    schemes = dict.fromkeys(scheme for scheme, _ in cells)
    return table(["scheme", *columns.values()], ([scheme, *(cells.get((scheme, key), "-") for key in columns)] for scheme in schemes))
