"""What a grid's table shows: its document of sheets, from a `Table`.

First the arms, then the declared contrasts, the arms that may be best, the variance shares.
Leaves out every computation and every markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.arms import is_embedded
from analysis.choice_sheets import best_sheet, shares_sheet
from analysis.contrast_sheets import across_sheet, behind_sheet, contrasts_sheet
from analysis.estimates import MEASURES
from analysis.intervals import MISSING, NOTHING, Estimate
from analysis.reported import arms_unknown
from analysis.sheet import LONGEST, Document, Sheet, Unit, joined, one_line, unit_of
from analysis.tables import Row, Table
from grids.cell import Cell

PIPELINE_CHECK = (
    "pipeline check: the tasks were made to show learning and say nothing of the paper's claims"
)
ASSUMED = "assumed: what this section compares is our reading of the paper"


def document(table: Table) -> Document:
    """All that is shown of a grid."""
    cells = [row.arm.cell for row in table.rows]
    warnings = [PIPELINE_CHECK] if any(map(is_embedded, cells)) else []
    warnings += [ASSUMED] if table.grid.assumed else []
    warnings += [table.evaluation_told] if table.evaluation else []
    evaluated = _evaluated_otherwise(cells) if table.evaluation else _evaluated(cells)
    text = (evaluated, _entries_are(table), _names(table))
    made = (
        _arms(table), contrasts_sheet(table), across_sheet(table), behind_sheet(table),
        best_sheet(table), shares_sheet(table), _unknown(table),
    )  # fmt: skip
    return Document(
        table.title, table.grid.about, tuple(warnings), tuple(part for part in text if part),
        tuple(sheet for sheet in made if sheet is not None),
    )  # fmt: skip


# ---- arms


def _arms(table: Table) -> Sheet:
    """A row an arm; columns that would be empty in every row are left out."""
    measures = [name for name in MEASURES if _any_train(table) or not name.endswith("train")]
    powers = sorted(
        {name for row in table.rows for name in row.estimates if name.startswith("pass_at_")},
        key=lambda name: int(name.rpartition("_")[2]),
    )
    generated = [row.estimates.get("generated_tokens", NOTHING) for row in table.rows]
    unit = unit_of(generated)
    header = (
        "pair", "arm", "seeds", *(name.replace("_", " ") for name in measures),
        *(f"sampled pass@{name.rpartition('_')[2]}" for name in powers),
        f"tokens generated{f' ({unit.name})' if unit.name else ''}", "reported", "notes",
    )  # fmt: skip
    rows = tuple(_entries(row, (*measures, *powers), unit) for row in table.rows)
    return Sheet(
        "arms", "Arms", header, rows, notes=_reasons(table),
        notes_title="Seeds that did not simply finish",
    ).without_empty()  # fmt: skip


def _entries(row: Row, names: Sequence[str], unit: Unit) -> tuple[str, ...]:
    counted = len(row.counted)
    generated = row.estimates.get("generated_tokens", NOTHING)
    return (
        row.pair, row.arm.label, f"{counted}/{len(row.runs)}",
        *(_number(name, row.estimates.get(name, NOTHING), counted) for name in names),
        unit.told(generated) if generated.n else "",
        ", ".join(number.text for number in row.reported), "; ".join(row.notes),
    )  # fmt: skip


def _number(name: str, estimate: Estimate, counted: int) -> str:
    """With its n where that is not the row's number of seeds; a base is no mean over seeds."""
    if estimate.n == 0:
        return MISSING
    if name.startswith("base"):
        return f"{estimate.value:.3f}" if math.isnan(estimate.se) else estimate.format()
    text = estimate.format(sign=name.startswith("gain"))
    return f"{text} (n={estimate.n})" if 1 < estimate.n != counted else text


def _any_train(table: Table) -> bool:
    return any(row.arm.cell.eval.train_questions for row in table.rows)


def _reasons(table: Table) -> tuple[str, ...]:
    """Behind the rows' notes; of a merged arm only where they are its own."""
    rows = [row for row in table.rows if row.arm.twin is None or _own_horizon(row, table)]
    return tuple(one_line(detail, LONGEST) for row in rows for detail in row.details)


def _own_horizon(row: Row, table: Table) -> bool:
    """A merged arm that is not read where its twin is, so that its reasons are its own."""
    twins = (other for other in table.rows if other.arm.label == row.arm.twin)
    return any(twin.arm.cell.rounds != row.arm.cell.rounds for twin in twins)


# ---- what the numbers are


def _evaluated(cells: Sequence[Cell]) -> str:
    """What was evaluated, how, and when."""
    decodings = joined(_decoding(cell) for cell in cells)
    rounds = joined(cell.rounds for cell in cells)
    sizes = joined(cell.eval.train_questions for cell in cells)
    train = "train was not scored" if sizes == "0" else f"train questions: {sizes}, a subset"
    return (
        f"Pass@1, {decodings}, after {rounds} rounds; test questions: {_questions(cells)}; {train}."
    )


def _evaluated_otherwise(cells: Sequence[Cell]) -> str:
    """The same of a named evaluation, which tells its questions itself."""
    decodings = joined(cell.eval.primary for cell in cells)
    rounds = joined(cell.rounds for cell in cells)
    return f"Pass@1, {decodings} decoding, after {rounds} rounds, by the evaluation named above."


def _entries_are(table: Table) -> str:
    """What the entries and their intervals are of."""
    cells = [row.arm.cell for row in table.rows]
    if table.over_questions:
        sampled = [cell.eval.primary == "sampled" for cell in cells]
        base = joined(["t interval" if drawn else "Wilson's interval" for drawn in sampled])
        text = (
            "Entries are the mean over seeds with 95% t interval, of seeds - 1 degrees of freedom, "
            "its standard error clustered by seed and by question: it holds for other seeds and "
            "for other questions of their kind. Base is one evaluation that the seeds share, with "
            f"{base} over its questions; gain is final minus base, seed by seed and question by "
            "question."
        )
    else:
        text = (
            "Entries are the mean over seeds with 95% t interval over the seeds alone: it holds "
            "for other seeds on these very questions. Base is one evaluation that the seeds share; "
            "gain is final minus base, seed by seed."
        )
    samples = {run.cell.eval.samples for row in table.rows for run in row.counted} - {0}
    if table.over_questions and samples:
        text += f" Sampled pass@k is the unbiased estimate from {joined(sorted(samples))} answers."
    if any(row.estimates.get("generated_tokens", NOTHING).n for row in table.rows):
        text += " Tokens generated in training have a t interval over seeds alone."
    return f"{text} Seeds: counted / declared. The numbers come from {table.source}."


def _decoding(cell: Cell) -> str:
    if cell.eval.primary == "greedy":
        return "greedy decoding"
    return f"sampled decoding (K = {cell.eval.samples} at temperature {cell.eval.temperature:g})"


def _questions(cells: Sequence[Cell]) -> str:
    """`1319 (gsm8k), 5000 (math)`, or one number where all have it."""
    counts: dict[str, str] = {}
    for cell in cells:
        bounds = (cell.eval.test_questions, cell.dataset_spec.test_rows)
        known = [bound for bound in bounds if bound is not None]
        counts[cell.dataset] = str(min(known)) if known else "all"
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


def _unknown(table: Table) -> Sheet | None:
    """The paper's numbers that stand beside no arm of ours."""
    if table.evaluation:  # they are of the paper's own evaluation
        return None
    cells = [row.arm.cell for row in table.rows]
    numbers = arms_unknown(cells, table.grid.section)
    if not numbers:
        return None
    rows = tuple((n.subject, n.what, n.text) for n in numbers)
    header = ("the paper's", "what", "value")
    lead = "Reported, arm unknown: the paper does not say of which arm these numbers are."
    return Sheet("reported", "The paper's other numbers", header, rows, keys=1, lead=lead)
