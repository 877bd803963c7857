"""The paper's failure signatures and first-experiment rules (arXiv 2601.22532), computed.

A signature is a function of one pair's arms that gives `Finding`s; `SIGNATURES` has them by name.
Each rule is on a 95% interval, never on a point: it holds where the whole interval says so, does
not hold where the whole interval says the opposite, and else cannot be told. One seed tells of a
run, so that it never decides anything of an arm. Two arms that no contrast of the grid declares are
compared all the same, and the finding says "exploratory".

Leaves out declared contrasts and which choices matter (`findings.py`), and all layout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from analysis.contrasts import ALPHA, MARGIN, Comparison, compare, tost
from analysis.declared import Result
from analysis.estimates import mean
from analysis.intervals import NOTHING, Estimate, Matrix, mean_t, two_way_variances, with_t
from analysis.matching import cost_ratios, group_of
from analysis.outcomes import Outcomes, Unusable
from analysis.runs import METRICS, Run
from analysis.study import Study
from analysis.tables import Row
from grids import outcome

GAIN: Final = 0.05  # the paper's rule 1: a smaller gain is a reason to doubt the base model
FELL: Final = 0.1  # of where it began: what is left of an entropy or reward spread that is gone
EIGHTFOLD: Final = 8


@dataclass(frozen=True)
class Finding:
    """Something that the data says, or cannot say.

    Attributes:
        name: what is claimed. where: of which pair and arm.
        holds: None where the data cannot tell.
        text: one sentence with its numbers, their intervals and n.
        evidence: what lies behind it, a line each.
    """

    name: str
    where: str
    holds: bool | None
    text: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """What one table has of one pair."""

    name: str
    rows: tuple[Row, ...]
    results: tuple[Result, ...]  # of the declared contrasts
    study: Study

    @property
    def arms(self) -> tuple[Row, ...]:
        """Each trained policy once: an arm that was merged into another says nothing new."""
        found: dict[tuple[object, ...], Row] = {}
        for row in self.rows:
            cell = row.arm.cell
            found.setdefault((cell.arm_key, cell.rounds, cell.eval_key), row)
        return tuple(found.values())

    def where(self, *rows: Row) -> str:
        """`OLMo-MATH (32,1,0) raw`; two arms with `to` between them."""
        return f"{self.name} {' to '.join(row.arm.label for row in rows)}"


Signature = Callable[[Pair], Iterable[Finding]]


def below(estimate: Estimate, bound: float) -> bool | None:
    """Whether the truth is below a bound, as far as the interval tells."""
    if estimate.high < bound:  # NaN fails both
        return True
    return False if estimate.low > bound else None


def seeds_told(n: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} seed{'' if n == 1 else 's'}"


# ---- of one arm


def no_improvement(pair: Pair) -> Iterator[Finding]:
    """Rule 1: test gain below 0.05. On the minimalist arm it speaks of the base model."""
    for row in pair.arms:
        gain = row.estimates.get("gain_test", NOTHING)
        holds = below(gain, GAIN)
        told = {True: f"below {GAIN}", False: f"above {GAIN}", None: _untold(row, gain)}[holds]
        if holds and row.arm.cell.shape[1:] == (1, 0):
            told += ", on the minimalist arm a reason to doubt the base model"
        yield Finding("no improvement", pair.where(row), holds, f"{_gain(row)}: {told}", _runs(row))


def overfitting(pair: Pair) -> Iterator[Finding]:
    """Train gain above 0.05, test gain below the margin, and train gain above test gain.

    It does not hold where train surely gains less, test surely more, or test at least as much.
    """
    for row in pair.arms:
        train, test = (row.estimates.get(f"gain_{split}", NOTHING) for split in ("train", "test"))
        if not row.arm.cell.eval.train_questions:
            why = "cannot be told: train questions were not scored"
            yield Finding("train up, test flat", pair.where(row), None, why, _runs(row))
            continue
        gap = _gap(row, pair.study)
        signs = (_not(below(train, GAIN)), below(test, MARGIN), _not(below(gap, 0.0)))
        holds = _all(signs)
        told = f": {_untold(row, gap)}" if holds is None else ""
        text = (
            f"train gain {train.format(sign=True)}, test gain {test.format(sign=True)}, their "
            f"difference {gap.format(sign=True)}, {seeds_told(gap.n)}{told}"
        )
        yield Finding("train up, test flat", pair.where(row), holds, text, _runs(row))


def collapse(pair: Pair) -> Iterator[Finding]:
    """A seed diverged, the final policy is below its base by more than 0.05, or token entropy or
    the rewards' spread ended below a tenth of where it began.

    The last two are no collapse where test Pass@1 surely rose: a policy that is nearly always
    right, and sure of it, has neither. What a journal does not tell is said and decides nothing.
    """
    for row in pair.arms:
        gain = row.estimates.get("gain_test", NOTHING)
        broke = [f"s{run.cell.seed} at round {run.diverged_round}" for run in row.in_state(
            outcome.DIVERGED)]  # fmt: skip
        fell = {"entropy": _left(row, outcome.ENTROPY), "reward sd": _left(row, outcome.REWARD_SD)}
        signs = [bool(broke), below(gain, -GAIN)]
        signs += [below(left, FELL) and gain.low <= 0 for left in fell.values() if left.n]
        holds = _any(signs) if len(row.counted) > 1 else None
        told = [f"diverged: {', '.join(broke)}" if broke else "no seed diverged", _gain(row)]
        told += [f"{name} {_ratio(left)}" for name, left in fell.items()]
        told += [_untold(row, gain)] if holds is None else []
        yield Finding("collapse", pair.where(row), holds, "; ".join(told), _runs(row))


def format_gain(pair: Pair) -> Iterator[Finding]:
    """The gain is learning to write answers that parse: that part is above 0, and the other below
    the margin. It does not hold where the part of parsing is below the margin, or the other above 0.

    Pass@1 is P(parsed) × P(correct given parsed). A seed's gain is split exactly, each factor's
    change at the other's mean of base and final (Kitagawa 1955, J. Am. Stat. Assoc. 50:1168).
    """
    for row in pair.arms:
        splits = [_split(run) for run in row.counted]
        known = [split for split in splits if not math.isnan(split.form + split.content)]
        form, content = mean(s.form for s in known), mean(s.content for s in known)
        holds = _by_format(form, content)
        if len(known) < len(splits):
            holds, told = None, "P(correct given parsed) is unknown of some seed"
        elif known and all(s.parsed == (1.0, 1.0) for s in known):
            told = "every answer of base and final parsed: nothing to gain by format"
        else:
            told = _untold(row, form) if holds is None else ""
        text = (
            f"{_gain(row)}, of it {form.format(sign=True)} by P(parsed) and "
            f"{content.format(sign=True)} by P(correct given parsed), on these test questions"
        )
        lines = (_split_told(run, s) for run, s in zip(row.counted, splits, strict=True))
        text += f": {told}" if told else ""
        yield Finding("gain by format alone", pair.where(row), holds, text, tuple(lines))


# ---- of two arms


def ceiling(pair: Pair) -> Iterator[Finding]:
    """The last step to a larger batch, all else equal and one fresh rollout, gains less than the
    margin per doubling. Steps are at equal rounds, so that a larger batch also saw more.
    """
    lone = (row for row in pair.rows if row.arm.cell.shape[1:] == (1, 0))
    for rows in _alike(lone, lambda row: row.arm.cell.batch):
        steps = [_step(a, b, pair) for a, b in itertools.pairwise(rows)]
        if not steps:
            continue
        last, doublings = steps[-1], math.log2(rows[-1].arm.cell.batch / rows[-2].arm.cell.batch)
        each = _scaled(last.difference, 1 / doublings)
        told = f"{each.format(sign=True)} per doubling of the batch, {last.of}"
        yield _little("ceiling of batch scaling", pair.where(*rows[-2:]), each, last, told,
                      tuple(line for step in steps for line in step.evidence))  # fmt: skip


def eightfold(pair: Pair) -> Iterator[Finding]:
    """Rule 2: eight times the rollouts, all else equal, gain less than the margin."""
    fresh = (row for row in pair.rows if not row.arm.cell.replay)
    for rows in _alike(fresh, lambda row: row.arm.cell.rollouts, lambda row: row.arm.cell.batch):
        for a, b in itertools.combinations(rows, 2):
            if b.arm.cell.rollouts != EIGHTFOLD * a.arm.cell.rollouts:
                continue
            step = _step(a, b, pair)
            told = f"{step.difference.format(sign=True)} for eightfold rollouts, {step.of}"
            yield _little("diminishing returns per eightfold rollouts", pair.where(a, b),
                          step.difference, step, told, step.evidence)  # fmt: skip


def replay(pair: Pair) -> Iterator[Finding]:
    """Rule 3: (B, 1, n - 1) loses less than the margin to (B, n, 0), all else equal, so that replay
    saves n-fold generation. It does not hold where it surely loses more.
    """
    name = "replay within the margin of fresh rollouts"
    for a, b in itertools.permutations(pair.rows, 2):
        n = a.arm.cell.rollouts
        shapes = ((a.arm.cell.batch, n, 0), (a.arm.cell.batch, 1, n - 1))
        if n == 1 or (a.arm.cell.shape, b.arm.cell.shape) != shapes or _else(a) != _else(b):
            continue
        step = _step(a, b, pair)
        holds: bool | None = True if tost(step.difference, MARGIN)[1] < ALPHA else None
        holds = False if step.difference.high < -MARGIN else holds
        told = f"replay minus fresh {step.difference.format(sign=True)}, {step.of}"
        if step.why:
            holds, told = None, f"{told}: {step.why}"
        elif holds is None:
            told += f": {_open(step.difference)}"
        yield Finding(name, pair.where(a, b), holds, told, step.evidence)


SIGNATURES: Final[dict[str, Signature]] = {
    "no improvement": no_improvement,
    "train up, test flat": overfitting,
    "collapse": collapse,
    "gain by format alone": format_gain,
    "ceiling of batch scaling": ceiling,
    "diminishing returns per eightfold rollouts": eightfold,
    "replay within the margin of fresh rollouts": replay,
}


def signatures(pair: Pair) -> tuple[Finding, ...]:
    """Every signature of a pair."""
    return tuple(finding for signature in SIGNATURES.values() for finding in signature(pair))
