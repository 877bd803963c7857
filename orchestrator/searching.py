"""A search on one arm: waves of trials, suggested by Optuna and told what the store says of them.

Nothing is kept of Optuna's: a search is asked and told anew from its seed and the store's cells, in
one order, so that a new driver goes on where the last one was, and a search that is over asks for
nothing. With rungs, the better half of a wave goes on from each (synchronous successive halving,
Jamieson and Talwalkar 2016, arXiv 1502.07943). Leaves out who trains (`queue.py`) and all searches
of a run together (`searches.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.outcome import DIVERGED, FINISHED
from grids.paths import CellPaths, DamagedError, read_lines
from grids.search import Problem
from orchestrator.ledger import DONE, standing

if TYPE_CHECKING:
    import optuna

DIGITS: Final = 3  # of a suggested number, so that people can read it and write it
LEFT: Final = "left at a rung"
UNSCORED: Final = "unscored"


@dataclass(frozen=True)
class Reading:
    """What a cell's files say at a round; `val` is NaN where no answer could be scored."""

    val: float
    diverged: bool = False


Read = Callable[[Cell], Reading | None]


@dataclass
class Tried:
    """A trial: settings that were suggested, and what their cells came to.

    Attributes:
        seen: round -> the mean over seeds of `val/pass_at_1`, at each rung and at the end.
        by_seed: the same at the last of them, seed by seed.
        state: empty while it is on its way; finished, diverged, unscored, or left at a rung.
    """

    number: int
    settings: dict[str, Any]
    seen: dict[int, float] = field(default_factory=dict)
    by_seed: dict[int, float] = field(default_factory=dict)
    state: str = ""

    @property
    def val(self) -> float:
        """The last that is known."""
        return list(self.seen.values())[-1] if self.seen else math.nan


def reading(paths: CellPaths, cell: Cell) -> Reading | None:
    """The cell's `val/pass_at_1` at its round, or at its last evaluation where it diverged before.

    None where it has yet to get there. Training beyond it changes nothing.
    """
    found = standing(paths, cell.rounds, cell.eval_key)
    beyond = found.state not in DONE and (found.round or 0) > cell.rounds
    if found.state not in DONE and not beyond:
        return None
    try:
        lines = read_lines(paths.journal)
    except DamagedError:
        return None
    scored = {line["round"]: line[outcome.VAL_PASS] for line in lines if outcome.VAL_PASS in line}
    if found.state == DIVERGED and (found.round or 0) <= cell.rounds:
        last = max((r for r in scored if r <= cell.rounds), default=None)
        return Reading(math.nan if last is None else scored[last], diverged=True)
    if cell.rounds not in scored:
        raise InputError(
            f"{cell.label}: a search reads it at round {cell.rounds}, and it was trained beyond "
            f"without an evaluation there (there are: {', '.join(map(str, scored)) or 'none'}); "
            "take one of these for `rounds` and `rungs`, or another `holdout`, of other cells"
        )
    return Reading(scored[cell.rounds])


class Hunt:
    """One search on one arm, as far as the store's cells take it."""

    def __init__(self, problem: Problem, read: Read) -> None:
        self.problem, self._read = problem, read
        self.trials: list[Tried] = []
        self._asked: dict[int, optuna.trial.Trial] = {}  # Optuna's own, by number
        self._cells: dict[tuple[int, int], list[Cell]] = {}  # by number and rounds: made once
        self._wave: list[Tried] = []  # of the wave that is open
        self._running: list[Tried] = []  # those of them that train on
        self._stage = 0

    @property
    def complete(self) -> bool:
        """The budget is spent, and every trial was told."""
        return len(self.trials) == self.problem.trials and not self._wave

    @property
    def best(self) -> Tried | None:
        """Of trials that finished, the best; of equal ones the first."""
        finished = [tried for tried in self.trials if tried.state == FINISHED]
        return max(finished, key=lambda tried: (tried.val, -tried.number), default=None)

    def cells(self, tried: Tried) -> list[Cell]:
        """Its cells, to the round that it is known at or on its way to."""
        rounds = max(tried.seen, default=self.problem.stages[0])
        if tried in self._running:
            rounds = self.problem.stages[self._stage]
        made = self._cells.get((tried.number, rounds))
        if made is None:
            seeds = self.problem.search.seeds
            made = [self.problem.cell(tried.settings, seed, rounds) for seed in seeds]
            self._cells[tried.number, rounds] = made
        return made

    def wanted(self) -> list[Cell]:
        """The cells that the search waits for; none where it is over. Reads what there is."""
        while self._wave or self._ask():
            found = {tried.number: list(map(self._read, self.cells(tried)))
                     for tried in self._running}  # fmt: skip
            lacking = [
                cell
                for tried in self._running
                for cell, seen in zip(self.cells(tried), found[tried.number], strict=True)
                if seen is None
            ]
            if lacking:
                return list({cell.key: cell for cell in lacking}.values())
            for tried in self._running:
                self._note(tried, [seen for seen in found[tried.number] if seen is not None])
            self._advance()
        return []

    def _note(self, tried: Tried, readings: list[Reading]) -> None:
        values = [seen.val for seen in readings]
        tried.seen[self.problem.stages[self._stage]] = math.fsum(values) / len(values)
        tried.by_seed = dict(zip(self.problem.search.seeds, values, strict=True))
        if any(seen.diverged for seen in readings):
            tried.state = DIVERGED
        elif math.isnan(tried.val):
            tried.state = UNSCORED

    def _advance(self) -> None:
        """On to the next rung with the better half, or to the next wave."""
        going = [tried for tried in self._running if not tried.state]
        if self._stage + 1 < len(self.problem.stages) and going:
            ranked = sorted(going, key=lambda tried: (-tried.val, tried.number))
            kept = ranked[: math.ceil(len(ranked) / 2)]
            for tried in going:
                tried.state = "" if tried in kept else LEFT
            self._running = [tried for tried in going if tried in kept]
            self._stage += 1
            return
        for tried in going:
            tried.state = FINISHED
        self._tell()

    # ---- Optuna

    def _ask(self) -> bool:
        """Open a wave; False where the budget is spent."""
        left = self.problem.trials - len(self.trials)
        for number in range(len(self.trials), len(self.trials) + min(left, self.problem.wave)):
            trial = self._study.ask()
            self._asked[number] = trial
            self._wave.append(Tried(number, _suggested(self.problem, trial)))
        self.trials += self._wave
        self._running, self._stage = list(self._wave), 0
        return bool(self._wave)

    def _tell(self) -> None:
        """The whole wave, in the order of its numbers."""
        from optuna.trial import TrialState

        for tried in self._wave:
            trial = self._asked[tried.number]
            if math.isnan(tried.val):
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            for rounds, value in tried.seen.items():
                trial.report(value, rounds)
            if tried.state == LEFT:
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, tried.val)
        self._wave, self._running = [], []

    @cached_property
    def _study(self) -> optuna.Study:
        import warnings

        import optuna  # a second, which programs without a search need not wait

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():  # of arguments that may change: the seed is for a version
            warnings.simplefilter("ignore")
            return optuna.create_study(direction="maximize", sampler=_sampler(self.problem))


def _sampler(problem: Problem) -> optuna.samplers.BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    if problem.search.optuna.sampler == "random":
        return RandomSampler(seed=problem.sampler_seed)
    # constant_liar: a wave's trials keep apart though none of them has been told.
    return TPESampler(
        seed=problem.sampler_seed, n_startup_trials=problem.wave, constant_liar=True
    )  # fmt: skip


def _suggested(problem: Problem, trial: optuna.trial.Trial) -> dict[str, Any]:
    """Settings as a cell holds them; numbers of a range with few digits."""
    made = {}
    for name, space in problem.search.over.items():
        if space.choices is not None:
            chosen = trial.suggest_categorical(name, list(range(len(space.choices))))
            made[name] = problem.values(name)[chosen]
        elif space.low is not None and space.high is not None:
            value = trial.suggest_float(name, space.low, space.high, log=space.log)
            short = min(max(float(f"{value:.{DIGITS}g}"), space.low), space.high)
            made[name] = problem.grid.held(name, short)
    return made
