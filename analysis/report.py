"""Writes tables and the report: which files there are, what they are called, how they are written.

A reader sees an old file or a new one, never a part. Leaves out what the files hold (`sheets.py`,
`page.py`) and logging them to MLflow, which the command does.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from analysis.contrast_frame import contrast_frame
from analysis.evaluated import evaluated_at
from analysis.html import tables_html
from analysis.latex import latex, standalone
from analysis.markdown import markdown_of
from analysis.sheet import Document
from analysis.sheets import document
from analysis.sources import StoreSource
from analysis.study import Study
from analysis.tables import Table, frame, make_table
from grids.errors import InputError, listed
from grids.grid import Grid
from grids.outcome import WAITING
from grids.paths import Store

ALL: Final = "tables"
FORMATS: Final = ("md", "csv", "tex", "html")

Files = dict[Path, str]  # path -> text


def open_studies(
    grids: Sequence[Grid], where: Store | str, evaluation: str = ""
) -> dict[str, Study]:
    """The studies that grids are of, by name: of a store, or of another place that has them.

    In a store a study may have no run yet. With a named evaluation its scores stand for the runs'
    own. Raises `InputError` where there is no such store or place, or where the place does not have
    a study or the evaluation.
    """
    names = dict.fromkeys(grid.study for grid in grids)
    if evaluation:
        return {name: Study(evaluated_at(where, name, evaluation)) for name in names}
    if isinstance(where, str):
        return {name: Study.open(where, name) for name in names}
    if not where.root.is_dir():
        raise InputError(
            f"no store {where.root}; run a grid first, or name one with --store, or another place "
            "with --from"
        )
    return {name: Study(StoreSource(where.study(name))) for name in names}


def make_tables(grids: Sequence[Grid], studies: Mapping[str, Study]) -> list[Table]:
    """The table of every grid: sections by number, then grids that are none of the paper's."""
    return sorted((make_table(g, studies[g.study]) for g in grids), key=_section_order)


def formats_of(text: str) -> tuple[str, ...]:
    """`md,csv` as formats. Raises `InputError` for another one."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in FORMATS]:
        raise InputError(f"--format: got {unknown[0]!r}; allowed: {listed(FORMATS)}")
    return tuple(dict.fromkeys(asked)) or FORMATS


def write_tables(
    tables: Sequence[Table], out: Path, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write every table into the folder `out`, and files with all of them; return the files.

    Raises `InputError` where two tables would share a file, or `out` cannot be such a folder.
    """
    files = _table_files(tables, out, formats)
    return _write_all(files, out, "tables")


def write_report(
    tables: Sequence[Table], studies: Mapping[str, Study], out: Path, made: datetime
) -> list[Path]:
    """Write the page `out` and its figures beside it; return the files, the page first.

    Raises `InputError` where no cell of the tables has left anything, and where `out` cannot be
    written.
    """
    from analysis.page import Part, report_page
    from analysis.picture import pictures

    _check_any_run(tables)
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name a file for the report, such as report.html")
    with _told(out.parent, "report"):
        out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f"{out.stem}_figures")
    parts = []
    for stem, table in zip(stems(tables), tables, strict=True):
        study = studies[table.grid.study]
        parts.append(Part(stem, table, study, pictures(table, study, folder / stem)))
    page = _write_all({out: report_page(parts, made)}, out.parent, "report")
    return [*page, *(path for part in parts for picture in part.pictures for path in picture.files)]


def stems(tables: Sequence[Table]) -> list[str]:
    """`4.2-minimalist`, `demo`; with the study where two would share a file.

    Raises `InputError` where they would all the same.
    """
    short = [_stem([table.grid.section or "", table.grid.name]) for table in tables]
    taken = Counter(stem.lower() for stem in [*short, ALL])  # a file system may ignore case
    found = [
        stem if taken[stem.lower()] == 1 else _stem([stem, table.grid.study])
        for stem, table in zip(short, tables, strict=True)
    ]
    names = [*found, ALL, *(contrasts_stem(stem) for stem in found)]
    for stem, count in Counter(name.lower() for name in names).items():
        if count > 1:
            raise InputError(f"{count} tables would be written to {stem}.*; rename a grid")
    return found


def contrasts_stem(stem: str) -> str:
    """Of the file with a table's contrasts."""
    return f"{stem}-contrasts"


def _table_files(tables: Sequence[Table], out: Path, formats: Sequence[str]) -> Files:
    documents = [document(table) for table in tables]
    files: Files = {}
    for stem, table, shown in zip(stems(tables), tables, documents, strict=True):
        files |= {out / name: text for name, text in _of_table(stem, table, shown, formats)}
    return files | {out / name: text for name, text in _of_all(tables, documents, formats)}


def _of_table(
    stem: str, table: Table, shown: Document, formats: Sequence[str]
) -> Iterator[tuple[str, str]]:
    if "md" in formats:
        yield f"{stem}.md", markdown_of(shown)
    if "csv" in formats:
        yield f"{stem}.csv", frame(table).to_csv(index=False, lineterminator="\n")
        if table.results:
            rows = contrast_frame(table)
            yield f"{contrasts_stem(stem)}.csv", rows.to_csv(index=False, lineterminator="\n")
    if "tex" in formats:
        yield f"{stem}.tex", latex(shown)
    if "html" in formats:
        yield f"{stem}.html", tables_html([shown], shown.heading)


def _of_all(
    tables: Sequence[Table], documents: Sequence[Document], formats: Sequence[str]
) -> Iterator[tuple[str, str]]:
    if "md" in formats:
        yield f"{ALL}.md", "\n".join(map(markdown_of, documents))
    if "tex" in formats:
        yield f"{ALL}.tex", standalone([f"{stem}.tex" for stem in stems(tables)])
    if "html" in formats:
        names = ", ".join(dict.fromkeys(table.grid.study for table in tables))
        yield f"{ALL}.html", tables_html(documents, f"Tables of study {names}")


def _section_order(table: Table) -> tuple[bool, list[int], str, str]:
    numbers = [int(n) for n in re.findall(r"\d+", table.grid.section or "")]
    return (table.grid.section is None, numbers, table.grid.study, table.grid.name)


def _check_any_run(tables: Sequence[Table]) -> None:
    if not any(run.state != WAITING for t in tables for row in t.rows for run in row.runs):
        names = ", ".join(dict.fromkeys(table.grid.study for table in tables))
        raise InputError(
            f"study {names}: no cell of these grids has left anything, so there is nothing to "
            "report; `banditgrid run` them first, or name another store or place"
        )


def _stem(parts: list[str]) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in parts if part)).strip("-.")


def _write_all(files: Files, out: Path, what: str) -> list[Path]:
    """Every file, in a folder that is made where there is none."""
    with _told(out, what):
        out.mkdir(parents=True, exist_ok=True)
        return [_write(path, text) for path, text in files.items()]


@contextmanager
def _told(out: Path, what: str) -> Iterator[None]:
    """A folder that cannot be written is told as an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out}: the {what} cannot be written there: {error.strerror}; "
            "name a folder that you may write to"
        ) from None


def _write(path: Path, text: str) -> Path:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
    return path
