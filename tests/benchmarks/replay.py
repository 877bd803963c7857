"""The replay study (paper's section 4.7) on embedded cells: its runs, its figure, a short table.

The runs are kept in ./bench, so that a second call draws anew and trains nothing again. A pipeline
check: it says nothing of the paper's claims. `python -m tests.benchmarks.replay`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis.arms import Arm, arms
from analysis.figures import (
    Journal,
    Measure,
    arm_name,
    draw,
    heading,
    notes,
    read_journal,
    read_panels,
    values_of,
)
from analysis.intervals import MISSING, mean_t
from analysis.markdown import aligned
from analysis.runs import read_run
from grids import load_grid, outcome
from grids.grid import Grid
from grids.paths import Store

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMAND = str(Path(sys.executable).parent / "banditgrid")

MEASURES = (
    Measure(outcome.TEST_PASS, "Pass@1 of the test set\n(greedy)", 0, 1),
    Measure(outcome.GROUP_SIZE, "effective group size\n(rollouts)", 0),
    Measure(outcome.AGE_MEAN, "mean age of what is\nreplayed (rounds)", 0),
    Measure(outcome.RATIO_SD, "SD of the replayed\ntokens' ratios", 0, log=True, window=10),
)
COLUMNS = (
    "arm", "lr", "final", "seeds", "group full at", "mean age", "ratio SD", "notes",
)  # fmt: skip


def main(grid_file: Path = HERE / "replay.yaml", root: Path = ROOT / "bench") -> int:
    """Train what is not yet trained, draw, and print; 1 where some cell failed."""
    words = ["run", str(grid_file), "--store", str(root)]
    code = subprocess.run([COMMAND, *words], cwd=ROOT).returncode
    if code > 1:
        return code
    grid, store = load_grid(grid_file), Store(root)
    drawn = draw(read_panels(grid, store), MEASURES, heading(grid), root / "replay.png")
    print(f"\n{heading(grid).splitlines()[0]}")
    print("final: greedy Pass@1 of the test set, mean over seeds with 95% t interval")
    print("group full at: the first round in which every group is of n + m rollouts")
    print("mean age (rounds), ratio SD: over a run's last epoch, mean over seeds with interval\n")
    print(aligned(COLUMNS, rows(grid, store)))
    print(f"\n{drawn}")
    return code


def rows(grid: Grid, store: Store) -> Iterator[list[str]]:
    """One line an arm and learning rate."""
    study = store.study(grid.study)
    for arm in arms(grid):
        runs = [read_run(cell, study.cell(cell.key)) for cell in arm.cells]
        finals = [run.primary("final", "test") for run in runs if run.counted]
        journals = [read_journal(cell, study.cell(cell.key)) for cell in arm.cells]
        yield [
            arm_name(arm.cell), f"{arm.cell.lr:g}", told(finals), f"{len(finals)}/{len(runs)}",
            full(journals, arm), at_end(journals, arm, outcome.AGE_MEAN, 1),
            at_end(journals, arm, outcome.RATIO_SD, 3), notes(journals),
        ]  # fmt: skip


def full(journals: Sequence[Journal], arm: Arm) -> str:
    """The first round in which the effective group has its full size: `113`, or `113 to 114`."""
    size = arm.cell.rollouts + arm.cell.replay
    counted = [journal for journal in journals if journal.lines]
    firsts = [
        next((r for r, value in values_of(j, outcome.GROUP_SIZE) if value >= size), None)
        for j in counted
    ]
    reached = sorted(first for first in firsts if first is not None)
    if not reached:
        return "never" if counted else MISSING
    missed = f", never in {firsts.count(None)}" if None in firsts else ""
    return " to ".join(str(r) for r in dict.fromkeys((reached[0], reached[-1]))) + missed


def at_end(journals: Sequence[Journal], arm: Arm, metric: str, decimals: int) -> str:
    """A metric's mean over the last epoch that a run made, then over seeds."""
    epoch = (arm.cell.dataset_spec.train_rows or 0) // arm.cell.batch
    means = []
    for journal in journals:
        start = max(journal.lines, default=0) - epoch
        if last := [value for round, value in values_of(journal, metric) if round > start]:
            means.append(statistics.mean(last))
    return told(means, decimals)


def told(values: Sequence[float], decimals: int = 3) -> str:
    """A mean over seeds with its interval."""
    return mean_t(values).format(decimals) if values else MISSING


if __name__ == "__main__":
    sys.exit(main())
