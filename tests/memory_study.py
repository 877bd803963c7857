"""A study held in memory: runs and their answers as a test says them, with no file.

Leaves out everything that reading files adds (`synthetic_store.py`).
"""

import numpy as np

from analysis.outcomes import Answers, Unusable, Which
from analysis.runs import Run
from analysis.sources import Source
from analysis.study import Study
from analysis.training import Training
from grids.grid import Grid
from grids.outcome import FINISHED, TEST_PARSED, TEST_PASS, TRAIN_PASS, WAITING

QUESTIONS = 400


def grid_of(axes=None, **settings):
    """A grid on one embedded pair; every seed trains 20 rounds."""
    given = {
        "name": "g", "study": "s", "seeds": [0, 1, 2, 3],
        "base": {"rounds": 20, "eval": {"every": 10}},
        "axes": {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], "batch": [8], **(axes or {})},
    }  # fmt: skip
    return Grid.model_validate(given | settings)


def right(share, shift=0, questions=QUESTIONS):
    """correct_Q of which this share is right, beginning at question `shift`."""
    correct_Q = np.zeros(questions, np.float32)
    correct_Q[: round(share * questions)] = 1.0
    return np.roll(correct_Q, shift)


class Memory(Source):
    """A source of runs that a test has made."""

    name = place = "memory"
    has_answers = True

    def __init__(self):
        self.made, self.found, self.devices, self.lines = {}, {}, {}, []

    def add(
        self, cell, test, train=None, parsed=(1.0, 1.0), first=None, last=None, group=np.nan,
        state=FINISHED, broke=None, device="cpu",
    ):  # fmt: skip
        """A run; `test` and `train` are (base, final) arrays of correct_Q, `parsed` shares."""
        scores = [{TEST_PASS: float(x.mean()), TEST_PARSED: p} for x, p in
                  zip(test, parsed, strict=True)]  # fmt: skip
        self.found[cell.key] = _answers("test", test, cell)
        if train is not None:
            scores = [s | {TRAIN_PASS: float(x.mean())} for s, x in zip(scores, train, strict=True)]
            self.found[cell.key] |= _answers("train", train, cell)
        self.made[cell.key] = Run(
            cell, state, "", cell.rounds, cell.rounds, broke, *scores,
            Training(first=first or {}, last=last or {}, median_group=group),
        )  # fmt: skip
        self.devices[cell.key] = device

    def cells(self):
        return tuple(run.cell for run in self.made.values())

    def run(self, cell):
        return self.made.get(cell.key) or Run(cell, WAITING)

    def answers(self, cell):
        if cell.key not in self.found:
            raise Unusable(f"{cell.key}/outcomes.parquet: is missing")
        return self.found[cell.key]

    def hardware(self, cell):
        return self.devices.get(cell.key)

    def registrations(self):
        return self.lines

    def looks(self):
        return []

    def note_looks(self, looks):
        return True


def study_of(grid, tell, source=None):
    """The study of a grid: `tell(cell)` gives what `Memory.add` takes, None where nothing ran."""
    source = source or Memory()
    for cell in grid.cells():
        if (told := tell(cell)) is not None:
            source.add(cell, **told)
    return Study(source)


def _answers(split, arrays_Q, cell):
    names = tuple(f"{split}{q}" for q in range(len(arrays_Q[0])))
    return {
        Which(phase, split, "greedy"): Answers(names, x_Q[:, None], round)
        for phase, round, x_Q in zip(("base", "final"), (0, cell.rounds), arrays_Q, strict=True)
    }
