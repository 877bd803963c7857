"""An arm's numbers, each with its interval: Pass@1 of base and final policy, gain, pass@k, costs.

Pass@1 and gains have two-way clustered intervals over seeds and questions; the base is one
checkpoint, and its own sampling error is in every gain through the questions. What a journal tells
as one number a run has a t interval over seeds alone. Where a source holds no answers to single
questions (MLflow, or a shorter horizon of a run that went on), Pass@1 is such a number too. Leaves
out which runs belong to an arm (`tables.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np

from analysis.intervals import NOTHING, Estimate, Matrix, mean_t, over_questions, two_way, wilson
from analysis.outcomes import Outcomes
from analysis.passk import pass_at_k
from analysis.runs import Run
from analysis.study import Study
from grids import outcome

MEASURES = ("base_test", "final_test", "gain_test", "base_train", "final_train", "gain_train")
# Of the final policy's evaluation and of training: one number a run.
TOLD = {
    "parsed": outcome.TEST_PARSED,
    "truncated": outcome.TEST_TRUNCATED,
    "tokens": outcome.TEST_TOKENS,
}
COSTS = ("generated_tokens", "trained_tokens", "updates", "seconds")


@dataclass(frozen=True)
class ArmEstimates:
    """An arm in numbers.

    Attributes:
        numbers: by `MEASURES`, the names of `TOLD` and `COSTS`, and `pass_at_K` of sampled answers.
        seeds: those that count in them.
        missing: counted runs whose answers cannot be used -> why; they are in no number.
        unscored: questions left out because some seed's answer could not be scored.
        seed_sd: standard deviation of final test Pass@1 over seeds, its sampling noise included.
    """

    numbers: dict[str, Estimate]
    seeds: tuple[int, ...] = ()
    missing: dict[int, str] = field(default_factory=dict)
    unscored: int = 0
    seed_sd: float = math.nan
    over_seeds: bool = False  # intervals are over seeds alone, on these very questions


def arm_estimates(runs: Sequence[Run], study: Study) -> ArmEstimates:
    """The numbers of one arm from its runs, one a seed. Only counted runs are in them."""
    counted = [run for run in runs if run.counted]
    usable, missing, other_round = _usable(counted, study)
    if not study.source.has_answers or (counted and len(other_round) == len(counted)):
        return _of_metrics(runs, counted)
    numbers: dict[str, Estimate] = {}
    unscored = 0
    decoding = runs[0].cell.eval.primary
    for split in ("test", "train"):
        base = study.stacked(usable, "base", split, decoding).outcomes
        final = study.stacked(usable, "final", split, decoding).outcomes
        numbers |= _of_split(split, base, final)
        unscored += _unscored(base, final) if split == "test" else 0
        if base is None:
            numbers[f"base_{split}"] = _shared(run.primary("base", split) for run in runs)
    numbers |= _of_samples(usable, study) | _told(usable)
    finals = [run.primary("final", "test") for run in usable]
    return ArmEstimates(
        {name: numbers.get(name, NOTHING) for name in (*MEASURES, *numbers)},
        tuple(run.cell.seed for run in usable), missing, unscored, _sd(finals),
    )  # fmt: skip


class _Usable(NamedTuple):
    runs: list[Run]
    missing: dict[int, str]
    other_round: set[int]


def _usable(counted: Sequence[Run], study: Study) -> _Usable:
    """Runs with usable test answers in the primary decoding, and why the others have none."""
    missing: dict[int, str] = {}
    other_round: set[int] = set()
    for phase in ("base", "final") if counted else ():
        stacked = study.stacked(counted, phase, "test", counted[0].cell.eval.primary)
        missing |= stacked.missing
        other_round |= stacked.other_round
    runs = [run for run in counted if run.cell.seed not in missing]
    return _Usable(runs, missing, other_round)


def _of_split(split: str, base: Outcomes | None, final: Outcomes | None) -> dict[str, Estimate]:
    """Base, final and gain on one set of questions."""
    if base is None or final is None:
        return {}
    base_S_Q, final_S_Q = base.means_S_Q, final.means_S_Q
    return {
        f"base_{split}": _checkpoint(base),
        f"final_{split}": _two_way(final_S_Q),
        f"gain_{split}": _two_way(final_S_Q - base_S_Q),
    }


def _two_way(values_S_Q: Matrix) -> Estimate:
    """Over the questions that were scored in every seed."""
    scored_Q = np.isfinite(values_S_Q).all(axis=0)
    return two_way(values_S_Q[:, scored_Q]) if scored_Q.sum() > 1 else NOTHING


def _checkpoint(base: Outcomes) -> Estimate:
    """The base policy, which all seeds share: Wilson's interval, or clustered by question."""
    first_Q = base.means_S_Q[0]
    values_Q = first_Q[np.isfinite(first_Q)]
    if len(values_Q) < 2:
        return NOTHING
    if base.samples == 1:
        return wilson(int(values_Q.sum()), len(values_Q))
    return over_questions(values_Q)


def _unscored(base: Outcomes | None, final: Outcomes | None) -> int:
    if base is None or final is None:
        return 0
    return int((~np.isfinite(final.means_S_Q - base.means_S_Q).all(axis=0)).sum())


def _of_samples(runs: Sequence[Run], study: Study) -> dict[str, Estimate]:
    """Unbiased pass@k of the final policy's sampled answers, for k of 1, 2, 4 ... up to K."""
    if not runs or not runs[0].cell.eval.samples:
        return {}
    outcomes = study.stacked(runs, "final", "test", "sampled").outcomes
    if outcomes is None:
        return {}
    right_S_Q, scored_S_Q = outcomes.right_and_scored()
    ks = [2**i for i in range(outcomes.samples.bit_length())]
    return {f"pass_at_{k}": _two_way(pass_at_k(scored_S_Q, right_S_Q, k)) for k in ks}


def _told(runs: Sequence[Run]) -> dict[str, Estimate]:
    """What each run tells as one number."""
    told: dict[str, Callable[[Run], float]] = {
        name: lambda run, metric=metric: run.read("final", metric)  # type: ignore[misc]
        for name, metric in TOLD.items()
    }
    made = {name: mean(map(read, runs)) for name, read in told.items()}
    costs = [asdict(run.training.costs) for run in runs]
    return made | {name: mean(cost[name] for cost in costs) for name in COSTS}


def _of_metrics(runs: Sequence[Run], counted: Sequence[Run]) -> ArmEstimates:
    """Without answers to single questions: means over seeds of what each run tells."""
    numbers: dict[str, Estimate] = {}
    for split in ("test", "train"):
        final = [run.primary("final", split) for run in counted]
        gain = [run.primary("final", split) - run.primary("base", split) for run in counted]
        numbers[f"base_{split}"] = _shared(run.primary("base", split) for run in runs)
        numbers |= {f"final_{split}": mean(final), f"gain_{split}": mean(gain)}
    finals = [run.primary("final", "test") for run in counted]
    seeds = tuple(run.cell.seed for run in counted)
    return ArmEstimates(numbers | _told(counted), seeds, seed_sd=_sd(finals), over_seeds=True)


def mean(values: Iterable[float]) -> Estimate:
    """Over the seeds that have the number; how many they are is its n."""
    known = [value for value in values if not math.isnan(value)]
    return mean_t(known) if known else NOTHING


def _shared(values: Iterable[float]) -> Estimate:
    """One evaluation that the seeds share: its spread over them is no interval."""
    known = [value for value in values if not math.isnan(value)]
    if len(set(known)) != 1:
        return mean(known)
    return Estimate(known[0], math.nan, math.nan, math.nan, math.nan, len(known))


def _sd(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
