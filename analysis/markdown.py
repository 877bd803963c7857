"""A table as Markdown: what is shown, the rows in aligned columns, and what lies behind the notes.

Leaves out every computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from analysis.arms import is_embedded
from analysis.intervals import MISSING, Estimate
from analysis.reported import Reported, arms_unknown
from analysis.tables import MEASURES, Row, Table
from grids.cell import Cell

PIPELINE_CHECK = (
    "pipeline check: the tasks were made to show learning and say nothing of the paper's claims"
)
ASSUMED = "assumed: what this section compares is our reading of the paper"
COLUMNS = (
    "pair", "arm", "seeds", "base test", "final test", "gain test",
    "base train", "final train", "gain train",
)  # fmt: skip
LONGEST = 200  # characters of one reason


def markdown(table: Table) -> str:
    """The whole table, ending in one newline."""
    cells = [row.arm.cell for row in table.rows]
    heading = f"# {table.title}"
    heading += f": {table.grid.about}" if table.grid.about else ""
    parts = [heading, *_warnings(table, cells), _shown(cells), _names(table), _rows(table)]
    rows = [row for row in table.rows if row.arm.twin is None or _own_horizon(row, table)]
    details = [detail for row in rows for detail in row.details]
    if details:
        parts.append("\n".join(["Seeds that did not simply finish:", "", *_bullets(details)]))
    unknown = arms_unknown(cells, table.grid.section)
    if unknown:
        parts.append("Reported, arm unknown:\n\n" + _unknown(unknown))
    return "\n\n".join(part for part in parts if part) + "\n"


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as plain text too."""
    body = [[_safe(entry) for entry in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *body]) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(e.ljust(w) for e, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _rows(table: Table) -> str:
    """Columns that would be empty in every row are left out."""
    header = [*COLUMNS, "reported", "notes"]
    entries = [_entries(row) for row in table.rows]
    kept = [i for i in range(len(header)) if any(row[i] for row in entries)]
    if not any(row.arm.cell.eval.train_questions for row in table.rows):
        kept = [i for i in kept if "train" not in header[i]]
    return aligned([header[i] for i in kept], ([row[i] for i in kept] for row in entries))


def _entries(row: Row) -> list[str]:
    counted = len(row.counted)
    entries = [row.pair, row.arm.label, f"{counted}/{len(row.runs)}"]
    entries += [_number(name, row.estimates[name], counted) for name in MEASURES]
    return [*entries, ", ".join(number.text for number in row.reported), "; ".join(row.notes)]


def _number(name: str, estimate: Estimate, counted: int) -> str:
    """With its n where that is not the row's number of seeds."""
    if estimate.n == 0:
        return MISSING
    if name.startswith("base") and math.isnan(estimate.se):
        return f"{estimate.value:.3f}"  # one evaluation that the seeds share
    text = estimate.format(sign=name.startswith("gain"))
    return f"{text} (n={estimate.n})" if 1 < estimate.n != counted else text


def _warnings(table: Table, cells: list[Cell]) -> list[str]:
    warnings = [f"**{PIPELINE_CHECK}**"] if any(is_embedded(cell) for cell in cells) else []
    return [*warnings, *([f"*{ASSUMED}*"] if table.grid.assumed else [])]


def _own_horizon(row: Row, table: Table) -> bool:
    """A merged arm that is not read where its twin is, so that its reasons are its own."""
    twins = (other for other in table.rows if other.arm.label == row.arm.twin)
    return any(twin.arm.cell.rounds != row.arm.cell.rounds for twin in twins)


def _shown(cells: list[Cell]) -> str:
    """What the numbers are."""
    decodings = _joined(dict.fromkeys(_decoding(cell) for cell in cells))
    rounds = _joined(dict.fromkeys(str(cell.rounds) for cell in cells))
    sizes = _joined(dict.fromkeys(str(cell.eval.train_questions) for cell in cells))
    train = "train was not scored" if sizes == "0" else f"train questions: {sizes}, a subset"
    return (
        f"Pass@1, {decodings}, after {rounds} rounds; test questions: {_questions(cells)}; "
        f"{train}. Entries are the mean over seeds with 95% t interval; base is one evaluation "
        "that the seeds share; gain is final minus base, seed by seed. seeds: counted / declared."
    )


def _decoding(cell: Cell) -> str:
    if cell.eval.primary == "greedy":
        return "greedy decoding"
    return f"sampled decoding (K = {cell.eval.samples} at temperature {cell.eval.temperature:g})"


def _questions(cells: list[Cell]) -> str:
    """`1319 (gsm8k), 5000 (math)`, or one number where all have it."""
    counts: dict[str, str] = {}
    for cell in cells:
        bounds = (cell.eval.test_questions, cell.dataset_spec.test_rows)
        known = [bound for bound in bounds if bound is not None]
        whole = cell.dataset_spec.test_rows is not None or cell.eval.test_questions is not None
        counts[cell.dataset] = str(min(known)) if whole else "all"
    if len(set(counts.values())) == 1:
        return next(iter(counts.values()))
    return ", ".join(f"{count} ({dataset})" for dataset, count in counts.items())


def _names(table: Table) -> str:
    """Who is who: the catalogue's names behind the paper's."""
    specs = [s for row in table.rows for s in (row.arm.cell.model_spec, row.arm.cell.dataset_spec)]
    named = dict.fromkeys((spec.paper, spec.name, spec.embedded) for spec in specs if spec.paper)
    told = [
        f"{name} stands in for {paper}" if embedded else f"{paper} is {name}"
        for paper, name, embedded in named
    ]
    return f"Names: {', '.join(told)}." if told else ""


def _unknown(numbers: Sequence[Reported]) -> str:
    rows = [(n.subject, n.what, n.text) for n in numbers]
    return aligned(("the paper's", "what", "value"), rows)


def _bullets(lines: Iterable[str]) -> list[str]:
    flat = (_safe(line) for line in lines)
    return [f"- {line if len(line) <= LONGEST else line[: LONGEST - 1] + '…'}" for line in flat]


def _safe(text: str) -> str:
    """On one line and without a column's end."""
    return " ".join(text.split()).replace("|", "\\|")


def _joined(names: Iterable[str]) -> str:
    return " or ".join(names)
