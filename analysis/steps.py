"""Signatures of two arms: batch scaling, eightfold rollouts, replay for fresh rollouts.

A step that a contrast of the grid declares is read from its result, with its standing. Any other is
compared all the same, on the primary test Pass@1, and says "exploratory". Leaves out signatures of
one arm (`signatures.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from analysis.contrasts import ALPHA, MARGIN, Comparison, compare, tost
from analysis.declared import Result
from analysis.finding import Finding, Pair, below, seeds_told, untold
from analysis.intervals import NOTHING, Estimate
from analysis.matching import cost_ratios, group_of
from analysis.outcomes import Unusable
from analysis.study import Study
from analysis.tables import Row

EXPLORATORY: Final = "exploratory: no contrast declares it"


class Step(NamedTuple):
    """From one arm to another.

    Attributes:
        difference: of the second minus the first; its n counts seeds.
        why: there is no verdict; empty where there is one.
        told: its n, verdict and standing.
        evidence: lines.
    """

    difference: Estimate
    why: str
    told: str
    evidence: tuple[str, ...]


def ceiling(pair: Pair) -> Iterator[Finding]:
    """The last step to a larger batch, with one fresh rollout and all else equal, gains less than
    0.02 per doubling. Steps are at equal rounds: a larger batch also saw more."""
    lone = [row for row in pair.arms if row.arm.cell.shape[1:] == (1, 0)]
    for rows in _alike(lone, lambda row: 0):
        ordered = sorted(rows, key=lambda row: row.arm.cell.batch)
        steps = [step(a, b, pair) for a, b in itertools.pairwise(ordered)]
        if not steps:
            continue
        a, b = ordered[-2:]
        each = _scaled(steps[-1].difference, 1 / math.log2(b.arm.cell.batch / a.arm.cell.batch))
        evidence = tuple(line for made in steps for line in made.evidence)
        yield _little(
            "ceiling of batch scaling", pair.where(a, b), "per doubling of the batch",
            steps[-1]._replace(difference=each, evidence=evidence),
        )  # fmt: skip


def eightfold(pair: Pair) -> Iterator[Finding]:
    """Rule 2: eight times the fresh rollouts, all else equal, gain less than 0.02."""
    fresh = [row for row in pair.rows if not row.arm.cell.replay]
    for rows in _alike(fresh, lambda row: row.arm.cell.batch):
        for a, b in itertools.permutations(rows, 2):
            if b.arm.cell.rollouts == 8 * a.arm.cell.rollouts:
                yield _little(
                    "diminishing returns per eightfold rollouts", pair.where(a, b),
                    "for eightfold rollouts", step(a, b, pair),
                )  # fmt: skip


def replay(pair: Pair) -> Iterator[Finding]:
    """Rule 3: (B, 1, n - 1) loses less than 0.02 to (B, n, 0), all else equal, so that replay may
    save n-fold generation. It does not hold where it surely loses more."""
    for rows in _alike(pair.rows, lambda row: row.arm.cell.batch):
        for a, b in itertools.permutations(rows, 2):
            n = a.arm.cell.rollouts
            if n == 1 or a.arm.cell.replay or b.arm.cell.shape[1:] != (1, n - 1):
                continue
            made = step(a, b, pair)
            holds = True if tost(made.difference, MARGIN)[1] < ALPHA else None
            holds = False if made.difference.high < -MARGIN else holds
            yield _judged(
                "replay within the margin of fresh rollouts", pair.where(a, b), holds,
                "by replay", made, {True: f"loses less than {MARGIN}",
                                    False: f"loses more than {MARGIN}"},
            )  # fmt: skip


def step(a: Row, b: Row, pair: Pair) -> Step:
    """From row a to row b of a pair, declared or not."""
    for result in pair.results:
        if result.stratum.arm_keys == _arm_keys(a, b) and _rounds(result) == _horizons(a, b):
            return _declared(result)
    decoding = a.arm.cell.eval.primary
    arms = [pair.study.stacked(row.counted, "final", "test", decoding) for row in (a, b)]
    for row, (outcomes, missing) in zip((a, b), arms, strict=True):
        if outcomes is None:
            reasons = "; ".join(dict.fromkeys(missing.values())) or "; ".join(row.notes)
            why = f"{row.arm.label} has no answers to compare ({reasons or 'no seed counts'})"
            return Step(NOTHING, why, EXPLORATORY, ())
    try:
        made = compare(arms[0].outcomes, arms[1].outcomes)  # type: ignore[arg-type]
    except Unusable as error:
        return Step(NOTHING, str(error), EXPLORATORY, ())
    return _undeclared(a, b, made, pair.study)


def _declared(result: Result) -> Step:
    why = result.withheld or result.absent
    if result.comparison is None:
        return Step(NOTHING, why, result.standing.label, ())
    return _step(result.comparison, why, result.standing.label, result.cost_ratios)


def _undeclared(a: Row, b: Row, made: Comparison, study: Study) -> Step:
    runs = {"a": a.counted, "b": b.counted}
    seeds = tuple(made.by_seed)
    devices = [
        {study.source.hardware(r.cell) or "unknown" for r in row.counted if r.cell.seed in seeds}
        for row in (a, b)
    ]
    group = group_of(runs, seeds)
    why = ""
    if devices[0] != devices[1]:
        told = " and ".join(", ".join(sorted(names)) for names in devices)
        why = f"the arms also differ in hardware ({told})"
    elif group is not None and not group[0] >= group[1]:
        why = f"replay not exercised: the median group has {group[0]:g} of {group[1]} rollouts"
    return _step(made, why, EXPLORATORY, cost_ratios(runs, seeds))


def _step(made: Comparison, why: str, standing: str, costs: dict[str, Estimate]) -> Step:
    seeds = len(made.by_seed)
    verdict = "no verdict" if why else made.verdict
    told = f"{seeds_told(seeds)}, {made.questions} questions, {verdict}; {standing}"
    ...
