"""Tables of synthetic stores: hand-computed means, every state named, reported numbers placed."""

import math
from pathlib import Path

import pandas as pd
import pytest

import grids
from analysis.arms import arms
from analysis.markdown import PIPELINE_CHECK, markdown
from analysis.reported import reported_numbers
from analysis.tables import frame, make_table
from grids import load_grid
from tests.synthetic_store import (
    evaluated,
    fail,
    finish,
    make_grid,
    make_store,
    paths_of,
    study_of,
    write_journal,
)

GRIDS = Path(grids.__file__).parent
SHIPPED = sorted(p for p in GRIDS.rglob("*.yaml") if p.name != "reported.yaml")
SHAPES = {"rollouts": [1, 8], "advantage": ["raw", "grpo"]}


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


def finish_all(grid, store, finals=(0.4, 0.5, 0.6)):
    """Every cell finished; its final test Pass@1 by seed, train 0.1 higher."""
    for cell in grid.cells():
        final = finals[cell.seed]
        finish(grid, cell, store, {0: evaluated(0.25, 0.3), 100: evaluated(final, final + 0.1)})


def table_of(grid, store):
    """The table of what the store holds now."""
    return make_table(grid, study_of(grid, store))


def seed_cell(grid, seed):
    return next(cell for cell in grid.cells() if cell.seed == seed)


def row_of(grid, store, arm):
    table = frame(table_of(grid, store))
    return table[table.arm == arm].iloc[0]


def test_means_and_intervals_by_hand(store):
    """Seeds 0.4, 0.5, 0.6 of 300 questions: 120 are right in all, 30 in two, 30 in one."""
    grid = make_grid()
    finish_all(grid, store)
    row = row_of(grid, store, "(32,1,0) raw")
    # sums of residuals: a seed's is 300 times -0.1, 0, 0.1; a question's 3 × 0.5, 0.5, -0.5, -1.5
    seed = 3 / 2 * 2 * 30**2 / 900**2
    question = 300 / 299 * (120 * 1.5**2 + 60 * 0.5**2 + 120 * 1.5**2) / 900**2
    cell = 900 * 0.25 / 900**2
    half = 4.302653 * math.sqrt(seed + question - cell)
    assert row.final_test_value == pytest.approx(0.5)
    assert row.final_test_low == pytest.approx(0.5 - half, abs=1e-6)
    assert row.final_test_high == pytest.approx(0.5 + half, abs=1e-6)
    assert (row.gain_test_value, row.gain_train_value) == pytest.approx((0.25, 0.3))
    assert (row.base_test_value, row.final_test_n, row.seeds_counted) == (0.25, 3, 3)
    assert row.final_test_seed_sd == pytest.approx(0.1)
    text = markdown(table_of(grid, store))
    assert f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]" in text
    assert "greedy decoding, after 100 rounds; test questions: 1319" in text
    assert "clustered by seed and by question" in text


def test_a_shared_base_has_an_interval_over_its_questions(store):
    grid = make_grid()
    finish_all(grid, store)
    row = row_of(grid, store, "(32,1,0) raw")
    assert (row.base_test_low, row.base_test_high) == pytest.approx((0.2044, 0.3020), abs=1e-4)
    assert row.base_test_n == 300


def test_what_did_not_finish_is_named_and_not_counted(store):
    grid = make_grid(seeds=[0, 1, 2, 3, 4])
    finish(grid, seed_cell(grid, 0), store, {0: evaluated(0.2), 100: evaluated(0.5)})
    fail(grid, seed_cell(grid, 1), store, "OutOfMemoryError: too | much\nof it")
    write_journal(paths_of(grid, seed_cell(grid, 2), store), {0: evaluated(0.2), 40: {}})
    finish(grid, seed_cell(grid, 3), store, {0: evaluated(0.2)}).done.write_text("{")
    row = row_of(grid, store, "(32,1,0) raw")
    assert (row.final_test_value, row.final_test_n) == (0.5, 1)
    assert math.isnan(row.final_test_low)
    text = markdown(table_of(grid, store))
    for note in (
        "1 of 5 seeds failed (s1)",
        "1 of 5 seeds unfinished at round 40 of 100 (s2)",
        "1 of 5 seeds damaged (s3)",
        "1 of 5 seeds waiting (s4)",
        "OLMo-GSM8K (32,1,0) raw s1 failed: OutOfMemoryError: too \\| much of it",
        "done.json: not valid JSON",
        "| 1/5   |",
        "0.500 (n=1)",
    ):
        assert note in text, note


def test_a_diverged_seed_is_counted_and_named(store):
    grid = make_grid()
    finish_all(grid, store)
    lines = {0: evaluated(0.25, 0.3), 30: evaluated(0.1, 0.1), 40: {}}
    changed = {"status": "diverged", "reason": "loss is NaN", "diverged_round": 40}
    finish(grid, seed_cell(grid, 2), store, lines, final=lines[30], **changed)
    row = row_of(grid, store, "(32,1,0) raw")
    assert row.final_test_value == pytest.approx((0.4 + 0.5 + 0.1) / 3)
    assert (row.seeds_finished, row.seeds_diverged, row.seeds_counted) == (2, 1, 3)
    assert "diverged: s2 at round 40 (counted at its last evaluation, round 30)" in row.notes
    assert "s2 diverged: at round 40: loss is NaN" in markdown(table_of(grid, store))


def test_no_finished_seed_shows_no_number_and_why(store):
    grid = make_grid()
    for cell in grid.cells():
        write_journal(paths_of(grid, cell, store), {0: evaluated(0.25), 10 + cell.seed: {}})
    text = markdown(table_of(grid, store))
    assert "| 0/3   | 0.250     | —" in text
    assert "3 of 3 seeds unfinished at most at round 12 of 100" in text
    assert math.isnan(row_of(grid, store, "(32,1,0) raw").final_test_value)


def test_a_seed_without_the_primary_number_is_named(store):
    grid = make_grid(base={"rounds": 100, "eval": {"primary": "sampled", "samples": 4}})
    finish_all(grid, store)
    text = markdown(table_of(grid, store))
    assert "sampled decoding (K = 4 at temperature 1)" in text
    assert "no usable answers of s0, s1, s2" in text
    assert "outcomes.parquet: has no final test sampled answers" in text


def test_a_merged_arm_is_shown_with_its_twins_numbers(store):
    grid = make_grid(SHAPES)
    finish_all(grid, store)
    table = frame(table_of(grid, store)).set_index("arm")
    assert list(table.index) == ["(32,1,0) raw", "(32,1,0) grpo", "(32,8,0) raw", "(32,8,0) grpo"]
    merged, twin = table.loc["(32,1,0) grpo"], table.loc["(32,1,0) raw"]
    assert merged.final_test_value == twin.final_test_value
    assert merged.same_runs_as == "(32,1,0) raw"
    assert "same runs as (32,1,0) raw" in merged.notes
    assert table.same_runs_as.notna().sum() == 1


def test_another_axis_is_part_of_an_arms_name(store):
    grid = make_grid({"lr": [1e-6, 1e-5], "kl": [0.0, 0.001]})
    labels = [arm.label for arm in arms(grid)]
    assert labels[-1] == "(32,1,0) raw lr=1e-05 kl=0.001"
    assert len(set(labels)) == 4


def test_a_merged_horizon_is_read_at_its_own_round(store):
    grids = {rounds: make_grid(base={"rounds": rounds}) for rounds in (50, 100)}
    short, long = (grid.cells()[0] for grid in grids.values())
    assert short.key == long.key
    lines = {0: evaluated(0.2), 50: evaluated(0.4), 100: evaluated(0.6)}
    finish(grids[100], long, store, lines)
    for rounds, value in ((50, 0.4), (100, 0.6)):
        table = frame(table_of(grids[rounds], store)).set_index("arm")
        assert table.loc["(32,1,0) raw"].final_test_value == value


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(GRIDS)))
def test_every_shipped_grid_makes_a_table_of_an_empty_store(path, store):
    grid = load_grid(path)
    table = frame(table_of(grid, store))
    values = table.filter(regex="^(base|final|gain)_.*_(value|se|low|high)$")
    assert len(values.columns) == 24 and values.isna().all(axis=None)
    assert (table.seeds_waiting == len(grid.seeds)).all()
    assert set(table.arm_key) == {cell.arm_key for cell in grid.cells()}
    assert "seeds waiting" in markdown(table_of(grid, store))


def test_the_minimalist_table_has_six_pairs_and_the_stated_gains(store):
    grid = load_grid(GRIDS / "paper" / "minimalist.yaml")
    cells = {
        cell.seed: cell for cell in grid.cells() if cell.label.startswith("olmo-2-1b-instruct g")
    }
    for seed, cell in cells.items():
        finish(grid, cell, store, {0: evaluated(0.1), 1000: evaluated(0.6 + seed / 100)})
    table = frame(table_of(grid, store)).set_index("pair")
    assert list(table.index) == [
        f"{model}-{dataset}" for model in ("Qwen", "LLaMA", "OLMo") for dataset in ("GSM8K", "MATH")
    ]
    assert (table.loc["OLMo-GSM8K"].reported_gain, table.loc["OLMo-MATH"].reported_gain) == (0.6, 0)
    assert table.reported_gain.notna().sum() == 2
    lines = markdown(table_of(grid, store)).splitlines()
    row = next(line for line in lines if line.startswith("| OLMo-GSM8K"))
    assert "0.620" in row and "gain 0.60" in row
    assert any("assumed" in line for line in lines)


def test_numbers_of_an_unknown_arm_stand_beside_no_arm(store):
    grid = load_grid(GRIDS / "paper" / "tradeoff.yaml")
    table = table_of(grid, store)
    raw = frame(table)
    assert raw.reported_gain.isna().all() and raw.reported_test.isna().all()
    above, below = markdown(table).split("Reported, arm unknown:")
    for number in ("0.40", "0.56", "0.54", "0.64", "0.66", "0.71"):
        assert number not in above and number in below
    qwen = raw[raw.model.str.startswith("qwen")]
    assert qwen.reported_arm_unknown.str.contains(r"\(32,8\): test 0.56").all()
    assert not qwen.reported_arm_unknown.str.contains("0.71").any()


def test_a_departure_from_the_papers_settings_has_no_reported_number(store):
    grid = make_grid({"lr": [1e-6, 1e-4]}, section="4.2")
    table = frame(table_of(grid, store)).set_index("settings")
    assert table.loc["lr=1e-06"].reported_gain == 0.6
    assert math.isnan(table.loc["lr=0.0001"].reported_gain)


def test_a_grid_that_is_no_section_has_no_reported_number(store):
    assert math.isnan(row_of(make_grid(), store, "(32,1,0) raw").reported_gain)


def test_every_reported_number_is_in_some_table(store):
    texts = [markdown(table_of(load_grid(p), store)) for p in (GRIDS / "paper").glob("*.yaml")]
    for number in reported_numbers():
        assert any(number.text in text for text in texts), number


def test_embedded_tables_claim_nothing_of_the_paper(store):
    table = table_of(load_grid(GRIDS / "mini" / "minimalist.yaml"), store)
    text = markdown(table)
    assert PIPELINE_CHECK in text
    assert "tiny-olmo2 tiny-sums" in text and "tiny-olmo2 stands in for OLMo" in text
    assert "reported" not in text.lower() and frame(table).reported_gain.isna().all()


def test_one_seeds_number_changes_just_its_row(store, tmp_path):
    grid = make_grid({"rollouts": [1, 8]})
    finish_all(grid, store)
    before = (markdown(table_of(grid, store)).splitlines(), frame(table_of(grid, store)))
    changed = next(cell for cell in grid.cells() if cell.rollouts == 8 and cell.seed == 1)
    finish(grid, changed, store, {0: evaluated(0.25, 0.3), 100: evaluated(0.55, 0.6)})
    after = (markdown(table_of(grid, store)).splitlines(), frame(table_of(grid, store)))
    arms = [
        [x for x in lines if x.startswith("|") and " 3/3 " in x] for lines in (before[0], after[0])
    ]
    differ = [a for a, b in zip(*arms, strict=True) if a != b]
    assert len(differ) == 1 and "(32,8,0) raw" in differ[0]
    same = (before[1] == after[1]) | (before[1].isna() & after[1].isna())
    assert same.all(axis=1).tolist() == [True, False]


def test_rows_line_up(store):
    for sheet in markdown(table_of(make_grid(SHAPES), store)).split("## "):
        assert len({len(line) for line in sheet.splitlines() if line.startswith("|")}) <= 1


def test_one_more_seed_adds_its_runs_and_changes_nothing_else(store):
    grid, wider = make_grid(SHAPES), make_grid(SHAPES, seeds=[0, 1, 2, 3])
    finish_all(grid, store)
    before, runs = frame(table_of(grid, store)), study_of(grid, store).runs()
    for cell in wider.cells():
        if cell.seed == 3:
            finish(wider, cell, store, {0: evaluated(0.25, 0.3), 100: evaluated(0.7, 0.6)})
    after, more = frame(table_of(wider, store)), study_of(wider, store).runs()
    pd.testing.assert_frame_equal(frame(table_of(grid, store)), before)
    pd.testing.assert_frame_equal(more[more.seed != 3].reset_index(drop=True), runs)
    assert len(more) == len(runs) + 3
    for old, new in zip(before.final_test_by_seed, after.final_test_by_seed, strict=True):
        assert new == f"{old} s3=0.7"
    assert after.final_test_value.to_numpy() == pytest.approx((0.4 + 0.5 + 0.6 + 0.7) / 4)
    assert (after.final_test_n == 4).all()


def test_deleted_answers_are_named_as_missing_and_in_no_number(store):
    grid = make_grid(SHAPES)
    finish_all(grid, store)
    lost = next(cell for cell in grid.cells() if cell.rollouts == 8 and cell.seed == 1)
    paths_of(grid, lost, store).outcomes.unlink()
    table = table_of(grid, store)
    arms = frame(table).set_index("arm")
    row = arms.loc["(32,8,0) raw"]
    assert (row.final_test_value, row.final_test_n) == (pytest.approx(0.5), 2)
    assert row.seeds_counted == 2 and row.seeds_without_answers == 1
    assert arms.loc["(32,1,0) raw"].seeds_counted == 3
    text = markdown(table)
    assert "no usable answers of s1" in text
    assert f"s1 has no usable answers: {lost.key}/outcomes.parquet: is missing" in text
