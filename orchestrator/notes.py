"""What MLflow's pages say of a study and of a run, as Markdown: what it is, how it stands, where
its tables are.

Our part of a description reaches from the line with our mark to the end; what a person wrote before
it stays. All values of a grid file are escaped: a description is rendered as HTML. A page shows the
first line alone until it is unfolded. Leaves out sending (`writer.py`, `showing.py`) and verdicts,
which analysis makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from grids.cell import Cell, check_setting
from grids.grid import Grid
from grids.key import effective
from grids.outcome import SEARCH, Verdict
from orchestrator import views

# Ends our first line, which MLflow's list of experiments shows as it is; its pages do not show it.
OURS: Final = "<!-- by banditgrid, from this line on -->"
# Settings that an arm's name tells anyway, or that say what the cell is of.
NAMED: Final = frozenset(
    {"batch", "rollouts", "replay", "advantage", "seed", "semantics", "model", "dataset", "prompt",
     "grader", "engine", "precision"}
)  # fmt: skip
VERDICTS, VERDICTS_END = "<!-- verdicts -->", "<!-- end of verdicts -->"
MOST_OF_A_GRID: Final = 3000
MOST_OF_A_RUN: Final = 7900  # characters of a description: MLflow takes 8,000 in a run's tag,
MOST_OF_A_STUDY: Final = 19900  # 20,000 in an experiment's


@dataclass(frozen=True)
class Score:
    """A share of questions that were answered right, with its 95% interval over questions."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def arm_name(cell: Cell) -> str:
    """`(32,8,0) grpo lr=1e-05`: every setting of the arm that is not what its model, its data set
    and the program give to a cell that says nothing. Arms that differ have names that differ."""
    b, n, m = cell.shape
    counts = effective(cell)
    more = [
        f"{name}={_plain(value)}"
        for name, value in counts.items()
        if name not in NAMED and value != _given(cell, name) and not _one_micro_batch(cell, name)
    ]
    for name in ("engine", "precision", "grader"):
        if (value := getattr(cell, name)) != _given(cell, name):
            more.append(str(value))
    return " ".join([f"({b},{n},{m})", _plain(counts["advantage"]), *more])


def _given(cell: Cell, name: str) -> Any:
    """What a cell of this model and data set has where nothing is said."""
    if name == "grader":
        return cell.dataset_spec.grader
    for spec in (cell.dataset_spec, cell.model_spec):
        if name in spec.defaults:
            return check_setting(name, spec.defaults[name], cell.plugin_specs)
    return type(cell).model_fields[name].default


def _one_micro_batch(cell: Cell, name: str) -> bool:
    """The size was lowered to the whole of a small batch, which is no choice of anybody's."""
    return name == "micro_batch" and cell.micro_batch == cell.rows_per_update


def pair_name(cell: Cell) -> str:
    return f"{cell.model} {cell.dataset}"


def joined(before: str | None, ours: str, most: int = MOST_OF_A_RUN) -> str:
    """A description: what people wrote in it, then our part, made anew. Where theirs leaves no room
    for ours, it stays as it is."""
    theirs, (first, _, rest) = people(before), ours.partition("\n")
    head = f"{theirs}\n\n" if theirs else ""
    made = head + _cut(f"{first} {OURS}\n{rest}", most - len(head))
    return made if OURS in made or before is None else before


def people(note: str | None) -> str:
    """What people wrote in a description: all before the line with our mark, which begins with
    what is bold in it."""
    before, found, _ = (note or "").partition(OURS)
    if not found:
        return before.rstrip()
    above, _, line = before.rpartition("\n")
    return f"{above}\n{line[: max(0, line.find('**'))]}".strip()


def run_note(
    cell: Cell, grids: Sequence[str], state: str, scores: Mapping[str, Score],
    verdicts: Mapping[str, str],
) -> str:  # fmt: skip
    """The description of a cell's run.

    Args:
        state: how it stands, in words.
        scores: `base` and `final`: greedy Pass@1 on test questions.
        verdicts: grid -> `run_verdicts` of its last tables.
    """
    b, n, m = cell.shape
    rollouts = f"{n} fresh rollout{'s' * (n != 1)} each"
    replayed = f", up to {m} replayed" if m else ""
    what = (
        f"**{escaped(pair_name(cell))}**, {escaped(arm_name(cell))}, seed {cell.seed}: "
        f"{b} queries a round, {rollouts}{replayed}; {cell.rounds} rounds."
    )
    lines = [what, "", f"**{escaped(state)}**"]
    for phase, score in scores.items():
        lines.append(
            f"- {phase} test Pass@1 (greedy) {score}, {score.n} questions "
            "(95% interval over questions: one seed)"
        )
    lines += ["", *_places(grids), "", _verdicts(verdicts)]
    lines += ["", f"Its files: `cells/{cell.key}` of the study; `banditgrid logs {cell.key}`."]
    return "\n".join(lines)


def _places(grids: Sequence[str]) -> Iterator[str]:
    """Where the cell is shown, or what it was trained for. A grid's name has no markup in it."""
    tables = [f"`{grid}`" for grid in grids if SEARCH not in grid]
    if tables:
        yield f"In the tables of {', '.join(tables)}."
    for grid, _, search in (grid.partition(SEARCH) for grid in grids if SEARCH in grid):
        yield f"A trial of the search `{search}` of `{grid}`; in no table."


def grid_entry(grid: Grid, cells: int) -> dict[str, Any]:
    """What the study's description says of a grid, as it is kept in a tag of the experiment."""
    return {
        "section": grid.section, "about": grid.about, "cells": cells, "view": views.key_of(grid),
        "title": views.title_of(grid), "contrasts": [c.name for c in grid.contrasts],
    }  # fmt: skip


def study_note(
    study: str, experiment: str, grids: Mapping[str, Mapping[str, Any]],
    verdicts: Mapping[str, str], analysis: str | None,
) -> str:  # fmt: skip
    """The description of a study.

    Args:
        experiment: its id in MLflow, for links.
        grids: name -> `grid_entry`.
        verdicts: grid -> `study_verdicts` of its last tables.
        analysis: id of the run that holds tables and figures.
    """
    count = f"{len(grids)} grid{'s' * (len(grids) != 1)}"
    everything = f"[All runs]({views.path(experiment, views.STUDY)}), newest first"
    lines = [
        f"**{escaped(study)}**: {count}; a cell runs once, however many name it. {everything}.",
        "",
        "| grid | cells | what it compares | contrasts |",
        "|---|---|---|---|",
    ]
    for _, entry in sorted(grids.items(), key=lambda item: (item[1]["section"] or "~", item[0])):
        rows = f"[{escaped(entry['title'])}]({views.path(experiment, entry['view'])})"
        charts = f"[curves]({views.path(experiment, entry['view'], charts=True)})"
        declared = ", ".join(map(escaped, entry["contrasts"])) or "none"
        about = escaped(entry["about"])
        lines.append(f"| {rows}, {charts} | {entry['cells']} | {about} | {declared} |")
    lines += ["", "Means of groups on these pages have no interval: the tables have."]
    if analysis is not None:
        place = artifacts(experiment, analysis)
        lines += ["", f"Tables, figures and report: artifacts of the run [analysis]({place})."]
    return "\n".join([*lines, "", _verdicts(verdicts)])


def study_verdicts(made: Sequence[Verdict], now: datetime) -> str:
    """What the tables of one grid said, with the time: a table of Markdown."""
    lines = [
        f"Tables of `{made[0].grid}`, {now:%Y-%m-%d %H:%M} UTC:", "",
        "| contrast (b against a) | where | verdict | b - a [95%] | standing |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for verdict in made:
        name = f"{verdict.contrast}: {verdict.b} against {verdict.a}"
        row = (name, verdict.where, verdict.told, verdict.numbers.removeprefix("b - a "))
        lines.append(f"| {' | '.join(map(escaped, row))} | {verdict.standing} |")
    return _cut("\n".join(lines), MOST_OF_A_GRID)


def run_verdicts(made: Sequence[Verdict], arm_key: str) -> str:
    """What the tables of one grid said of an arm: a list of Markdown, or nothing.

    Without the time, so that tables which say the same change no run.
    """
    lines = []
    for verdict in made:
        for side, key in (("a", verdict.a_key), ("b", verdict.b_key)):
            if key == arm_key:
                lines.append(
                    f"- {escaped(verdict.contrast)}, {escaped(verdict.where)} (a: "
                    f"{escaped(verdict.a)}; b: {escaped(verdict.b)}; this run is of {side}): "
                    f"**{escaped(verdict.told)}**, {escaped(verdict.numbers)}, {verdict.standing}"
                )
    return _cut("\n".join(lines), MOST_OF_A_GRID)


def with_verdicts(note: str | None, verdicts: Mapping[str, str]) -> str | None:
    """A run's description with other verdicts; None where it has no place for them."""
    before, found, rest = (note or "").partition(VERDICTS)
    _, ended, after = rest.partition(VERDICTS_END)
    if not (found and ended):
        return None
    whole = f"{before}{_verdicts(verdicts)}{after}"
    return whole if len(whole) <= MOST_OF_A_RUN else f"{before}{_verdicts({})}{after}"


def _verdicts(by_grid: Mapping[str, str]) -> str:
    told = "\n\n".join(text for _, text in sorted(by_grid.items()))
    none = "None so far: `banditgrid tables` writes them here."
    return f"{VERDICTS}\n**Verdicts** of the last tables\n\n{told or none}\n\n{VERDICTS_END}"


def _cut(text: str, most: int) -> str:
    """Whole lines of a text, no longer than MLflow takes; nothing where not even one fits."""
    if len(text) <= most:
        return text
    kept, found, _ = text[: max(0, most - 40)].rpartition("\n")
    return f"{kept}\n\n(more: see the tables)" if found else ""


def artifacts(experiment: str, run: str) -> str:
    """The page of a run's artifacts, relative to any other of the same server."""
    return f"#/experiments/{experiment}/runs/{run}/artifacts"


def escaped(text: object) -> str:
    """Text of a file as text of a page: no markup, no row of a table ends early."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _plain(value: Any) -> str:
    if isinstance(value, list):  # a plug-in's function: its name and the digest of its source
        return f"{value[0]}@{str(value[1])[:8]}"
    return str(value)
