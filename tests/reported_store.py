"""A small study with a contrast and a diverged seed, for tests of what tables and reports show."""

from dataclasses import dataclass

from analysis.arms import arms as arms_of
from analysis.study import Study
from analysis.tables import Table, make_table
from grids import outcome
from grids.grid import Grid
from grids.paths import Store, write_json
from tests.synthetic_store import evaluated, finish, make_grid, make_store, study_of

CONTRAST = {
    "name": "shape", "a": {"rollouts": 1}, "b": {"rollouts": 8}, "claim": "superior",
    "margin": 0.05, "match": "prompts",
}  # fmt: skip
FINALS = {"(32,1,0) raw": (0.45, 0.5, 0.55), "(32,8,0) raw": (0.5, 0.6, 0.2)}
COSTS = {outcome.GENERATED_TOKENS: 1000.0, outcome.TRAINED_TOKENS: 500.0, outcome.UPDATES: 50.0}
BROKEN = ("(32,8,0) raw", 2)  # arm and seed that diverge
BASE = evaluated(0.25, 0.3, 0.2)
PROVENANCE = {"device": "cpu", "python": "3.11.7", "commit": "0123456789abcdef+",
              "versions": {"torch": "2.13.0", "trl": "1.16.0"}}  # fmt: skip


@dataclass(frozen=True)
class Small:
    """A grid and the store that it was trained into."""

    grid: Grid
    store: Store

    @property
    def study(self) -> Study:
        return study_of(self.grid, self.store)

    @property
    def table(self) -> Table:
        return make_table(self.grid, self.study)


def a_grid(assumed=False, name="small", **axes):
    """Two arms of one pair, unless axes say otherwise, and the contrast between them."""
    base = {"rounds": 100, "eval": {"samples": 4}}
    return make_grid(
        {"rollouts": [1, 8], **axes}, base=base, contrasts=[CONTRAST], assumed=assumed, name=name
    )


def filled(tmp_path, grid=None, arms=tuple(FINALS), **axes):
    """The grid's `arms` finished: one seed of the second diverged at round 60, scored at 50."""
    grid, store = grid or a_grid(**axes), make_store(tmp_path)
    for arm in arms_of(grid):
        for cell in arm.cells if arm.label in arms else ():
            lines, changed = _run(arm.label, cell.seed)
            paths = finish(grid, cell, store, lines, **changed)
            write_json(paths.provenance, PROVENANCE)
    return Small(grid, store)


def _run(label, seed):
    """Lines of a journal, and what done.json says beyond them."""
    if (label, seed) == BROKEN:
        lines = {0: BASE, 50: evaluated(0.2, 0.35, 0.1) | COSTS, 60: dict(COSTS)}
        broke = {"status": "diverged", "reason": "loss is NaN", "diverged_round": 60}
        return lines, broke | {"final": lines[50]}
    middle, final = evaluated(0.3, 0.35), evaluated(FINALS[label][seed], 0.5, 0.4)
    return {0: BASE, 50: middle | COSTS, 100: final | COSTS}, {}
