"""A table as Markdown: its document's sheets in columns that line up as plain text too.

Leaves out what is shown (`sheets.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from analysis.sheet import Document, Sheet, one_line
from analysis.sheets import ASSUMED, PIPELINE_CHECK, document
from analysis.tables import Table

__all__ = ["ASSUMED", "PIPELINE_CHECK", "aligned", "markdown", "markdown_of"]


def markdown(table: Table) -> str:
    """The whole table, ending in one newline."""
    return markdown_of(document(table))


def markdown_of(shown: Document) -> str:
    """A document, ending in one newline."""
    warnings = [f"**{warning}**" for warning in shown.warnings]
    parts = [f"# {shown.heading}", *warnings, *shown.text]
    return "\n\n".join([*parts, *(part for s in shown.sheets for part in _sheet(s))]) + "\n"


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as plain text too."""
    body = [[_safe(entry) for entry in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *body]) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(e.ljust(w) for e, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _sheet(sheet: Sheet) -> Iterator[str]:
    yield f"## {sheet.title}"
    if sheet.lead:
        yield sheet.lead
    yield aligned(sheet.header, sheet.rows)
    if sheet.notes:
        yield "\n".join(
            [f"{sheet.notes_title}:", "", *(f"- {_safe(note)}" for note in sheet.notes)]
        )


def _safe(text: str) -> str:
    """On one line and without a column's end."""
    return one_line(text).replace("|", "\\|")
