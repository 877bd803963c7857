"""Charts: drawn is what was estimated, what is missing is told, equal tables give equal bytes."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import grids
from analysis.chart_evaluations import curve_of, evaluations
from analysis.chart_page import shown, wrapped
from analysis.chart_panels import FULL, looks, of_pairs
from analysis.chart_style import Look
from analysis.charts import FIGURES, caption_of, figures_of, save
from analysis.figures import Journal
from analysis.intervals import Estimate, mean_t
from analysis.runs import Run
from analysis.study import Study
from grids import InputError, load_grid, outcome
from tests.synthetic_store import make_grid
from tests.told_tables import (
    CONTRAST,
    PAIR,
    PLANE,
    T_2,
    Told,
    drawn,
    learns,
    lines_of,
    panel_names,
    run_of,
    tabled,
    texts_of,
)

GRIDS = Path(grids.__file__).parent
TINY = {"model": ["tiny-qwen2", "tiny-llama"], "dataset": ["tiny-sums"]}


# ---- learning curves


def test_a_panel_a_pair_and_a_line_an_arm_with_the_band_of_its_estimates():
    figure = drawn("curves", make_grid(axes={"dataset": ["gsm8k", "math"], "batch": [32, 64]}))
    assert panel_names(figure) == [PAIR, "OLMo-MATH"]
    small, large = lines_of(figure.axes[0])
    assert list(small.get_xdata()) == [0, 50, 100]
    assert list(small.get_ydata()) == pytest.approx([0.2, (0.2 + 0.432) / 2, 0.432])
    assert large.get_ydata()[-1] == pytest.approx(0.464)
    assert small.get_color() != large.get_color() and small.get_marker() != large.get_marker()
    band = figure.axes[0].collections[0].get_paths()[0].get_extents()
    half = T_2 * 0.1 / math.sqrt(3)
    assert (band.y1, band.x1) == pytest.approx((0.432 + half, 100), abs=1e-6)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["(32,1,0) raw", "(64,1,0) raw"]
    assert "n = 3 seeds an arm; band: 95% t interval" in caption_of(figure)


def test_panels_are_equally_high_wherever_they_lie():
    axes = {"dataset": ["gsm8k", "math"], "batch": [32, 64]}

    def run(cell):
        return run_of(cell, *((0.0, 0.02) if cell.dataset == "math" else (0.1, 0.9)))

    one, two = drawn("curves", make_grid(axes=axes, base={"rounds": 50}), run).axes
    heights = [high - low for low, high in (one.get_ylim(), two.get_ylim())]
    assert heights[0] == pytest.approx(heights[1])
    assert one.get_ylim()[0] <= 0.1 and one.get_ylim()[1] >= 0.9
    assert two.get_ylim()[0] == pytest.approx(-0.02)  # no further than Pass@1 goes


def test_tokens_are_the_mean_over_seeds_of_what_each_generated():
    def run(cell):
        return run_of(cell, 0.2, 0.3, 0.5, tokens=1000.0 + 100 * cell.seed)

    (axes,) = drawn("curves-by-tokens", make_grid(), run).axes
    (line,) = lines_of(axes)
    assert axes.get_xscale() == "linear"
    assert list(line.get_xdata()) == pytest.approx([0, 50 * 1.1 * 32 / 1000, 100 * 1.1 * 32 / 1000])
    figure = drawn("curves-by-tokens", make_grid())
    assert "tokens generated until then (millions)" in texts_of(figure)


def test_costs_far_apart_have_a_log_axis_that_the_base_has_no_place_on():
    figure = drawn("curves-by-tokens", make_grid(axes={"batch": [32, 512]}))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    base, *arms = sorted(lines_of(axes), key=lambda line: line.get_xdata()[0])
    assert list(base.get_ydata()) == [0.2, 0.2]  # a level, from one end to the other
    assert [x for line in arms for x in line.get_xdata()] == pytest.approx([1.6, 3.2, 25.6, 51.2])
    assert "Dotted level: the base policy" in caption_of(figure)


def test_histories_are_asked_of_a_source_that_has_them():
    class Server(Told):
        def history(self, cell, metrics):
            scores = {0: 0.2, 50: 0.3, 100: 0.4, 150: 0.9}
            return {
                outcome.TEST_PASS: scores,
                outcome.GENERATED_TOKENS: dict.fromkeys((50, 100), 7),
            }

    cell = make_grid().cells()[0]
    told = Run(cell, "finished", "", 100, 100)
    curve = evaluations(told, Study(Server(None)))
    assert [line[outcome.TEST_PASS] for line in curve.values()] == [0.2, 0.3, 0.4]  # its horizon
    assert curve[100][outcome.GENERATED_TOKENS] == 14
    assert evaluations(told, Study(Told(None))) == {}
    assert evaluations(learns(cell), Study(Server(None))) == learns(cell).training.curve


def test_one_seed_is_a_line_without_a_band():
    (axes,) = drawn("curves", make_grid(seeds=[0])).axes
    assert len(lines_of(axes)) == 1
    paths = [path for band in axes.collections for path in band.get_paths()]
    assert not any(len(path.vertices) for path in paths)


def test_what_no_seed_scored_is_a_gap_and_what_one_lacks_has_a_ring():
    figure = drawn("curves", make_grid(), lambda cell: run_of(cell, 0.2, math.nan, 0.5))
    (line,) = lines_of(figure.axes[0])
    assert [math.isnan(y) for y in line.get_ydata()] == [False, True, False]

    def run(cell):
        return run_of(cell, 0.2, math.nan if cell.seed else 0.4, 0.5)

    (axes,) = drawn("curves", make_grid(), run).axes
    (ring,) = [line for line in axes.lines if line.get_gid() == "ring"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([50], [0.4])


def test_a_run_that_broke_ends_in_a_cross_and_the_rest_goes_on_dotted():
    def run(cell):
        if cell.seed:
            return learns(cell)
        return run_of(cell, 0.2, 0.05, state="diverged")

    figure = drawn("curves", make_grid(), run)
    (axes,) = figure.axes
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [list(line.get_ydata()) for line in crosses] == [[0.2, 0.05]]
    (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert list(dotted.get_ydata()) == pytest.approx([0.482])  # the two seeds that are left
    assert "1 diverged of 3 runs" in texts_of(figure)
    assert f"counted at their last evaluation: {PAIR} (32,1,0) raw s0." in caption_of(figure)


def test_runs_without_a_number_are_told_and_not_drawn():
    states = {0: "failed", 1: "waiting"}

    def run(cell):
        return Run(cell, states[cell.seed]) if cell.seed in states else learns(cell)

    figure = drawn("curves", make_grid(), run)
    assert "1 failed, 1 waiting of 3 runs" in texts_of(figure)
    assert "n = 1 of 3 seeds an arm" in caption_of(figure)
    assert "Not drawn, of 3 runs: 1 failed, 1 waiting." in caption_of(figure)


def test_a_broken_run_begins_where_a_log_axis_does():
    def run(cell):
        return run_of(cell, 0.2, 0.3, 0.1, state="diverged")

    (axes,) = drawn("curves-by-tokens", make_grid(axes={"batch": [32, 512]}, seeds=[0]), run).axes
    starts = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "x"]
    assert starts == pytest.approx([1.6, 25.6])


def test_a_run_that_is_in_no_number_is_in_no_curve():
    table, study = tabled(make_grid())
    (row,) = table.rows
    numbers = replace(row.numbers, seeds=(0, 1), missing={2: "its answers are damaged"})
    table = replace(table, rows=(replace(row, numbers=numbers),))
    figure = FIGURES["curves"].make(table, study)
    (line,) = lines_of(figure.axes[0])
    assert line.get_ydata()[-1] == pytest.approx(0.382)  # of 0.332 and 0.432
    assert "Without usable answers, hence not drawn: 1." in caption_of(figure)
    assert "n = 2 of 3 seeds an arm" in caption_of(figure)


def test_a_curve_lies_at_the_mean_of_where_its_seeds_lie():
    seeds = [Journal(s, "finished", {10: {outcome.TEST_PASS: s / 10}}) for s in (2, 4)]
    found = curve_of(seeds, lambda round, scores: 100 * scores[outcome.TEST_PASS])
    assert (found.x, found.means[0].value) == ((30,), pytest.approx(0.3))
    assert (found.solid, found.seeds) == (1, 2)


# ---- many arms


def test_a_pair_with_many_arms_has_a_panel_a_kind():
    axes = {"batch": [32, 64, 128, 256], "rollouts": [1, 2, 4, 8], "advantage": ["raw", "grpo"]}
    grid = make_grid(axes=axes, budget={"samples_per_step": 256})
    figure = drawn("curves", grid)
    assert panel_names(figure) == [f"{PAIR}, raw", f"{PAIR}, grpo"]
    assert [len(lines_of(axes)) for axes in figure.axes] == [4, 4]
    assert "The same runs: (256,1,0) raw and (256,1,0) grpo." in caption_of(figure)


def test_a_merged_arm_is_drawn_once_where_its_twin_is():
    axes = {"rollouts": [1, 2], "advantage": ["raw", "grpo"]}
    figure = drawn("curves", make_grid(axes=axes))
    assert len(lines_of(figure.axes[0])) == 3 <= FULL
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["(32,1,0) raw = (32,1,0) grpo", "(32,2,0) raw", "(32,2,0) grpo"]


def test_any_number_of_arms_is_drawn_and_none_looks_like_another():
    axes = {"lr": [1e-6, 2e-6, 3e-6], "rollouts": [1, 2, 4, 8, 16], "advantage": ["raw", "grpo"]}
    table, study = tabled(make_grid(axes=axes, seeds=[0]))
    found = looks(of_pairs(table))
    assert len(found) == 27 == len(set(map(repr, found.values())))
    assert len(FIGURES["curves"].make(table, study).axes) == 6
    every = {repr(Look.of(shape, kind)) for shape in range(49) for kind in range(8)}
    assert len(every) == 49 * 8


def test_models_on_all_data_sets_stand_in_columns():
    axes = {"model": ["olmo-2-1b-instruct", "qwen2.5-0.5b-instruct"], "dataset": ["gsm8k", "math"]}
    (top, bottom) = of_pairs(tabled(make_grid(axes=axes))[0])
    assert [panel.name for panel in top] == ["OLMo-GSM8K", "Qwen-GSM8K"]
    assert [panel.name for panel in bottom] == ["OLMo-MATH", "Qwen-MATH"]


# ---- all of them


def test_which_figures_apply():
    def names(**axes):
        table, _ = tabled(make_grid(axes=axes))
        return [name for name, chart in FIGURES.items() if chart.applies(table)]

    assert names() == ["curves", "curves-by-tokens"]
    assert "gain-by-cost" in names(batch=[32, 64]) and "batch-by-rollouts" not in names(
        batch=[32, 64]
    )
    assert list(names(batch=[32, 64], rollouts=[1, 2])) == [n for n in FIGURES if n != "contrasts"]


@pytest.mark.parametrize("found", ["waiting", "NaN", "one cell"])
def test_nothing_to_draw_is_told_in_every_figure(found):
    axes = PLANE if found != "one cell" else {}
    contrasts = [CONTRAST | {"with": {"rollouts": 2, "advantage": "raw"}}] if axes else []

    def run(cell):
        return run_of(cell, *[math.nan] * 3) if found == "NaN" else Run(cell, "waiting")

    table, study = tabled(make_grid(axes=axes, contrasts=contrasts), run)
    figures = figures_of(table, study)
    assert set(figures) == (set(FIGURES) if axes else {"curves", "curves-by-tokens"})
    for name in set(figures) & {"curves", "curves-by-tokens", "gain-by-cost"}:
        why = "no evaluation is known" if found == "NaN" and "curves" in name else "no finished run"
        assert texts_of(figures[name]).count(why) == len(figures[name].axes)
        FigureCanvasAgg(figures[name]).draw()


@pytest.mark.parametrize("name", ["tradeoff", "replay"])
def test_print_can_be_read_and_nothing_is_cut_off(name):
    table, study = tabled(load_grid(GRIDS / "paper" / f"{name}.yaml"))
    for figure in figures_of(table, study).values():
        assert figure.get_figwidth() == 7
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 7
        FigureCanvasAgg(figure).draw()
        drawn_in, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn_in.x0 >= 0 and drawn_in.y0 >= 0
        assert drawn_in.x1 <= width and drawn_in.y1 <= height


def test_embedded_models_are_marked_as_a_pipeline_check():
    axes = TINY | {"batch": [32, 64]}
    table, study = tabled(make_grid(axes=axes))
    for figure in figures_of(table, study).values():
        assert any(text.startswith("pipeline check: the tasks") for text in texts_of(figure))
    real = figures_of(*tabled(make_grid()))["curves"]
    assert not any("pipeline check" in text for text in texts_of(real))


def test_equal_tables_give_equal_bytes_whatever_the_readers_settings(tmp_path):
    import matplotlib

    grid = make_grid(section="4.4", axes={"batch": [32, 64]})

    def saved(folder):
        return {
            f"{name}.{form}": save(figure, tmp_path / folder / f"{name}.{form}").read_bytes()
            for name, figure in figures_of(*tabled(grid)).items()
            for form in ("png", "pdf", "svg")
        }

    first = saved("first")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "axes.grid": False}):
        second = saved("second")
    names = ["curves", "curves-by-tokens", "gain-by-cost", "variance-shares"]
    assert list(first) == [f"{name}.{form}" for name in names for form in ("png", "pdf", "svg")]
    assert sorted(p.name for p in (tmp_path / "first").iterdir()) == sorted(first)
    assert [name for name in first if first[name] != second[name]] == []


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    figure = drawn("curves", make_grid(seeds=[0]))
    with pytest.raises(InputError, match=r"x\.gif: figures are written as pdf, png, svg"):
        save(figure, tmp_path / "x.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save(figure, tmp_path / "file" / "x.png")


def test_text_is_wrapped_to_what_fits():
    assert wrapped("") == [] and wrapped("a\nb") == ["a", "b"]
    assert wrapped("word " * 3, inches=0.1) == ["word"] * 3
    narrow, wide = (len(wrapped(f"{letter * 9} " * 40)) for letter in "iM")
    assert wide > 2 * narrow


def test_an_axis_holds_all_values_and_cuts_off_wide_intervals():
    wide = Estimate(0.5, 1, -5, 6, 1, 2)
    assert shown([mean_t([0.3]), wide], 0.05) == pytest.approx((0.3 - 0.12, 0.5 + 0.12))
    assert shown([mean_t([0.3])], 0.05) == pytest.approx((0.275, 0.325))


def test_matplotlib_is_loaded_by_who_draws_and_pyplot_by_nobody():
    code = (
        "import sys, analysis.charts; assert 'matplotlib' not in sys.modules; "
        "from tests.test_charts import *; figures_of(*tabled(make_grid())); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
