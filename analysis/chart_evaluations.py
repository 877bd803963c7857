"""What an arm's seeds scored along their training, as a curve: what a learning curve is drawn from.

Leaves out drawing (`chart_curves.py`), and metrics of training (`figures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from analysis.chart_panels import Lines, panels_in
from analysis.figures import Journal, curve, whole
from analysis.intervals import NOTHING, Estimate
from analysis.records import Numbers
from analysis.runs import Run
from analysis.study import Study
from analysis.tables import Row
from analysis.training import training
from grids.outcome import GENERATED_TOKENS, TEST_PASS

WANTED: Final = (TEST_PASS, GENERATED_TOKENS)

At = Callable[[int, Numbers], float]  # where the evaluation of a round lies on the x axis
Seeds = dict[str, list[Journal]]  # by an arm's label


@dataclass(frozen=True)
class Curve:
    """An arm's mean at every evaluation; NOTHING where no seed has a finite number.

    Attributes:
        solid: how many evaluations there are up to the last that all seeds have.
        seeds: that count.
    """

    x: tuple[float, ...]
    means: tuple[Estimate, ...]
    solid: int
    seeds: int

    def beyond(self, start: float) -> Curve:
        """What lies right of a place."""
        first = sum(x <= start for x in self.x)
        x, means = self.x[first:], self.means[first:]
        return Curve(x, means, max(self.solid - first, 0), self.seeds)

    @property
    def lacking(self) -> list[tuple[float, float]]:
        """The points, x and Pass@1, that lack a seed which later points have."""
        points = list(zip(self.x, self.means, strict=True))[: self.solid]
        return [(x, mean.value) for x, mean in points if 0 < mean.n < self.seeds]


def seeds_of(lines: Lines, study: Study) -> list[Seeds]:
    """Of every panel, in reading order, the seeds of the arms that it draws."""
    return [
        {row.arm.label: journals_of(row, study) for row in panel.drawn}
        for panel in panels_in(lines)
    ]


def journals_of(row: Row, study: Study) -> list[Journal]:
    """Its runs' evaluations; none of a run that does not count."""
    counted = {run.cell.seed for run in row.counted}
    return [
        Journal(r.cell.seed, r.state, evaluations(r, study) if r.cell.seed in counted else {})
        for r in row.runs
    ]


def evaluations(run: Run, study: Study) -> Mapping[int, Numbers]:
    """Evaluated round -> its scores, and the tokens generated until then.

    Where the runs come from a server, which was not asked for their histories yet, it is now.
    """
    history = getattr(study.source, "history", None)
    if run.training.curve or history is None:
        return run.training.curve
    lines: dict[int, Numbers] = {}
    for metric, values in history(run.cell, WANTED).items():
        for round, value in values.items():
            lines.setdefault(round, {})[metric] = value
    end = run.cell.rounds if run.diverged_round is None else run.diverged_round
    return training(run.cell, lines, {}, end).curve


def curve_of(journals: Sequence[Journal], at: At) -> Curve:
    """The curve of an arm's seeds; a mean lies at the mean of where its seeds lie."""
    points = {point.round: point for point in curve(journals, TEST_PASS)}
    rounds = sorted({r for journal in journals for r, x in journal.lines.items() if TEST_PASS in x})
    seeds = sum(bool(journal.lines) for journal in journals)
    solid = whole(tuple(points.values()), seeds)
    last = list(points)[solid - 1] if solid else -1
    return Curve(
        tuple(mean([at(r, j.lines[r]) for j in journals if r in j.lines]) for r in rounds),
        tuple(points[r].estimate if r in points else NOTHING for r in rounds),
        sum(r <= last for r in rounds), seeds,
    )  # fmt: skip


def tokens(scores: Numbers) -> float:
    """Generated until an evaluation; NaN where a journal does not tell."""
    return scores.get(GENERATED_TOKENS, math.nan)


def spent(panels: Sequence[Seeds]) -> list[float]:
    """The tokens that every run generated until its last evaluation; NaN where it is not known."""
    runs = [j.lines for seeds in panels for arm in seeds.values() for j in arm if j.lines]
    return [tokens(lines[max(lines)]) for lines in runs]


def mean(values: Sequence[float]) -> float:
    """NaN where one is missing."""
    return math.fsum(values) / len(values)
