"""What makes a contrast exploratory, from registrations and looks."""

import pytest

from analysis.standing import standing_of
from grids.grid import Grid
from grids.strata import strata

GIVEN = {
    "name": "g", "study": "s", "base": {"rounds": 20}, "seeds": [0, 1, 2],
    "axes": {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"], "rollouts": [1, 2]},
    "contrasts": [{"name": "n", "a": {"rollouts": 1}, "b": {"rollouts": 2}}],
}  # fmt: skip


def grid_of(**changed):
    return Grid.model_validate(GIVEN | changed)


def line(grid, /, **changed):
    """A registration as `banditgrid run` writes it."""
    (contrast,) = grid.contrasts
    (stratum,) = strata(grid, contrast)
    return {
        "registration": contrast.registration, "grid": grid.name, "seeds": grid.seeds,
        "arms": [list(stratum.arm_keys)], "primary": ["greedy"], "rounds": [20],
        "time": "2026-01-02T03:04:05+00:00", "after_first_outcome": False, "looks": 0,
    } | changed  # fmt: skip


def standing(grid, lines, looks=()):
    (stratum,) = strata(grid, grid.contrasts[0])
    return standing_of(grid, stratum, lines, [{"contrast": r} for r in looks])


def test_registered_in_time():
    grid = grid_of()
    made = standing(grid, [line(grid)], [grid.contrasts[0].registration, "another's"])
    assert made.exploratory == () and made.looks == 1 and made.declared_seeds == 3
    assert made.label == "registered 2026-01-02T03:04:05+00:00"


def test_never_registered():
    grid = grid_of()
    other = grid_of(contrasts=[{**GIVEN["contrasts"][0], "margin": 0.05}])
    for lines in ([], [line(other)], [line(grid, grid="another")], [line(grid, arms=[["x", "y"]])]):
        made = standing(grid, lines)
        assert made.registered is None
        assert made.label.startswith("exploratory (0 looks): as it is declared now it was never")


def test_registered_too_late():
    grid = grid_of()
    made = standing(grid, [line(grid, after_first_outcome=True)])
    assert made.exploratory == ("registered when outcomes of both arms were known",)


@pytest.mark.parametrize("looks, exploratory", [(0, False), (2, True)])
def test_seeds_added_after_a_look(looks, exploratory):
    wider = grid_of(seeds=[0, 1, 2, 3, 4])
    lines = [line(grid_of()), line(wider, after_first_outcome=True, looks=looks)]
    made = standing(wider, lines, [wider.contrasts[0].registration] * 3)
    assert bool(made.exploratory) is exploratory
    if exploratory:
        assert made.label == "exploratory (3 looks): gained s3, s4 after 2 looks"


def test_seeds_that_no_run_registered():
    made = standing(grid_of(seeds=[0, 1, 2, 3]), [line(grid_of())])
    assert made.exploratory == ("s3 never registered",)


def test_a_primary_and_a_horizon_chosen_later():
    sampled = grid_of(base={"rounds": 20, "eval": {"primary": "sampled", "samples": 4}})
    made = standing(sampled, [line(grid_of()), line(sampled, primary=["sampled"])])
    assert made.exploratory == ("registered with greedy Pass@1 as its primary, read with sampled",)
    longer = grid_of(base={"rounds": 30})
    early = [line(grid_of()), line(longer, rounds=[30])]
    late = [line(grid_of()), line(longer, rounds=[30], after_first_outcome=True)]
    assert standing(longer, early).exploratory == ()
    assert standing(longer, late).exploratory == ("registered for 20 rounds, read at 30",)
    assert standing(longer, [line(grid_of())]).exploratory


def test_a_declared_number_of_seeds_is_the_contrasts_own():
    grid = grid_of(contrasts=[{**GIVEN["contrasts"][0], "seeds": 10}])
    assert standing(grid, [line(grid)]).declared_seeds == 10
