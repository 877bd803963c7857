"""Verdicts as plain values: of every contrast and pair, with interval and n."""

from __future__ import annotations

from analysis.report import make_tables, open_studies
from analysis.verdicts import verdicts
from orchestrator.register import register
from tests.test_declared import TWO, grid_of, store, trained  # noqa: F401


def test_every_contrast_in_every_pair_is_told_with_interval_and_n(store) -> None:  # noqa: F811
    grid = grid_of(**TWO)
    store.study("s").directory.mkdir(parents=True)
    register(grid, {cell.key: cell for cell in grid.cells()}, store)
    for cell in grid.cells():
        if cell.model == "tiny-qwen2":
            trained(store, grid, cell, 0.8 if cell.rollouts == 8 else 0.4)
    ((study, by_grid),) = verdicts(make_tables([grid], open_studies([grid], store, ""))).items()
    assert (study, list(by_grid)) == ("s", ["g"])
    known, open_ = sorted(by_grid["g"], key=lambda verdict: verdict.where, reverse=True)
    assert (known.study, known.grid, known.contrast) == ("s", "g", "n")
    assert known.where == "tiny-qwen2 tiny-sums" and known.told.startswith("better")
    assert known.numbers.startswith("b - a +0.") and "4 of 4 seeds, 200 questions" in known.numbers
    assert (known.a, known.b) == ("rollouts 1", "rollouts 8") and known.standing == "registered"
    arms = {cell.rollouts: cell.arm_key for cell in grid.cells() if cell.model == "tiny-qwen2"}
    assert (known.a_key, known.b_key) == (arms[1], arms[8])
    assert open_.told.startswith("no verdict") and open_.numbers == "no comparison"
