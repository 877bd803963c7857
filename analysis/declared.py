"""A grid's declared contrasts, made: each in every stratum, Holm over its family, a verdict or why
there is none.

Only what was declared is compared, on the grid's primary Pass@1 alone. Leaves out the statistics
(`contrasts.py`) and how results are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from analysis.arms import pair_labels
from analysis.contrasts import ALPHA, Comparison, compare, holm
from analysis.intervals import Estimate
from analysis.matching import (
    cost_ratios,
    differences,
    differing_hardware,
    group_of,
    held_equal,
    not_exercised,
    planned,
)
from analysis.outcomes import Outcomes, Unusable
from analysis.runs import Run
from analysis.standing import Standing, standing_of
from analysis.study import Study
from analysis.tuned import Rates, rates_of
from grids.contrast import Contrast
from grids.grid import Grid
from grids.outcome import DIVERGED
from grids.strata import Stratum, strata

COMPUTED: Final = ("engine", "precision")
MATCHED: Final = {"rounds": "rounds", "prompts": "prompts", "generated": "rollouts",
                  "updates": "updates"}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A declared contrast in one stratum.

    Attributes:
        pair: model and data set, for people; `where` adds other axes that the contrast leaves free.
        comparison: None where there is none, for the reason `absent`.
        at_zero: the same with every diverged run counted as wrong throughout; None without any.
        missing: seeds of either arm that do not count, with the reason.
        withheld: why there is no verdict although there is a comparison; empty where there is one.
        differ: every setting in which the arms differ -> (a's, b's).
        held: planned quantities that are equal in both arms.
        cost_ratios: b over a, geometric mean over paired seeds.
        group: (median effective group, n + m) of the arm with replay; None without replay.
        rates: at which learning rates the verdict is, and whether a search chose each arm's own.
    """

    grid: Grid
    stratum: Stratum
    pair: str
    where: str
    standing: Standing
    comparison: Comparison | None = None
    absent: str = ""
    at_zero: Comparison | None = None
    diverged: dict[str, tuple[int, ...]] = field(default_factory=dict)
    missing: dict[str, dict[int, str]] = field(default_factory=dict)
    withheld: str = ""
    differ: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    cost_ratios: dict[str, Estimate] = field(default_factory=dict)
    group: tuple[float, int] | None = None
    rates: Rates = Rates("")

    @property
    def contrast(self) -> Contrast:
        """What was declared."""
        return self.stratum.contrast

    @property
    def family(self) -> str:
        """Whose p-values are corrected together."""
        return self.contrast.family or self.contrast.name

    @property
    def exercised(self) -> bool:
        """False where replay was declared and at least half of the rounds lacked it in part."""
        return not not_exercised(self.group)

    @property
    def verdict(self) -> str:
        """One of better, worse, equivalent, inconclusive; or `none`, for the reason told."""
        if self.comparison is None or self.withheld:
            return "none"
        return self.comparison.verdict

    @property
    def claim_holds(self) -> bool | None:
        """Whether the declared claim is borne out; None where there is no verdict."""
        if self.comparison is None or self.verdict == "none":
            return None
        if self.contrast.claim == "non-inferior":
            return len(self.comparison.by_seed) > 1 and self.comparison.non_inferior_p < ALPHA
        wanted = "better" if self.contrast.claim == "superior" else "equivalent"
        return self.verdict == wanted

    @property
    def told(self) -> str:
        """The verdict with what limits it: `better at lr 1e-06`."""
        if self.verdict == "none":
            return f"no verdict: {self.withheld or self.absent}"
        return f"{self.verdict}{self.rates.told}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know beside the numbers."""
        return tuple(_notes(self))


def results(grid: Grid, study: Study) -> tuple[Result, ...]:
    """Every declared contrast of a grid in every stratum, corrected over its family."""
    labels = pair_labels(grid.cells())
    registrations, looks = study.source.registrations(), study.source.looks()
    made = [
        _result(
            grid, stratum, study, labels,
            standing_of(grid, stratum, registrations, looks, study.evaluation),
        )
        for contrast in grid.contrasts
        for stratum in strata(grid, contrast)
    ]  # fmt: skip
    return tuple(_corrected(made))


def note_looks(made: Iterable[Result], study: Study) -> bool:
    """Count a look at each contrast whose outcome is about to be shown, if the data is new to it.

    Answers False where the study cannot be written, so that the look went uncounted.
    """
    known = {(x.get("contrast"), x.get("grid"), x.get("data")) for x in study.source.looks()}
    new: dict[tuple[str, str, str], dict[str, str]] = {}
    by_contrast: dict[tuple[str, str], list[Result]] = {}
    for result in made:
        if result.comparison is not None:
            names = (result.contrast.registration, result.grid.name)
            by_contrast.setdefault(names, []).append(result)
    for (registration, grid), shown in by_contrast.items():
        data = ";".join(f"{r.where} {sorted(r.comparison.by_seed)}" for r in shown if r.comparison)
        if (registration, grid, data) not in known:
            look = {"contrast": registration, "grid": grid, "data": data}
            new[registration, grid, data] = look
    return not new or study.source.note_looks(list(new.values()))


def _result(
    grid: Grid, stratum: Stratum, study: Study, labels: Mapping[tuple[str, str], str],
    standing: Standing,
) -> Result:  # fmt: skip
    a, b = stratum.a[0], stratum.b[0]
    pair = labels[a.model, a.dataset]
    extra = [f"{k}={v}" for k, v in stratum.settings.items() if k not in ("model", "dataset")]
    result = Result(
        grid, stratum, pair, " ".join([pair, *extra]), standing,
        differ=differences(a, b), held=held_equal(a, b),
        rates=rates_of(grid, stratum, study.source.searches()),
    )  # fmt: skip
    if stratum.identical:
        return replace(result, absent="both arms are the same cells: they train the same policy")
    runs = {"a": [study.run(c) for c in stratum.a], "b": [study.run(c) for c in stratum.b]}
    result = _compared(result, runs, study)
    if result.comparison is None:
        return result
    paired = tuple(result.comparison.by_seed)
    result = replace(result, cost_ratios=cost_ratios(runs, paired), group=group_of(runs, paired))
    return replace(result, withheld=_withheld(result, runs, study))


def _compared(result: Result, runs: Mapping[str, Sequence[Run]], study: Study) -> Result:
    """The comparison, and the same with diverged runs at 0."""
    decoding, margin = result.stratum.a[0].eval.primary, result.contrast.margin
    stacks = {side: study.stacked(runs[side], "final", "test", decoding) for side in runs}
    broke = {s: tuple(r.cell.seed for r in runs[s] if r.state == DIVERGED) for s in runs}
    missing = {side: stacks[side].missing for side in runs if stacks[side].missing}
    result = replace(result, missing=missing, diverged={s: x for s, x in broke.items() if x})
    a, b = (stacks[side].outcomes for side in ("a", "b"))
    if a is None or b is None:
        side = "a" if a is None else "b"
        return replace(result, absent=f"arm {side}: {_why(missing[side], runs[side])}")
    try:
        result = replace(result, comparison=compare(a, b, margin=margin))
        if result.diverged:
            zeroed = compare(_zeroed(a, broke["a"]), _zeroed(b, broke["b"]), margin=margin)
            result = replace(result, at_zero=zeroed)
    except Unusable as error:
        return replace(result, comparison=None, absent=str(error))
    return result


def _why(missing: Mapping[int, str], runs: Sequence[Run]) -> str:
    reasons = dict.fromkeys(missing.values())
    told = "; ".join(list(reasons)[:2])
    return f"none of its {len(runs)} seeds has outcomes ({told})"


def _zeroed(arm: Outcomes, broke: tuple[int, ...]) -> Outcomes:
    """The arm with every answer of its diverged seeds wrong; one without answers is added."""
    seeds = (*arm.seeds, *(seed for seed in broke if seed not in arm.seeds))
    shape = (len(seeds), *arm.correct_S_Q_K.shape[1:])
    zeroed = np.zeros(shape, np.float32)
    zeroed[: len(arm.seeds)] = arm.correct_S_Q_K
    zeroed[[i for i, seed in enumerate(seeds) if seed in broke]] = 0.0
    return Outcomes(seeds, arm.questions, zeroed)


def _corrected(made: Sequence[Result]) -> list[Result]:
    """Holm over each family; a member without a comparison keeps its place in it."""
    corrected = list(made)
    for family in dict.fromkeys(result.family for result in made):
        where = [i for i, r in enumerate(made) if r.family == family and not r.stratum.identical]
        plain = [(c.p if (c := made[i].comparison) else math.nan) for i in where]
        zeroed = [(z.p if (z := made[i].at_zero) else p) for i, p in zip(where, plain, strict=True)]
        for i, p, p_zero in zip(where, holm(plain), holm(zeroed), strict=True):
            comparison, at_zero = made[i].comparison, made[i].at_zero
            corrected[i] = replace(
                made[i],
                comparison=comparison.in_family(p, len(where)) if comparison else None,
                at_zero=at_zero.in_family(p_zero, len(where)) if at_zero else None,
            )
    return corrected


def _withheld(result: Result, runs: Mapping[str, Sequence[Run]], study: Study) -> str:
    """Why a difference, though computed, gets no verdict."""
    named = {*result.contrast.a, *result.contrast.b}
    if also := [name for name in COMPUTED if name in result.differ and name not in named]:
        told = ", ".join(f"{n} ({result.differ[n][0]} and {result.differ[n][1]})" for n in also)
        return f"the arms also differ in {told}"
    seeds = result.comparison.by_seed if result.comparison else {}
    if hardware := differing_hardware(runs, seeds, study.source.hardware):
        return hardware
    quantity = MATCHED[result.contrast.match]
    if quantity not in result.held:
        a, b = (planned(arm[0])[quantity] for arm in (result.stratum.a, result.stratum.b))
        return f"match: {result.contrast.match} was declared, and {quantity} are {a:,} and {b:,}"
    return not_exercised(result.group)


def _notes(result: Result) -> Iterable[str]:
    comparison, declared = result.comparison, result.standing.declared_seeds
    if comparison is not None and declared and len(comparison.by_seed) < declared:
        yield f"interim: {len(comparison.by_seed)} of {declared} declared seeds"
    for side, seeds in result.missing.items():
        for seed, why in seeds.items():
            yield f"arm {side} s{seed} does not count: {why}"
    for side, broke in result.diverged.items():
        told = ", ".join(f"s{seed}" for seed in broke)
        yield f"arm {side} {told} diverged, counted at its last evaluation"
    if comparison is not None and comparison.unscored:
        yield f"{comparison.unscored} questions left out: an answer could not be scored"
    if not result.exercised:
        yield "not exercised"
    yield from result.rates.notes
