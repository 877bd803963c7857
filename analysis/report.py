"""Writes the tables: a Markdown and a CSV file a grid, and `tables.md` with all of them.

A reader sees an old file or a new one, never a part. Leaves out figures and findings.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from analysis.markdown import markdown
from analysis.tables import Table, frame, make_table
from grids.errors import InputError
from grids.grid import Grid
from grids.paths import Store

ALL = "tables"


def write_tables(grids: list[Grid], store: Store, out: Path) -> list[Path]:
    """Write the table of every grid into the folder `out`; return the files, `tables.md` last.

    Raises `InputError` where `out` cannot be such a folder.
    """
    tables = sorted((make_table(grid, store) for grid in grids), key=_section_order)
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = []
        for stem, table in zip(_stems(tables), tables, strict=True):
            written += [
                _write(out / f"{stem}.md", markdown(table)),
                _write(out / f"{stem}.csv", frame(table).to_csv(index=False, lineterminator="\n")),
            ]
        return [*written, _write(out / f"{ALL}.md", "\n".join(markdown(t) for t in tables))]
    except OSError as error:
        raise InputError(
            f"{out}: the tables cannot be written there: {error.strerror}; "
            "name a folder that you may write to"
        ) from None


def _section_order(table: Table) -> tuple[bool, list[int], str, str]:
    """Sections by number, then grids that are none of the paper's, by name."""
    numbers = [int(n) for n in re.findall(r"\d+", table.grid.section or "")]
    return (table.grid.section is None, numbers, table.grid.study, table.grid.name)


def _stems(tables: list[Table]) -> list[str]:
    """`4.2-minimalist`, `demo`; with the study where two would share a file."""
    short = [_stem([table.grid.section or "", table.grid.name]) for table in tables]
    taken = Counter(stem.lower() for stem in [*short, ALL])  # a file system may ignore case
    stems = [
        stem if taken[stem.lower()] == 1 else _stem([stem, table.grid.study])
        for stem, table in zip(short, tables, strict=True)
    ]
    for stem, count in Counter([*stems, ALL]).items():
        if count > 1:
            raise InputError(f"{count} tables would be written to {stem}.md; rename a grid")
    return stems


def _stem(parts: list[str]) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in parts if part)).strip("-.")


def _write(path: Path, text: str) -> Path:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
    return path
