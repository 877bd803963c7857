"""What each declared contrast of a grid could find, and the seeds that its margin needs.

One `Design` a contrast and kind of pair (equal seeds, questions and samples). Its noise is that of
the study's own runs where both arms of some pair have at least two seeds with outcomes, else
`power.ASSUMED`. Of a large study about `MOST_RUNS` runs are read, spread over the pairs: more would
tell the noise little better, and a plan should not take long. Runs that diverged are no noise and
are left out; so are outcomes that cannot be read, which tables name. Leaves out the formulas
(`power.py`) and printing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import power
from analysis.power import Array, Observed
from grids.cell import Cell
from grids.contrast import Contrast
from grids.grid import Grid
from grids.outcome import FINISHED
from grids.paths import Store, read_mark
from grids.strata import Stratum, strata

if TYPE_CHECKING:  # pandas and pyarrow are not loaded to plan what has no run yet
    from analysis.outcomes import Answers

MOST_RUNS = 300  # of one design that its noise is taken from, and a few more


@dataclass(frozen=True)
class Design:
    """A contrast on those of its pairs that have equally many seeds, questions and samples.

    Attributes:
        pairs: comparisons made; 0 where there is none, with the reason in `note`.
        questions: of the test set; None where its size is unknown, and then nothing is computed.
        samples: answers a question of the grid's primary Pass@1, K.
        smallest_effect: difference found with 80% power; None for one seed.
        seeds_needed: to show the claim at its margin with 80% power; None where 1000 do not.
        family: comparisons whose p-values Holm corrects together.
        seeds_needed_in_family: the same at 0.05 / family, Holm's worst case; a test of equivalence
            or non-inferiority is not corrected.
        floor: the margin that no number of seeds gets below, from the noise between questions.
        noise: variances by name, see `power.Noise`.
        runs: that the noise comes from, about `MOST_RUNS` of them at most; 0: it is assumed.
        sd_range: factors within which `runs` know the SD between seeds, at 95%.
    """

    study: str
    grid: str
    contrast: str
    claim: str
    margin: float
    pairs: int
    seeds: int
    questions: int | None = None
    samples: int = 1
    smallest_effect: float | None = None
    seeds_needed: int | None = None
    family: int = 0
    seeds_needed_in_family: int | None = None
    floor: float | None = None
    noise: dict[str, float] | None = None
    runs: int = 0
    sd_range: tuple[float, float] | None = None
    note: str = ""

    def row(self) -> dict[str, Any]:
        """For printing and for programs, with what all designs share."""
        shared = {"power": power.POWER, "alpha": power.ALPHA, "most_seeds": power.MOST_SEEDS}
        return asdict(self) | shared | {"target": "questions of this kind"}


@dataclass(frozen=True)
class _Kind:
    """What the pairs of one design share."""

    seeds: int
    questions: int | None
    samples: int


def designs(grids: Iterable[Grid], store: Store) -> list[Design]:
    """Every declared contrast of the grids, in the order of their declarations."""
    reader = Reader(store)
    return [design for grid in grids for design in _designs(grid, reader)]


def _designs(grid: Grid, reader: Reader) -> list[Design]:
    where = {contrast.name: strata(grid, contrast) for contrast in grid.contrasts}
    families: dict[str, int] = defaultdict(int)
    for contrast in grid.contrasts:
        families[_family(contrast)] += sum(not s.identical for s in where[contrast.name])
    made: list[Design] = []
    for contrast in grid.contrasts:
        kinds: dict[_Kind, list[Stratum]] = defaultdict(list)
        for stratum in where[contrast.name]:
            if not stratum.identical:
                kinds[_kind(stratum)].append(stratum)
        size = families[_family(contrast)]
        made += [_design(grid, kind, same, size, reader) for kind, same in kinds.items()]
        if not kinds:
            made.append(_nothing(grid, contrast, bool(where[contrast.name])))
    return made


def _family(contrast: Contrast) -> str:
    """Equal for contrasts that are corrected together; one without a family is alone."""
    return contrast.family or contrast.name


def _kind(stratum: Stratum) -> _Kind:
    cell = stratum.a[0]
    sampled = cell.eval.primary == "sampled"
    return _Kind(len(stratum.a), _questions(cell), cell.eval.samples if sampled else 1)


def _questions(cell: Cell) -> int | None:
    """Of the test set as it is evaluated."""
    asked, rows = cell.eval.test_questions, cell.dataset_spec.test_rows
    return min(asked, rows) if asked and rows else asked or rows


def _nothing(grid: Grid, contrast: Contrast, identical: bool) -> Design:
    note = "both arms train the same policies" if identical else "no pair of cells has both arms"
    return Design(**_names(grid, contrast), pairs=0, seeds=len(grid.seeds), note=note)


def _names(grid: Grid, contrast: Contrast) -> dict[str, Any]:
    names = {"study": grid.study, "grid": grid.name, "contrast": contrast.name}
    return names | {"claim": contrast.claim, "margin": contrast.margin}


def _design(
    grid: Grid, kind: _Kind, same: Sequence[Stratum], family: int, reader: Reader
) -> Design:
    contrast = same[0].contrast
    told = _names(grid, contrast) | asdict(kind) | {"pairs": len(same), "family": family}
    if kind.questions is None:
        return Design(**told, note="the size of the test set is unknown: set eval.test_questions")
    observed, runs = observe(same, grid.study, reader)
    noise = observed.noise if observed else power.ASSUMED
    size = (noise, contrast.margin, kind.questions, kind.samples, contrast.claim)
    corrected = power.ALPHA / family if contrast.claim == "superior" else power.ALPHA
    found = power.smallest_effect(noise, kind.seeds, kind.questions, kind.samples)
    return Design(
        **told,
        smallest_effect=None if math.isnan(found) else found,
        seeds_needed=power.seeds_needed(*size),
        seeds_needed_in_family=power.seeds_needed(*size, alpha=corrected),
        floor=power.floor(noise, kind.questions, contrast.claim),
        noise=asdict(noise),
        runs=runs,
        sd_range=power.sd_range(observed.df) if observed else None,
    )


# ---- noise of the study's own runs


def observe(same: Sequence[Stratum], study: str, reader: Reader) -> tuple[Observed | None, int]:
    """Noise over the pairs with at least two seeds of outcomes in both arms, and of how many runs.

    None and 0 where there is no such pair, or where no two runs answered differently: that says
    nothing of runs which will.
    """
    read: list[tuple[Array, Array]] = []
    most = max(2, MOST_RUNS // (2 * len(same)))  # seeds of a pair
    for stratum in _spread(same):
        if sum(2 * len(a) for a, _ in read) >= MOST_RUNS:
            break
        if (pair := outcomes_of(stratum, study, reader, most)) is not None:
            read.append(pair)
    if not read:
        return None, 0
    observed = power.pooled_noise(read)
    if observed.noise.variance(seeds=1, questions=1) == 0:
        return None, 0
    return observed, sum(len(a) + len(b) for a, b in read)


def _spread(same: Sequence[Stratum]) -> Iterator[Stratum]:
    """All of them, such that any first part is spread over the grid."""
    step = -(-4 * len(same) // MOST_RUNS)
    return (stratum for first in range(step) for stratum in same[first::step])


def outcomes_of(
    stratum: Stratum, study: str, reader: Reader, most: int | None = None
) -> tuple[Array, Array] | None:
    """correct_S_Q_K of both arms, of the first `most` seeds that both have finished.

    None where there are less than two.
    """
    pairs = zip(stratum.a, stratum.b, strict=True)
    finished = (pair for pair in pairs if all(reader.finished(study, cell) for cell in pair))
    done = list(islice(finished, most))
    if len(done) < 2:
        return None
    from analysis.outcomes import Unusable, reordering, stack  # not where there is nothing to read

    read = [(a.seed, reader.answers(study, a), reader.answers(study, b)) for a, b in done]
    try:
        a = stack({seed: one for seed, one, other in read if one and other})
        b = stack({seed: other for seed, one, other in read if one and other})
        order = reordering(a.questions, b.questions, ("a", "b"))
    except Unusable:
        return None
    return (a.correct_S_Q_K, b.correct_S_Q_K[:, order]) if len(a.seeds) > 1 else None


class Reader:
    """Final answers of a store's finished cells, each file read once for all contrasts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[Path, str], Answers | None] = {}

    def finished(self, study: str, cell: Cell) -> bool:
        """At this very horizon and evaluation, of which its outcomes then are."""
        done = read_mark(self._store.study(study).cell(cell.key).done) or {}
        told = (done.get("status"), done.get("rounds"), done.get("eval_key"))
        return told == (FINISHED, cell.rounds, cell.eval_key)

    def answers(self, study: str, cell: Cell) -> Answers | None:
        """On the test set, in the decoding that contrasts use; None where they are unusable."""
        wanted = (self._store.study(study).cell(cell.key).outcomes, cell.eval.primary)
        if wanted not in self._known:
            self._known[wanted] = _read(*wanted)
        return self._known[wanted]


def _read(path: Path, decoding: str) -> Answers | None:
    """One evaluation and no other row of the file, for a plan should not take long."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from analysis.outcomes import Unusable, Which, answers_in, read_rows

    which = Which("final", "test", decoding)
    try:
        table = read_rows(path)
        for column, value in which._asdict().items():
            table = table.filter(pc.field(column) == value)
        return answers_in(table, f"{path.parent.name}/{path.name}").get(which)
    except (Unusable, pa.ArrowException):
        return None
