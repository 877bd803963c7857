"""Signatures of two arms: batch scaling, eightfold rollouts, replay for fresh rollouts.

A step that a contrast of the grid declares is read from its result, with its standing. Any other is
compared all the same, on the primary test Pass@1, and says "exploratory". Leaves out signatures of
one arm (`signatures.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from analysis.contrasts import ALPHA, MARGIN, Comparison, compare, tost
from analysis.declared import Result
from analysis.finding import Finding, Pair, below, seeds_told, untold
from analysis.intervals import NOTHING, Estimate
from analysis.matching import cost_ratios, differing_hardware, group_of, not_exercised
from analysis.outcomes import Unusable
from analysis.study import Study
from analysis.tables import Row

EXPLORATORY: Final = "exploratory: no contrast declares it"
COSTS: Final = ("generated_tokens", "trained_tokens", "seconds")


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
        evidence = tuple(
            f"{x.arm.label} to {y.arm.label}: {line}"
            for (x, y), made in zip(itertools.pairwise(ordered), steps, strict=True)
            for line in made.evidence
        )
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
    save n-fold generation: the lower half of TOST at 5%. It does not hold where the whole 95%
    interval says that it loses more."""
    for rows in _alike(pair.rows, lambda row: row.arm.cell.batch):
        for a, b in itertools.permutations(rows, 2):
            n = a.arm.cell.rollouts
            if n == 1 or a.arm.cell.replay or b.arm.cell.shape[1:] != (1, n - 1):
                continue
            made = step(a, b, pair)
            holds = True if tost(made.difference, MARGIN)[1] < ALPHA else None
            holds = False if made.difference.high < -MARGIN else holds
            yield _judged(
                "replay within the margin of fresh rollouts", pair.where(a, b),
                "by replay in place of fresh rollouts", made, holds,
                (f"loses less than {MARGIN}, so that replay may save the generation",
                 f"loses more than {MARGIN}"),
            )  # fmt: skip


def step(a: Row, b: Row, pair: Pair) -> Step:
    """From row a to row b of a pair, declared or not."""
    for result in pair.results:
        if _is_of(result, a, b):
            return _declared(result)
    decoding = a.arm.cell.eval.primary
    arms = []
    for row in (a, b):
        stacked = pair.study.stacked(row.counted, "final", "test", decoding)
        if stacked.outcomes is None:
            reasons = "; ".join(dict.fromkeys(stacked.missing.values())) or "; ".join(row.notes)
            why = f"{row.arm.label} has no answers to compare ({reasons})"
            return Step(NOTHING, why, EXPLORATORY, ())
        arms.append(stacked.outcomes)
    try:
        return _undeclared(a, b, compare(*arms), pair.study)
    except Unusable as error:
        return Step(NOTHING, str(error), EXPLORATORY, ())


def _declared(result: Result) -> Step:
    why = result.withheld or result.absent
    if result.comparison is None:
        return Step(NOTHING, why, result.standing.label, ())
    return _step(result.comparison, why, result.standing.label, result.cost_ratios)


def _undeclared(a: Row, b: Row, made: Comparison, study: Study) -> Step:
    runs = {"a": a.counted, "b": b.counted}
    seeds = tuple(made.by_seed)
    why = differing_hardware(runs, seeds, study.source.hardware)
    why = why or not_exercised(group_of(runs, seeds))
    return _step(made, why, EXPLORATORY, cost_ratios(runs, seeds))


def _step(made: Comparison, why: str, standing: str, costs: Mapping[str, Estimate]) -> Step:
    verdict = "no verdict" if why else made.verdict
    told = f"{seeds_told(len(made.by_seed))}, {made.questions} questions, {verdict}; {standing}"
    by_seed = ", ".join(f"s{seed} {value:+.3f}" for seed, value in made.by_seed.items())
    evidence = [f"{made.difference.format(sign=True)} by seed: {by_seed}"]
    evidence += [f"costs, b over a: {ratios}"] if (ratios := costs_told(costs)) else []
    return Step(made.difference, why, told, tuple(evidence))


def costs_told(ratios: Mapping[str, Estimate]) -> str:
    """`generated_tokens × 0.13 [0.12, 0.14], ...`; empty where no cost is known of both arms."""
    return ", ".join(f"{name} × {ratios[name].format(2)}" for name in COSTS if name in ratios)


def _little(name: str, where: str, of: str, made: Step) -> Finding:
    """A finding that a step gains less than the margin."""
    told = (f"below {MARGIN}, so that effort may go elsewhere", f"above {MARGIN}")
    return _judged(name, where, of, made, below(made.difference, MARGIN), told)


def _judged(
    name: str, where: str, of: str, made: Step, holds: bool | None, told: tuple[str, str]
) -> Finding:
    """A finding of a step; without a verdict it cannot be told. `told` are yes and no."""
    holds = None if made.why else holds
    verdict = (made.why or untold(made.difference)) if holds is None else told[not holds]
    if made.difference.n == 0:
        return Finding(name, where, None, f"{verdict} ({made.told})", made.evidence)
    text = f"{made.difference.format(sign=True)} {of}: {verdict} ({made.told})"
    return Finding(name, where, holds, text, made.evidence)


def _alike(rows: Iterable[Row], of: Callable[[Row], object]) -> Iterable[list[Row]]:
    """Rows that are equal in all but batch, rollouts and replay, and in what `of` gives."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.arm.cell.advantage, row.arm.extra, of(row)), []).append(row)
    return groups.values()


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    """The same in another unit."""
    e = estimate
    return Estimate(factor * e.value, factor * e.se, factor * e.low, factor * e.high, e.df, e.n)


def _is_of(result: Result, a: Row, b: Row) -> bool:
    """The result compares these very arms, in this direction and at their horizon."""
    arms = ((result.stratum.a[0], a.arm.cell), (result.stratum.b[0], b.arm.cell))
    return all(x.arm_key == y.arm_key and x.rounds == y.rounds for x, y in arms)
