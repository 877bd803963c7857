"""The paper's failure signatures and first-experiment rules (arXiv 2601.22532), computed.

A signature is a function of one pair's arms that gives `Finding`s; `SIGNATURES` has them by name.
Each rule is on a 95% interval, never on a point: it holds where the whole interval says so, does
not hold where the whole interval says the opposite, and else cannot be told. One seed tells of a
run, so that it never decides anything of an arm. Diverged seeds count at their last evaluation.
Intervals are not corrected for how many findings there are.

Here are those of one arm; leaves out those of two (`steps.py`), declared contrasts and which
choices matter (`findings.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from analysis import steps
from analysis.contrasts import MARGIN
from analysis.estimates import mean
from analysis.finding import Finding, Pair, above, below, either, every, seeds_told
from analysis.intervals import NOTHING, Estimate, Matrix, Vector, mean_t, two_way_variances, with_t
from analysis.outcomes import reordering
from analysis.runs import Run
from analysis.study import Study
from analysis.tables import Row
from grids import outcome

GAIN: Final = 0.05  # the paper's rule 1: a smaller gain is a reason to doubt the base model
SPLITS: Final = ("train", "test")
FELL: Final = 0.1  # of where it began: what is left of an entropy or a spread that is gone
LEAST: Final = 1e-3  # of where it began: what is less counts as this


def no_improvement(pair: Pair) -> Iterator[Finding]:
    """Rule 1: test gain below 0.05. On the minimalist arm it speaks of the base model."""
    for row in pair.arms:
        gain = row.estimates.get("gain_test", NOTHING)
        holds = below(gain, GAIN)
        told = {True: f"below {GAIN}", False: f"above {GAIN}", None: ""}[holds]
        if holds and row.arm.cell.shape[1:] == (1, 0):
            told += ", on the minimalist arm a reason to doubt the base model"
        yield _finding("no improvement", pair, row, holds, _gain(row), told)


def overfitting(pair: Pair) -> Iterator[Finding]:
    """Train gain above 0.05, test gain below 0.02, and train gain above test gain."""
    for row in pair.arms:
        train, test = (row.estimates.get(f"gain_{split}", NOTHING) for split in ("train", "test"))
        over = _gap(row, pair.study)
        holds = every([above(train, GAIN), below(test, MARGIN), above(over, 0.0)])
        text = f"{_gain(row)}; train gain {train.format(sign=True)}, {over.format(sign=True)} more"
        told = "" if row.arm.cell.eval.train_questions else "train questions were not scored"
        yield _finding("train up, test flat", pair, row, holds, text, told)


def collapse(pair: Pair) -> Iterator[Finding]:
    """A seed diverged, or the final policy is below its base by more than 0.05, or token entropy or
    the rewards' standard deviation ended below a tenth of where it began.

    The last two are no collapse where test Pass@1 surely rose: a policy that is right nearly always
    and sure of it has neither. What a journal does not tell is said, and decides nothing.
    """
    for row in pair.arms:
        gain = row.estimates.get("gain_test", NOTHING)
        left = {"entropy": _left(row, outcome.ENTROPY), "reward sd": _left(row, outcome.REWARD_SD)}
        broke = [
            f"s{run.cell.seed} diverged at round {run.diverged_round}"
            for run in row.in_state(outcome.DIVERGED)
        ]
        signs = [bool(broke), below(gain, -GAIN)]
        signs += [False if gain.low > 0 else below(x, FELL) for x in left.values() if x.n]
        ended = [run for run in row.runs if run.counted]
        text = f"{_gain(row)}; {', '.join(broke) or 'no seed diverged'}; last over first tenth of "
        text += f"rounds {', '.join(f'{name} {x}' for name, x in left.items())}"
        yield _finding("collapse", pair, row, either(signs) if len(ended) > 1 else None, text)


def by_format(pair: Pair) -> Iterator[Finding]:
    """What the gain has by more answers that parse is above 0.02, the rest of it below.

    Pass@1 is P(parsed) × P(correct given parsed), so that a seed's gain is exactly the sum of each
    factor's change times the other's mean of base and final (Kitagawa 1955, J. Am. Stat. Assoc.
    50:1168). It holds for these test questions, seeds alone being random.
    """
    for row in pair.arms:
        splits = {run.cell.seed: _split(run) for run in row.counted}
        form = mean(split.form for split in splits.values())
        content = mean(split.content for split in splits.values())
        holds = every([above(form, MARGIN), below(content, MARGIN)])
        text = (
            f"{_gain(row)}; {form.format(sign=True)} of it by P(parsed), "
            f"{content.format(sign=True)} by P(correct given parsed), on these questions"
        )
        if all(split.parsed == (1.0, 1.0) for split in splits.values()):
            text = f"all answers of base and final parsed, nothing to gain, {seeds_told(form.n)}"
        unknown = ", ".join(f"s{seed}" for seed, x in splits.items() if math.isnan(x.content))
        told = f"P(correct given parsed) is not known of {unknown}" if unknown else ""
        lines = tuple(f"s{seed}: {split}" for seed, split in splits.items())
        yield _finding(
            "gain by format alone", pair, row, None if unknown else holds, text, told, lines
        )


Signature = Callable[[Pair], Iterable[Finding]]
SIGNATURES: Final[dict[str, Signature]] = {
    "no improvement": no_improvement,
    "train up, test flat": overfitting,
    "collapse": collapse,
    "gain by format alone": by_format,
    "ceiling of batch scaling": steps.ceiling,
    "diminishing returns per eightfold rollouts": steps.eightfold,
    "replay within the margin of fresh rollouts": steps.replay,
}


def signatures(pair: Pair) -> tuple[Finding, ...]:
    """Every signature of a pair."""
    return tuple(finding for signature in SIGNATURES.values() for finding in signature(pair))


def gap(train_S_Q: Matrix, test_S_Q: Matrix) -> Estimate:
    """Mean of train minus mean of test, values of equal seeds on two sets of questions.

    Seeds and questions are random, as in `intervals.two_way`: V_seed is of the seeds' own
    differences, what the two sets of questions bring adds up.
    """
    diff_S = train_S_Q.mean(axis=1) - test_S_Q.mean(axis=1)
    over_seeds = mean_t(diff_S)
    if len(diff_S) < 2:
        return over_seeds
    parts = [two_way_variances(values_S_Q) for values_S_Q in (train_S_Q, test_S_Q)]
    by_seed, by_question = over_seeds.se**2, sum(part.question for part in parts)
    total = max(by_seed + by_question - sum(part.cell for part in parts), by_seed, by_question)
    return with_t(over_seeds.value, math.sqrt(total), over_seeds.df, over_seeds.n)


class Split(NamedTuple):
    """One run's gain by format and by content, from P(parsed) and P(correct given parsed) of base
    and final; NaN where nothing parsed, so that the second is not known."""

    form: float
    content: float
    parsed: tuple[float, float]
    right: tuple[float, float]

    def __str__(self) -> str:
        (p, q), (c, d) = self.parsed, self.right
        return f"P(parsed) {p:.3f} to {q:.3f}, P(correct given parsed) {c:.3f} to {d:.3f}"


def split(passed: tuple[float, float], parsed: tuple[float, float]) -> Split:
    """The split of a gain, from Pass@1 and P(parsed) of (base, final)."""
    right = [x / p if p > 0 and x <= p else math.nan for x, p in zip(passed, parsed, strict=True)]
    form = (parsed[1] - parsed[0]) * (right[0] + right[1]) / 2
    content = (right[1] - right[0]) * (parsed[0] + parsed[1]) / 2
    return Split(form, content, parsed, (right[0], right[1]))


def _split(run: Run) -> Split:
    sampled = run.cell.eval.primary == "sampled"
    metric = outcome.TEST_PARSED + (outcome.SAMPLED_SUFFIX if sampled else "")
    return split(
        (run.primary("base", "test"), run.primary("final", "test")),
        (run.read("base", metric), run.read("final", metric)),
    )


def _gap(row: Row, study: Study) -> Estimate:
    """Train gain minus test gain of an arm."""
    if not study.source.has_answers:
        gains = (
            [r.primary("final", x) - r.primary("base", x) for x in SPLITS] for r in row.counted
        )
        return mean(train - test for train, test in gains)
    found = [_gains(row, split, study) for split in SPLITS]
    seeds = [seed for seed in found[0] if seed in found[1]]
    if not seeds:
        return NOTHING
    train_S_Q, test_S_Q = (np.stack([gains[seed] for seed in seeds]) for gains in found)
    scored = [np.isfinite(gains_S_Q).all(axis=0) for gains_S_Q in (train_S_Q, test_S_Q)]
    if min(mask.sum() for mask in scored) < 2:
        return NOTHING
    return gap(train_S_Q[:, scored[0]], test_S_Q[:, scored[1]])


def _gains(row: Row, split: str, study: Study) -> dict[int, Vector]:
    """Gain in each question by seed, of the seeds that have both answers."""
    decoding = row.arm.cell.eval.primary
    base, final = (
        study.stacked(row.counted, phase, split, decoding).outcomes for phase in ("base", "final")
    )
    if base is None or final is None:
        return {}
    order = reordering(final.questions, base.questions, ("final", "base"))
    base_S_Q, final_S_Q = base.means_S_Q[:, order], final.means_S_Q
    return {
        seed: final_S_Q[i] - base_S_Q[base.seeds.index(seed)]
        for i, seed in enumerate(final.seeds)
        if seed in base.seeds
    }


def _left(row: Row, metric: str) -> Estimate:
    """Last over first tenth of rounds: geometric mean over the seeds that tell both."""
    told = [(r.training.first.get(metric, 0.0), r.training.last.get(metric, math.nan))
            for r in row.counted]  # fmt: skip
    logs = mean(math.log(max(last / first, LEAST)) for first, last in told if first > 0)
    value, low, high = (math.exp(x) for x in (logs.value, logs.low, logs.high))
    return Estimate(value, value * logs.se, low, high, logs.df, logs.n)


def _gain(row: Row) -> str:
    gain, base = (row.estimates.get(name, NOTHING) for name in ("gain_test", "base_test"))
    return f"test gain {gain.format(sign=True)} over the base's {base}, {seeds_told(gain.n)}"


def _finding(
    name: str, pair: Pair, row: Row, holds: bool | None, text: str, told: str = "",
    evidence: tuple[str, ...] = (),
) -> Finding:  # fmt: skip
    """A finding of one arm; `told` is what it comes to, and by default why it cannot be told."""
    if not row.counted and holds is None:
        return Finding(name, pair.where(row), None, f"no seed counts ({'; '.join(row.notes)})")
    reasons = [told] if told else []
    if holds is None and len(row.counted) == 1:
        reasons.append("one seed tells of a run alone")
    elif holds is None and not told:
        reasons.append("the interval leaves it open")
    return Finding(name, pair.where(row), holds, ": ".join([text, *reasons]),
                   evidence or _by_seed(row))  # fmt: skip


def _by_seed(row: Row) -> tuple[str, ...]:
    return tuple(
        f"s{run.cell.seed}: test Pass@1 {run.primary('base', 'test'):.3f} to "
        f"{run.primary('final', 'test'):.3f}"
        for run in row.counted
    )
