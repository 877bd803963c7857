"""Scorers whose engine dies as often as a file of the cell says, handed out by a real local Ray.

`python -m tests.dying_scorers PLACE` prints how each cell ended, by seed, as JSON. In a process of
its own, as every driver of Ray in these tests. Leaves out what is expected (`test_evaluating.py`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray

from grids.load import load_grid
from grids.paths import Store
from orchestrator import scorers
from orchestrator.evaluating import Target


class Dying:
    """Every call is a line of the cell's file `calls`: the process that it was made in."""

    def __init__(self, *_: Any) -> None:
        pass

    def score(self, task: dict[str, str]) -> tuple[str, str, dict[str, Any]]:
        """As `scorers.Scorer.score`."""
        calls = Path(task["folder"]) / "calls"
        with calls.open("a") as file:
            file.write(f"{os.getpid()}\n")
        deaths = int((Path(task["folder"]) / "deaths").read_text())
        called = len(calls.read_text().split())
        return scorers.DIED if called <= deaths else scorers.SCORED, "", {}


def main(place: Path) -> None:
    store = Store(place / "store")
    cells = [(c, store.study("small").cell(c.key)) for c in load_grid(place / "grid.yaml").cells()]
    targets = [Target("small", c, c, paths) for c, paths in cells[:2]]
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    pool = scorers._Pool(1, None)
    pool.kind = ray.remote(num_cpus=1, max_restarts=0)(Dying)
    ended = list(scorers._hand_out(targets, "wide", store, "this", pool))
    print(json.dumps({end.target.cell.seed: end.how for end in ended}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
