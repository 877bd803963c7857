"""Reading a study: each run once, its answers checked, missing ones named."""

import math

import pytest

from analysis.estimates import arm_estimates
from analysis.intervals import two_way, wilson
from analysis.outcomes import Unusable
from grids import InputError
from tests.synthetic_store import (
    QUESTIONS,
    evaluated,
    fail,
    finish,
    make_grid,
    make_store,
    paths_of,
    study_of,
)

SHAPES = {"rollouts": [1, 8]}
FINALS = (0.4, 0.5, 0.6)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


def finish_all(grid, store, **more):
    for cell in grid.cells():
        final = FINALS[cell.seed] + 0.1 * (cell.rollouts == 8)
        finish(grid, cell, store, {0: evaluated(0.25, 0.3), 100: evaluated(final, final)}, **more)


def runs_of(grid, store):
    study = study_of(grid, store)
    return study, [study.run(cell) for cell in grid.cells()]


def test_the_frame_has_a_row_a_run(store):
    grid = make_grid(SHAPES)
    finish_all(grid, store)
    frame = study_of(grid, store).runs()
    assert len(frame) == 6 and set(frame.state) == {"finished"}
    arm = frame[frame.rollouts == 8]
    assert arm.final_test.round(6).tolist() == [0.5, 0.6, 0.7]


def test_an_arm_by_its_settings(store):
    grid = make_grid(SHAPES)
    finish_all(grid, store)
    study = study_of(grid, store)
    arm = study.outcomes(rollouts=8)
    assert arm.correct_S_Q_K.shape == (3, QUESTIONS, 1) and arm.seeds == (0, 1, 2)
    assert study.compare({"rollouts": 1}, {"rollouts": 8}).difference.value == pytest.approx(0.1)
    with pytest.raises(InputError, match=r"are those of 2 arms \(.*\(32,1,0\) raw; .*\(32,8,0\)"):
        study.outcomes(batch=32)
    with pytest.raises(InputError, match=r"are those of 0 arms \(none\)"):
        study.outcomes(batch=64)
    with pytest.raises(InputError, match="rollout: no such setting of a cell; allowed: adam_beta1"):
        study.outcomes(rollout=8)
    with pytest.raises(InputError, match="arms of study test of the store are given by settings"):
        study.compare("a", "b")


def test_missing_answers_are_named_and_the_other_seeds_counted(store):
    grid = make_grid()
    finish_all(grid, store)
    cell = grid.cells()[1]
    paths_of(grid, cell, store).outcomes.unlink()
    study, runs = runs_of(grid, store)
    made = arm_estimates(runs, study)
    assert made.seeds == (0, 2) and made.numbers["final_test"].value == pytest.approx(0.5)
    assert made.missing == {1: f"{cell.key}/outcomes.parquet: is missing"}
    fail(grid, cell, store, "x")


def test_answers_of_another_round_are_not_this_grids(store):
    grid = make_grid()
    finish_all(grid, store)
    short = make_grid(base={"rounds": 50})
    for cell in grid.cells():
        lines = {0: evaluated(0.25, 0.3), 50: evaluated(0.3, 0.3), 100: evaluated(0.5, 0.5)}
        finish(grid, cell, store, lines)
    study, runs = runs_of(short, store)
    with pytest.raises(Unusable, match="its final answers are of round 100; this grid reads rou"):
        study.answers(runs[0], "final", "test", "greedy")
    made = arm_estimates(runs, study)
    assert made.over_seeds and made.numbers["final_test"].value == pytest.approx(0.3)
    study, runs = runs_of(grid, store)
    assert not arm_estimates(runs, study).over_seeds


def test_estimates_of_an_arm(store):
    grid = make_grid(base={"rounds": 100, "eval": {"samples": 4}})
    finish_all(grid, store)
    for cell in grid.cells():
        final = evaluated(FINALS[cell.seed], 0.5, sampled=FINALS[cell.seed])
        finish(grid, cell, store, {0: evaluated(0.25, 0.3, sampled=0.2), 100: final})
    study, runs = runs_of(grid, store)
    made = arm_estimates(runs, study)
    greedy = study.stacked(runs, "final", "test", "greedy").outcomes
    base = study.stacked(runs, "base", "test", "greedy").outcomes
    assert made.numbers["final_test"] == two_way(greedy.means_S_Q)
    assert made.numbers["gain_test"] == two_way(greedy.means_S_Q - base.means_S_Q)
    assert made.numbers["base_test"] == wilson(75, QUESTIONS)
    assert made.numbers["pass_at_1"].value == pytest.approx(0.5)
    assert made.numbers["pass_at_4"].value == pytest.approx(0.5)  # right questions come first
    assert made.seed_sd == pytest.approx(0.1)


def test_one_seed_has_no_interval(store):
    grid = make_grid(seeds=[0])
    finish_all(grid, store)
    study, runs = runs_of(grid, store)
    made = arm_estimates(runs, study)
    assert made.numbers["final_test"].n == 1 and math.isnan(made.numbers["gain_test"].low)
    assert math.isnan(made.seed_sd) and not math.isnan(made.numbers["base_test"].low)


def test_no_run_has_no_number(store):
    grid = make_grid()
    study, runs = runs_of(grid, store)
    made = arm_estimates(runs, study)
    assert all(math.isnan(e.value) and e.n == 0 for e in made.numbers.values())
    assert made.seeds == () and made.missing == {}
