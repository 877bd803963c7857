"""Figures: means and bands by hand, what is absent stays absent, what broke is named; a PNG."""

import math
import subprocess
import sys

import pytest
from matplotlib.colors import to_hex

from analysis.figures import (
    COLOURS,
    Journal,
    Measure,
    curve,
    curves,
    draw,
    heading,
    make_figure,
    notes,
    read_journal,
    read_panels,
    values_of,
    whole,
)
from grids import InputError, load_grid, outcome
from tests.benchmarks import replay
from tests.synthetic_store import evaluated, fail, finish, make_grid, make_store, paths_of

PASS = Measure(outcome.TEST_PASS, "Pass@1", 0, 1)
TINY = {"model": ["tiny-qwen2"], "dataset": ["tiny-sums"]}
T_2 = 4.302653  # 97.5% point of Student's t with 2 degrees of freedom


def journal(*values, seed=0, state="finished"):
    """A run with these Pass@1 at rounds 0, 10, 20, ...; None where a round has none."""
    lines = {10 * i: {} if x is None else evaluated(x) for i, x in enumerate(values)}
    return Journal(seed, state, lines)


def panel(arms):
    """The axes of a figure with one panel."""
    return make_figure({"all": arms}, [PASS], "title").axes[0]


def lines_of(axes, style):
    return [line for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata())]


def test_means_and_bands_by_hand():
    seeds = [journal(0.2, 0.4), journal(0.2, 0.5), journal(0.2, 0.6)]
    first, second = curve(seeds, outcome.TEST_PASS)
    assert (first.round, first.estimate.value, first.estimate.low) == (0, 0.2, 0.2)
    half = T_2 * 0.1 / math.sqrt(3)
    assert (second.round, second.estimate.n) == (10, 3)
    assert second.estimate.value == pytest.approx(0.5)
    assert second.estimate.low == pytest.approx(0.5 - half, abs=1e-6)
    axes = panel({"arm": seeds})
    (line,) = lines_of(axes, "-")
    assert list(line.get_xdata()) == [0, 10]
    assert list(line.get_ydata()) == pytest.approx([0.2, 0.5])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((0.2, 0.5 + half), abs=1e-6)


def test_a_metric_that_a_round_has_not_is_not_drawn():
    seeds = [journal(0.2, None, 0.4), journal(0.2, math.nan, 0.6)]
    points = curve(seeds, outcome.TEST_PASS)
    assert [(p.round, p.estimate.value) for p in points] == [(0, 0.2), (20, 0.5)]
    assert curves({"arm": seeds}, outcome.AGE_MEAN) == {"arm": ()}
    assert not panel({"arm": [journal(None, None)]}).lines


def test_one_seed_is_a_line_without_a_band():
    (point,) = curve([journal(0.3)], outcome.TEST_PASS)
    assert (point.estimate.value, point.estimate.n) == (0.3, 1)
    assert math.isnan(point.estimate.low)
    axes = panel({"arm": [journal(0.3, 0.4)]})
    assert len(lines_of(axes, "-")) == 1
    assert not any(len(path.vertices) for band in axes.collections for path in band.get_paths())


def test_a_run_that_broke_is_drawn_up_to_there_and_named():
    seeds = [journal(0.2, 0.5, 0.6, 0.7), journal(0.2, 0.5, 0.6, 0.8)]
    seeds.append(journal(0.2, 0.1, seed=2, state="diverged"))
    assert notes(seeds) == "1 of 3 diverged"
    points = curve(seeds, outcome.TEST_PASS)
    assert [p.estimate.n for p in points] == [3, 3, 2, 2]
    assert whole(points, 3) == 2
    axes = panel({"arm": seeds})
    mean, broken = lines_of(axes, "-")
    (left,) = lines_of(axes, ":")
    assert list(mean.get_ydata()) == pytest.approx([0.2, 1.1 / 3])
    assert (list(broken.get_ydata()), broken.get_marker()) == ([0.2, 0.1], "x")
    assert list(left.get_ydata()) == pytest.approx([0.6, 0.75])
    assert [text.get_text() for text in axes.texts] == ["1 of 3 diverged: arm"]


def test_a_window_is_a_mean_within_each_seed():
    lines = {r: {outcome.RATIO_SD: r / 10} for r in (3, 9, 10, 11, 12, 20, 21)}
    run = Journal(0, "finished", {0: {}} | lines)
    assert values_of(run, outcome.RATIO_SD)[:2] == [(3, 0.3), (9, 0.9)]
    windows = values_of(run, outcome.RATIO_SD, 10)  # of which the third has not ended
    assert windows == [(10, pytest.approx(2.2 / 3)), (20, pytest.approx(4.3 / 3))]


def test_journals_of_a_store(tmp_path):
    grid, store = make_grid(axes={"lr": [3e-5, 0.01]}), make_store(tmp_path)
    whole = {0: evaluated(0.2), 50: evaluated(0.4), 100: evaluated(0.6), 150: evaluated(0.9)}
    broken = {0: evaluated(0.2), 50: evaluated(0.01), 60: {outcome.LOSS: math.nan}}
    ended = {"status": "diverged", "reason": "loss", "diverged_round": 60, "final": broken[50]}
    for cell in grid.cells():
        if cell.seed == 0:
            finish(grid, cell, store, whole)
        elif cell.seed == 1:
            finish(grid, cell, store, broken, **ended)
        else:
            fail(grid, cell, store, "out of memory")
    panels = read_panels(grid, store)
    assert list(panels) == ["learning rate 3e-5", "learning rate 0.01"]
    (name, seeds), *others = panels["learning rate 3e-5"].items()
    assert (name, others) == ("(32,1,0) raw", [])
    assert [list(j.lines) for j in seeds] == [[0, 50, 100], [0, 50, 60], []]  # its own horizon
    assert notes(seeds) == "1 of 3 diverged, 1 of 3 failed"
    cell = grid.cells()[0]
    paths_of(grid, cell, store).journal.write_text("{\n")
    assert read_journal(cell, paths_of(grid, cell, store)) == Journal(0, "damaged")


def test_arms_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"two arms of one panel are called '\(32,1,0\) raw'"):
        read_panels(make_grid(axes={"kl": [0.001, 0.01]}), make_store(tmp_path))


def test_a_png_is_written_whole(tmp_path):
    arms = {f"arm {i}": [journal(0.2, 0.4 + i / 10), journal(0.2, 0.5)] for i in range(3)}
    measures = [PASS, Measure(outcome.RATIO_SD, "spread", 0, log=True, window=10)]
    out = tmp_path / "new" / "figure.png"
    assert draw({"one": arms, "two": arms}, measures, "title", out) == out
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 10_000
    assert [path.name for path in out.parent.iterdir()] == ["figure.png"]
    with pytest.raises(InputError, match="cannot be written"):
        draw({"one": arms}, measures, "title", out / "figure.png")


def test_arms_look_alike_in_all_panels_and_axes_are_shared():
    left = {"a": [journal(0.2, 0.4)], "b": [journal(0.2, 0.9)]}
    figure = make_figure({"one": left, "two": {"b": left["b"]}}, [PASS], "what\nof whom")
    one, two = figure.axes
    assert to_hex(two.lines[0].get_color()) == COLOURS[1].lower()
    assert one.get_ylim() == two.get_ylim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    with pytest.raises(InputError, match="8 arms in one figure; at most 7"):
        make_figure({"one": {str(i): [] for i in range(8)}}, [PASS], "title")


def test_the_heading_says_what_is_shown_and_of_whom():
    real = heading(make_grid(about="who learns"))
    assert real.startswith(
        "small: who learns (OLMo-GSM8K)\nmean over 3 seeds; band: 95% t interval"
    )
    assert "pipeline check" not in real
    assert "\npipeline check" in heading(make_grid(axes=TINY))


def test_the_replay_study_is_six_arms_at_three_learning_rates(tmp_path):
    grid, store = load_grid(replay.HERE / "replay.yaml"), make_store(tmp_path)
    assert len(grid.cells()) == 54
    panels = read_panels(grid, store)
    assert list(panels) == [f"learning rate {lr}" for lr in ("3e-5", "9e-5", "3e-4")]
    names = list(panels["learning rate 3e-5"])
    assert (len(names), names[0], names[-1]) == (6, "(32,1,0) raw", "(32,8,0) grpo")
    assert names[2] == "(32,1,7) grpo, replay in baseline mode, base-filled"
    assert all(list(column) == names for column in panels.values())
    assert notes(panels["learning rate 3e-5"]["(32,1,0) raw"]) == "3 of 3 waiting"


def test_the_table_of_the_replay_study(tmp_path):
    grid, store = load_grid(replay.HERE / "replay.yaml"), make_store(tmp_path)
    for cell in (c for c in grid.cells() if c.replay and c.lr == 3e-5):
        lines = {0: evaluated(0.5), cell.rounds: evaluated((6 + cell.seed) / 10)}
        for r in range(1, cell.rounds + 1):
            numbers = {outcome.GROUP_SIZE: min(8, r // 20 + cell.seed), outcome.AGE_MEAN: r}
            lines[r] = lines.get(r, {}) | numbers
        finish(grid, cell, store, lines)
    rows = list(replay.rows(grid, store))
    assert rows[0][2:] == ["—", "0/3", "—", "—", "—", "3 of 3 waiting"]
    half = T_2 * 0.1 / math.sqrt(3)
    assert rows[3][2:4] == [f"0.700 [{0.7 - half:.3f}, {0.7 + half:.3f}]", "3/3"]
    assert rows[3][4:] == ["120 to 160", "152.5 [152.5, 152.5]", "—", ""]


def test_matplotlib_is_loaded_by_who_draws_alone():
    code = "import sys, analysis.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
