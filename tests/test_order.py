"""orchestrator.order: seed by seed, the longest first, equal models together."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from grids.cell import Cell
from grids.grid import Grid
from grids.load import load_grids
from grids.paths import Store
from orchestrator.order import ordered, work_estimate
from orchestrator.plan import Work, make_plan
from tests.conftest import GRIDS, ROOT

NOWHERE = Store(Path("no-such-store"))


def work(state: str = "waiting", round: int = 0, begun: bool = False, **settings: object) -> Work:
    given = {"model": "tiny-qwen2", "dataset": "tiny-sums", "batch": 8, "rounds": 100}
    return Work("s", Cell(**{**given, **settings}), ("g",), state, round, begun)


def names(works: list[Work]) -> list[str]:
    return [w.cell.label for w in works]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_a_shipped_grid_runs_seed_by_seed_the_longest_first(path: Path) -> None:
    (grid,) = load_grids([path])
    works = make_plan([grid], NOWHERE).works
    assert sorted(w.cell.key for w in works) == sorted(c.key for c in grid.cells())
    seeds = [w.cell.seed for w in works]
    assert list(dict.fromkeys(seeds)) == [s for s in grid.seeds if s in seeds]
    for before, after in zip(works, works[1:], strict=False):
        if before.cell.seed == after.cell.seed:
            assert work_estimate(before) >= work_estimate(after)
        else:
            assert after.cell.seed not in seeds[: works.index(after)]


def test_all_arms_of_a_contrast_have_a_seed_before_any_has_the_next() -> None:
    """Over the grids of a study together: whenever it is stopped, arms differ by one seed."""
    grids = load_grids(sorted((ROOT / "grids/paper").glob("*.yaml")))
    done: dict[str, int] = {}
    arms = [w.cell.arm_key for w in make_plan(grids, NOWHERE).works]
    counts = {arm: arms.count(arm) for arm in arms}
    for arm in arms:
        done[arm] = done.get(arm, 0) + 1
        behind = min(done.get(other, 0) for other, count in counts.items() if count == 5)
        assert done[arm] - behind <= 1


def test_seeds_run_in_the_order_in_which_they_are_listed() -> None:
    axes = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], "batch": [8, 16]}
    grid = Grid.model_validate({"name": "g", "axes": axes, "seeds": [3, 0, 7]})
    works = make_plan([grid], NOWHERE).works
    assert [w.cell.seed for w in works] == [3, 3, 0, 0, 7, 7]


def test_equal_models_follow_each_other_where_the_work_is_equal() -> None:
    works = [
        work(model=model, advantage=advantage, rollouts=4)
        for advantage in ("grpo", "rloo")
        for model in ("tiny-qwen2", "tiny-llama")
    ]
    assert [w.cell.model for w in ordered(works)] == ["tiny-qwen2"] * 2 + ["tiny-llama"] * 2
    assert [w.cell.advantage for w in ordered(works)] == ["grpo", "rloo"] * 2


def test_what_differs_in_nothing_keeps_its_grids_order() -> None:
    works = [work(advantage=name, rollouts=4) for name in ("rloo", "grpo", "max_rl", "raw")]
    assert names(ordered(works)) == names(works)
    assert names(ordered(works[::-1])) == names(works[::-1])


@pytest.mark.parametrize(
    ("longer", "shorter"),
    [
        (work(batch=64), work()),
        (work(rollouts=8), work()),
        (work(rounds=200), work()),
        (work(), work(round=50, begun=True)),
        (work(), work(begun=True)),
        (work(), work(kl="off")),
        (work(eval={"every": 1}), work()),
        (work(eval={"samples": 4}), work()),
        (work(max_response=32), work(max_response=16)),
        (work(replay=4, advantage="grpo", replay_mode="train"), work(replay=4, advantage="grpo")),
        (work(replay=4, advantage="grpo", replay_fill="base"), work(replay=4, advantage="grpo")),
        (work(round=99, begun=True), work("finished", 100, True)),
    ],
)
def test_more_work_is_estimated_as_more(longer: Work, shorter: Work) -> None:
    assert work_estimate(longer) > work_estimate(shorter) >= 0


def test_the_base_is_evaluated_once_and_as_fully_as_the_end() -> None:
    greedy, sampled = (
        work_estimate(work(eval=settings)) - work_estimate(work(eval=settings, begun=True))
        for settings in ({}, {"samples": 4})
    )
    assert sampled == pytest.approx(5 * greedy)


def test_a_larger_model_costs_more_and_an_unknown_one_something() -> None:
    small, large = (
        work(model=name, dataset="gsm8k", batch=32)
        for name in ("qwen2.5-0.5b-instruct", "llama-3.2-1b-instruct")
    )
    assert work_estimate(large) > work_estimate(small)
    spec = small.cell.model_spec.model_copy(update={"parameters": 0.0})
    unknown = replace(small, cell=small.cell.model_copy(update={"model_spec": spec}))
    assert work_estimate(unknown) > 0


def test_ten_thousand_works_are_ordered_in_a_moment() -> None:
    code = (
        "import time\n"
        "from tests.test_order import work\n"
        "from orchestrator.order import ordered\n"
        "one = work(); works = [one] * 10_000; began = time.process_time(); ordered(works)\n"
        "print(time.process_time() - began)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert float(done.stdout) < 1.0
