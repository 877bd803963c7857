"""The first rounds of a cell in a process of its own, each when it is told to go on.

`python -m tests.benchmarks.one_engine SETTINGS ROUNDS`: waits for a line before the first round,
which begins with the start and the base's evaluation, and before each further one; tells the end
of each by a line `TURN`, and at last, after `MADE`, what was measured, as JSON. Stops where the
rounds are made: the cell is never done. Leaves out whose turn it is (`engines.py`).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from grids import outcome
from grids.catalog import use_local
from grids.cell import Cell
from grids.outcome import Progress
from grids.paths import CellPaths, read_lines
from tests.benchmarks.first_rounds import Enough
from tests.benchmarks.real_model import DATA, MODELS
from workers.evaluate import Evaluated, Evaluator
from workers.run import run_cell

TURN, MADE = "turn over", "made "


def main(settings: str, rounds: int) -> None:
    """Run and print."""
    if DATA.is_dir() and MODELS.is_dir():
        use_local(MODELS, DATA)
    cell, evaluations = Cell(**json.loads(settings)), timed_evaluations()

    def report(progress: Progress) -> None:
        if progress.round == 0:  # the first round's seconds run already
            return
        print(TURN, flush=True)
        if progress.round == rounds:
            raise Enough
        sys.stdin.readline()

    sys.stdin.readline()
    with tempfile.TemporaryDirectory() as scratch:
        paths = CellPaths(Path(scratch))
        with suppress(Enough):
            run_cell(cell, paths.directory, report)
        timings, journal = read_lines(paths.timings), read_lines(paths.journal)
    made = {
        "seconds": [line["seconds"] for line in timings],
        "tokens": [line[outcome.GENERATED_TOKENS] for line in journal[1:]],
        "trained": [line[outcome.TRAINED_TOKENS] for line in journal[1:]],
        "evaluations": evaluations,
    }
    print(MADE + json.dumps(made), flush=True)


def timed_evaluations() -> list[dict[str, float]]:
    """From now on seconds and tokens of every greedy evaluation, which timings have of rounds
    alone."""
    made: list[dict[str, float]] = []
    greedy = Evaluator.greedy

    def timed(self: Evaluator, *words: Any, **settings: Any) -> Evaluated:
        began = time.perf_counter()
        found = greedy(self, *words, **settings)
        seconds = time.perf_counter() - began
        made.append({"seconds": seconds, "tokens": float(sum(r["tokens"] for r in found.rows))})
        return found

    Evaluator.greedy = timed  # type: ignore[method-assign]
    return made


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
