"""Predicted memory against what cells take, as growth of a process's peak on the CPU.

`python -m tests.benchmarks.footprint [SETTINGS]`: embedded models, or one cell's settings as JSON
(a real model's). Two rounds, every answer with reward 1, so that every row takes its pass. A GPU is
not measured: there the attention kernel, the head's and the optimiser's step differ.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from grids.catalog import use_local
from grids.cell import Cell
from tests.benchmarks.first_rounds import Enough
from tests.benchmarks.real_model import DATA, MODELS
from tests.benchmarks.told import last_line, told

TINY: dict[str, Any] = {"dataset": "tiny-sums", "batch": 128, "rollouts": 2, "rounds": 2}
TINY["eval"] = {"every": 2}
CELLS = [TINY | {"model": name} for name in ("tiny-qwen2", "tiny-llama", "tiny-olmo2")]


def main() -> None:
    """Each cell in a process of its own."""
    cells = [json.loads(word) for word in sys.argv[1:]] or CELLS
    for settings in cells:
        made = json.loads(last_line("footprint", "--one", json.dumps(settings)))
        print(f"\n{made['label']}", flush=True)
        told("predicted, MB", made["predicted"] / 1e6)
        told("the process's growth, MB", made["grew"] / 1e6)
        told("its peak, MB", made["peak"] / 1e6)


def one(settings: str) -> None:
    """Train a cell's first rounds and print its figures as JSON."""
    from workers import memory
    from workers.footprint import predicted_bytes
    from workers.rewards import REWARDS
    from workers.run import run_cell

    use_local(MODELS, DATA)
    REWARDS["correct"] = lambda grade, context: 1.0
    cell = Cell(**json.loads(settings))
    peak = memory.Peak()
    peak.reset()
    before = memory.rss_bytes()

    def report(progress: Any) -> None:
        if progress.round == 2:
            raise Enough

    with tempfile.TemporaryDirectory() as scratch, suppress(Enough):
        run_cell(cell, Path(scratch), report)
    reached = peak.read()["peak_rss_bytes"]
    predicted = predicted_bytes(cell)
    made = {"label": cell.label, "predicted": predicted.peak, **vars(predicted)}
    print(json.dumps(made | {"grew": reached - before, "peak": reached}))


if __name__ == "__main__":
    one(sys.argv[2]) if sys.argv[1:2] == ["--one"] else main()
