"""The first rounds of a cell, in a process of its own: their seconds and its peak memory, as JSON.

`python -m tests.benchmarks.first_rounds SETTINGS ROUNDS`, with a cell's settings as JSON. Stops
where the rounds are made: the cell is never done. Leaves out what is compared (`real_model.py`).
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from grids import outcome
from grids.catalog import use_local
from grids.cell import Cell
from grids.outcome import Progress
from grids.paths import read_lines
from tests.benchmarks.real_model import DATA, MODELS
from workers.rewards import REWARDS
from workers.run import run_cell


class Enough(Exception):
    """The rounds are made."""


def main(settings: str, rounds: int) -> None:
    """Run and print. Every answer has reward 1, so that every row takes its pass in every cell."""
    REWARDS["correct"] = lambda grade, context: 1.0
    use_local(MODELS, DATA)
    cell = Cell(**json.loads(settings))

    def report(progress: Progress) -> None:
        if progress.round == rounds:
            raise Enough

    with tempfile.TemporaryDirectory() as scratch:
        with suppress(Enough):
            run_cell(cell, Path(scratch), report)
        lines = read_lines(Path(scratch) / outcome.TIMINGS_FILE)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rounds": [line["seconds"] for line in lines], "peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
