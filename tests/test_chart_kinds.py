"""Heat maps, gain against cost, forests and shares: drawn is what was estimated, and no more."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.across import across
from analysis.bestset import best_set
from analysis.chart_cost import front, levels
from analysis.chart_forest import forest
from analysis.chart_heat import entry
from analysis.charts import FIGURES, caption_of
from analysis.choices import Choices
from analysis.contrasts import compare
from analysis.importance import SEEDS, Share
from analysis.intervals import NOTHING, Estimate, mean_t
from analysis.runs import Run
from analysis.training import Training
from tests.synthetic_store import make_grid
from tests.told_tables import (
    CONTRAST,
    PAIR,
    PLANE,
    T_2,
    drawn,
    learns,
    panel_names,
    run_of,
    tabled,
    texts_of,
)

# ---- batch × rollouts


def squares(axes):
    return {patch.get_gid(): patch for patch in axes.patches}


def test_the_heat_map_writes_every_gain_and_frames_what_may_be_best():
    table, study = tabled(make_grid(axes=PLANE))
    arms = {row.arm.label: np.full((2, 4), 0.5) for row in table.rows if row.arm.twin is None}
    noise = np.array([[0.0, 0.1, 0.0, 0.1], [0.1, 0.0, 0.1, 0.0]])
    arms["(64,1,0) raw"] = arms["(64,1,0) raw"] + 0.4 + noise  # beats all others
    table = replace(table, choices=(Choices(PAIR, best=best_set(arms)),))
    figure = FIGURES["batch-by-rollouts"].make(table, study)
    assert panel_names(figure) == [f"{PAIR}, raw", f"{PAIR}, grpo"]
    raw, grpo = map(squares, figure.axes)
    framed = {label for found in (raw, grpo) for label, s in found.items() if s.get_linewidth() > 1}
    assert framed == {"(64,1,0) raw", "(64,1,0) grpo"}  # the same runs
    assert len(raw) == len(grpo) == 4
    half = T_2 * 0.1 / math.sqrt(3)
    small = f"+{0.332 - 0.1:.3f}\n±{half:.3f}".replace("0.", ".")
    assert [text.get_text() for text in figure.axes[0].texts].count(small) == 2  # (32,1), (32,2)
    assert "not known" not in caption_of(figure)


def test_a_shape_that_the_grid_lacks_is_empty_and_one_without_runs_says_so():
    def run(cell):
        return Run(cell, "waiting") if cell.rollouts == 2 else learns(cell)

    axes = {"batch": [32, 64], "rollouts": [1, 2]}
    grid = make_grid(axes=axes, budget={"samples_per_step": 64})
    figure = drawn("batch-by-rollouts", grid, run)
    assert set(squares(figure.axes[0])) == {"(64,1,0) raw", "(32,2,0) raw"}
    assert "no run" in texts_of(figure)
    assert f"That set is not known in {PAIR}." in caption_of(figure)


def test_entries_of_the_heat_map():
    assert entry(Estimate(0.123, 0, 0.078, 0.168, 2, 3), usual=3) == "+.123\n±.045"
    assert entry(Estimate(-0.5, 0, -1.7, 0.7, 2, 2), usual=3) == "-.500\n±1.200\nn = 2"
    assert entry(mean_t([0.25]), usual=1) == "+.250\nn = 1"
    assert entry(NOTHING, usual=3) == "no run"


# ---- gain against cost


def test_the_front_by_hand():
    costs, gains = [1.0, 2.0, 4.0, 4.1, 8.0], [0.1, 0.3, 0.3, 0.4, 0.2]
    assert front(costs, gains) == [0, 1, 3]  # 4.0 and 4.1 count as equally dear
    assert levels(costs) == [[0], [1], [2, 3], [4]]
    assert front([2.0, 1.0], [0.1, 0.1]) == [1]
    assert front([1.0, 1.0], [0.1, 0.1]) == [0, 1]  # neither is better
    assert front([], []) == []


def test_points_are_the_estimates_and_what_is_dominated_is_pale():
    def run(cell):
        gains = {32: 0.2, 64: 0.1, 128: 0.4}
        return run_of(cell, 0.2, 0.3, 0.2 + gains[cell.batch] + cell.seed / 100)

    (axes,) = drawn("gain-by-cost", make_grid(axes={"batch": [32, 64, 128]}), run).axes
    points = {c.get_label(): c.lines[0] for c in axes.containers}
    x, y = zip(*((p.get_xdata()[0], p.get_ydata()[0]) for p in points.values()), strict=True)
    assert x == pytest.approx((3.2, 6.4, 12.8)) and y == pytest.approx((0.21, 0.11, 0.41))
    assert [p.get_alpha() == 1 for p in points.values()] == [True, False, True]
    (steps,) = [line for line in axes.lines if line.get_gid() == "front"]
    assert list(steps.get_xdata()) == pytest.approx([3.2, 12.8])
    bar = axes.containers[0].lines[2][-1].get_segments()[0]
    half = T_2 * 0.01 / math.sqrt(3)
    assert bar[:, 1] == pytest.approx([0.21 - half, 0.21 + half], abs=1e-6)


def test_equally_dear_arms_stand_side_by_side():
    axes = {"batch": [32], "clip": [0.1, 0.2, 0.3], "updates_per_round": [2]}
    (panel,) = drawn("gain-by-cost", make_grid(axes=axes)).axes
    x = [c.lines[0].get_xdata()[0] for c in panel.containers]
    assert x == sorted(x) and len(set(x)) == 3 and x[1] == pytest.approx(3.2)


def test_an_arm_whose_cost_is_not_known_is_told():
    def run(cell):
        return replace(learns(cell), training=Training())

    figure = drawn("gain-by-cost", make_grid(axes={"batch": [32, 64]}), run)
    assert "the cost is not known: 2 arms" in caption_of(figure)
    assert "no cost is known" in texts_of(figure) and "no finished run" not in texts_of(figure)


# ---- contrasts


def with_results(table, *differences):
    """Each result compared from arms whose seeds and questions are so far apart."""
    made = []
    for result, by_seed in zip(table.results, differences, strict=True):
        a_S_Q = np.tile([0.2, 0.4, 0.6, 0.4], (len(by_seed), 1))
        b_S_Q = a_S_Q + np.array(by_seed)[:, None]
        made.append(replace(result, comparison=compare(a_S_Q, b_S_Q, margin=0.05), absent=""))
    return replace(table, results=tuple(made))


def test_the_forest_draws_differences_margins_verdicts_and_the_mean():
    axes = {"dataset": ["gsm8k", "math"], "batch": [32, 64]}
    table, _ = tabled(make_grid(axes=axes, contrasts=[CONTRAST | {"match": "rounds"}]))
    table = with_results(table, [0.10, 0.11, 0.12], [-0.01, 0.0, 0.01])
    figure = forest(table)
    (panel,) = figure.axes
    points = {line.get_gid(): line for line in panel.lines if line.get_gid()}
    assert points[PAIR].get_xdata() == pytest.approx([0.11])
    assert points["OLMo-MATH"].get_xdata() == pytest.approx([0], abs=1e-6)
    assert points[PAIR].get_marker() == "^" and points["OLMo-MATH"].get_marker() == "s"
    half = T_2 * 0.01 / math.sqrt(3)
    interval = next(line for line in panel.lines if list(line.get_ydata()) == [2.0, 2.0])
    assert list(interval.get_xdata()) == pytest.approx([0.11 - half, 0.11 + half], abs=1e-6)
    bands = [patch for patch in panel.patches if patch.get_gid() == "margin"]
    assert [(b.get_x(), b.get_width()) for b in bands] == [(-0.05, 0.1)] * 2
    texts = texts_of(figure)
    assert "better (1)" in texts and "equivalent (1)" in texts
    assert "+0.110 [+0.085, +0.135]" in texts
    mean = across(table.results).mean
    (diamond,) = [patch for patch in panel.patches if patch.get_gid() == "mean"]
    extents = diamond.get_path().get_extents()
    assert (extents.x0, extents.x1) == pytest.approx((mean.low, mean.high))
    assert "(1) exploratory (0 looks): as it is declared now it was never" in caption_of(figure)


def test_a_contrast_without_a_comparison_keeps_its_row_and_tells_why():
    table, _ = tabled(make_grid(axes={"batch": [32, 64]}, contrasts=[CONTRAST]))
    figure = forest(table)
    texts = texts_of(figure)
    assert "no verdict (1,2)" in texts and "—" in texts
    assert "none of its 3 seeds has outcomes" in caption_of(figure)
    assert not [line for line in figure.axes[0].lines if line.get_gid()]


def test_one_paired_seed_is_a_point_without_an_interval():
    table, _ = tabled(make_grid(axes={"batch": [32, 64]}, contrasts=[CONTRAST], seeds=[0]))
    figure = forest(with_results(table, [0.1]))
    assert "+0.100" in texts_of(figure) and "inconclusive (1)" in texts_of(figure)


def test_broken_runs_at_zero_stand_below():
    table, _ = tabled(make_grid(axes={"batch": [32, 64]}, contrasts=[CONTRAST]))
    table = with_results(table, [0.1, 0.1, 0.2])
    zeroed = compare(np.full((3, 4), 0.5), np.full((3, 4), 0.3))
    table = replace(table, results=(replace(table.results[0], at_zero=zeroed),))
    figure = forest(table)
    (zero,) = [line for line in figure.axes[0].lines if line.get_gid() == "broken at 0"]
    assert list(zero.get_xdata()) == pytest.approx([-0.2])
    assert "diverged runs counted as wrong" in caption_of(figure)


def test_families_stand_together_and_grids_are_named_where_there_are_several():
    families = [("one", "x"), ("two", "y"), ("three", "x")]
    contrasts = [CONTRAST | {"name": name, "family": family} for name, family in families]
    table, _ = tabled(make_grid(axes={"batch": [32, 64]}, contrasts=contrasts))
    headings = [text for text in texts_of(forest(table)) if "claim" in text]
    assert [text.partition(":")[0] for text in headings] == [
        "one [family x]", "three [family x]", "two [family y]",
    ]  # fmt: skip
    both = texts_of(forest(table, table))
    assert len([text for text in both if text.startswith("small, one [family x]")]) == 2
    nothing = forest(tabled(make_grid())[0])
    assert "nothing to show" in texts_of(nothing)


# ---- variance shares


def share(name, value, low, high, order=1):
    return Share(name, Estimate(value, math.nan, low, high, 8, 12), 1.0, 0.5, 1, 8, order)


def test_shares_are_bars_with_intervals_and_pairs_without_them_say_why():
    shares = (
        share("batch", 0.7, 0.3, 0.9),
        share("lr", -0.02, 0, 0.2),
        share(SEEDS, 0.3, 0.1, 0.6, 0),
    )
    made = (
        Choices(PAIR, shares, "factorial", "share of the variance"),
        Choices("other", no_shares="its runs wait"),
    )
    table, study = tabled(make_grid(axes={"batch": [32, 64]}))
    figure = FIGURES["variance-shares"].make(replace(table, choices=made), study)
    (axes,) = figure.axes
    bars = {patch.get_gid(): patch.get_width() for patch in axes.patches if patch.get_gid()}
    assert bars == {"batch": 0.7, "lr": -0.02, SEEDS: 0.3}
    intervals = [list(line.get_xdata()) for line in axes.lines]
    assert all(ends in intervals for ends in ([0.3, 0.9], [0, 0.2], [0.1, 0.6]))
    texts = texts_of(figure)
    assert f"{PAIR} (factorial, n = 12 runs)" in texts and "-0.02 [0.00, 0.20]" in texts
    assert axes.get_xlim()[0] < -0.02
    assert "No shares in other: its runs wait." in caption_of(figure)
