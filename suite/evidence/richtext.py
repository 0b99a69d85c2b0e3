"""The little Markdown that our pages use, as HTML: paragraphs, bullets, tables, headings, code, bold, italic and links."""

from __future__ import annotations

import re
from html import escape

from markupsafe import Markup

_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def inline(text: str) -> Markup:
    """One line. Links to the outside stay, those to files of the repository become their words."""
    def code(found: re.Match) -> str:
        kept.append(f"<code>{escape(found[1])}</code>")
        return f"\0{len(kept) - 1}\0"

    def link(found: re.Match) -> str:
        return f'<a href="{found[2]}">{found[1]}</a>' if found[2].startswith(("https://", "#")) else found[1]

    kept: list[str] = []
    text = escape(re.sub(r"`([^`]+)`", code, text.replace("\0", "")), quote=False)
    text = _LINK.sub(link, text.replace("\\&lt;", "&lt;"))
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])", r"<em>\1</em>", text)
    return Markup(re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text))


def blocks(text: str) -> Markup:
    """Several lines, parted by empty ones."""
    return Markup("\n").join(_block(part.strip("\n").split("\n")) for part in re.split(r"\n\s*\n", text) if part.strip())


def _block(lines: list[str]) -> Markup:
    if lines[0].startswith("|"):
        head, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines)
        return table(head, rows)
    if found := re.match(r"(#+) (.*)", lines[0]):
        size = min(6, max(3, len(found[1])))  # below the heading of a section
        return Markup("<h{0}>{1}</h{0}>").format(size, inline(found[2]))
    if lines[0].startswith("- "):
        items = re.split(r"\n- ", "\n".join(lines)[2:])
        return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(inline(" ".join(item.split()))) for item in items))
    return Markup("<p>{}</p>").format(inline(" ".join(lines)))


def table(head: list[object], rows: list[list[object]]) -> Markup:
    """A table in a box of its own, which scrolls where it is wider than the page; cells are lines of text."""
    def line(cells, kind: str) -> Markup:
        filled = (Markup("<{0}>{1}</{0}>").format(Markup(kind), inline(str(cell))) for cell in cells)
        return Markup("<tr>{}</tr>").format(Markup("").join(filled))

    return Markup('<div class="wide" tabindex="0"><table><thead>{}</thead><tbody>{}</tbody></table></div>').format(
        line(head, "th"), Markup("").join(line(row, "td") for row in rows))  # fmt: skip
