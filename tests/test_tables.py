"""Tables of synthetic stores: hand-computed means, every state named, reported numbers placed."""

import math
from pathlib import Path

import pandas as pd
import pytest

import grids
from analysis.arms import arms
from analysis.markdown import PIPELINE_CHECK, markdown
from analysis.report import write_tables
from analysis.reported import reported_numbers
from analysis.tables import frame, make_table
from grids import InputError, load_grid
from tests.synthetic_store import (
    evaluated,
    fail,
    finish,
    make_grid,
    make_store,
    paths_of,
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


def seed_cell(grid, seed):
    return next(cell for cell in grid.cells() if cell.seed == seed)


def row_of(grid, store, arm):
    table = frame(make_table(grid, study_of(grid, store)))
    return table[table.arm == arm].iloc[0]


def test_means_and_intervals_by_hand(store):
    grid = make_grid()
    finish_all(grid, store)
    row = row_of(grid, store, "(32,1,0) raw")
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert row.final_test_value == pytest.approx(0.5)
    assert row.final_test_low == pytest.approx(0.5 - half, abs=1e-6)
    assert row.gain_test_value == pytest.approx(0.25)
    assert row.gain_test_high == pytest.approx(0.25 + half, abs=1e-6)
    assert row.gain_train_value == pytest.approx(0.3)
    assert (row.base_test_value, row.final_test_n, row.seeds_counted) == (0.25, 3, 3)
    text = markdown(make_table(grid, study_of(grid, store)))
    assert "| 3/3   | 0.250     | 0.500 [0.252, 0.748] | +0.250 [+0.002, +0.498] |" in text
    assert "greedy decoding, after 100 rounds; test questions: 1319" in text
    assert "mean over seeds with 95% t interval" in text


def test_a_shared_base_has_no_interval(store):
    grid = make_grid()
    finish_all(grid, store)
    assert math.isnan(row_of(grid, store, "(32,1,0) raw").base_test_se)


def test_what_did_not_finish_is_named_and_not_counted(store):
    grid = make_grid(seeds=[0, 1, 2, 3, 4])
    finish(grid, seed_cell(grid, 0), store, {0: evaluated(0.2), 100: evaluated(0.5)})
    fail(grid, seed_cell(grid, 1), store, "OutOfMemoryError: too | much\nof it")
    write_journal(paths_of(grid, seed_cell(grid, 2), store), {0: evaluated(0.2), 40: {}})
    finish(grid, seed_cell(grid, 3), store, {0: evaluated(0.2)}).done.write_text("{")
    row = row_of(grid, store, "(32,1,0) raw")
    assert (row.final_test_value, row.final_test_n) == (0.5, 1)
    assert math.isnan(row.final_test_low)
    text = markdown(make_table(grid, study_of(grid, store)))
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
    assert "s2 diverged: at round 40: loss is NaN" in markdown(make_table(grid, study_of(grid, store)))


def test_no_finished_seed_shows_no_number_and_why(store):
    grid = make_grid()
    for cell in grid.cells():
        write_journal(paths_of(grid, cell, store), {0: evaluated(0.25), 10 + cell.seed: {}})
    text = markdown(make_table(grid, study_of(grid, store)))
    assert "| 0/3   | 0.250     | —" in text
    assert "3 of 3 seeds unfinished at most at round 12 of 100" in text
    assert math.isnan(row_of(grid, store, "(32,1,0) raw").final_test_value)


def test_a_seed_without_the_primary_number_is_named(store):
    grid = make_grid(base={"rounds": 100, "eval": {"primary": "sampled", "samples": 4}})
    finish_all(grid, store)
    text = markdown(make_table(grid, study_of(grid, store)))
    assert "sampled decoding (K = 4 at temperature 1)" in text
    assert "no sampled final test Pass@1 of s0, s1, s2" in text


def test_a_merged_arm_is_shown_with_its_twins_numbers(store):
    grid = make_grid(SHAPES)
    finish_all(grid, store)
    table = frame(make_table(grid, study_of(grid, store))).set_index("arm")
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
        table = frame(make_table(grids[rounds], store)).set_index("arm")
        assert table.loc["(32,1,0) raw"].final_test_value == value


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(GRIDS)))
def test_every_shipped_grid_makes_a_table_of_an_empty_store(path, store):
    grid = load_grid(path)
    table = frame(make_table(grid, study_of(grid, store)))
    values = table.filter(regex="^(base|final|gain)_.*_(value|se|low|high)$")
    assert len(values.columns) == 24 and values.isna().all(axis=None)
    assert (table.seeds_waiting == len(grid.seeds)).all()
    assert set(table.arm_key) == {cell.arm_key for cell in grid.cells()}
    assert "seeds waiting" in markdown(make_table(grid, study_of(grid, store)))


def test_the_minimalist_table_has_six_pairs_and_the_stated_gains(store):
    grid = load_grid(GRIDS / "paper" / "minimalist.yaml")
    cells = {
        cell.seed: cell for cell in grid.cells() if cell.label.startswith("olmo-2-1b-instruct g")
    }
    for seed, cell in cells.items():
        finish(grid, cell, store, {0: evaluated(0.1), 1000: evaluated(0.6 + seed / 100)})
    table = frame(make_table(grid, study_of(grid, store))).set_index("pair")
    assert list(table.index) == [
        f"{model}-{dataset}" for model in ("Qwen", "LLaMA", "OLMo") for dataset in ("GSM8K", "MATH")
    ]
    assert (table.loc["OLMo-GSM8K"].reported_gain, table.loc["OLMo-MATH"].reported_gain) == (0.6, 0)
    assert table.reported_gain.notna().sum() == 2
    lines = markdown(make_table(grid, study_of(grid, store))).splitlines()
    row = next(line for line in lines if line.startswith("| OLMo-GSM8K"))
    assert "0.620" in row and "gain 0.60" in row
    assert any("assumed" in line for line in lines)


def test_numbers_of_an_unknown_arm_stand_beside_no_arm(store):
    grid = load_grid(GRIDS / "paper" / "tradeoff.yaml")
    table = make_table(grid, study_of(grid, store))
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
    table = frame(make_table(grid, study_of(grid, store))).set_index("settings")
    assert table.loc["lr=1e-06"].reported_gain == 0.6
    assert math.isnan(table.loc["lr=0.0001"].reported_gain)


def test_a_grid_that_is_no_section_has_no_reported_number(store):
    assert math.isnan(row_of(make_grid(), store, "(32,1,0) raw").reported_gain)


def test_every_reported_number_is_in_some_table(store):
    texts = [markdown(table_of(load_grid(p), store)) for p in (GRIDS / "paper").glob("*.yaml")]
    for number in reported_numbers():
        assert any(number.text in text for text in texts), number


def test_embedded_tables_claim_nothing_of_the_paper(store):
    table = make_table(load_grid(GRIDS / "mini" / "minimalist.yaml"), store)
    text = markdown(table)
    assert PIPELINE_CHECK in text
    assert "tiny-olmo2 tiny-sums" in text and "tiny-olmo2 stands in for OLMo" in text
    assert "reported" not in text.lower() and frame(table).reported_gain.isna().all()


def test_one_seeds_number_changes_just_its_row(store, tmp_path):
    grid = make_grid({"rollouts": [1, 8]})
    finish_all(grid, store)
    before = (markdown(make_table(grid, study_of(grid, store))).splitlines(), frame(make_table(grid, study_of(grid, store))))
    changed = next(cell for cell in grid.cells() if cell.rollouts == 8 and cell.seed == 1)
    finish(grid, changed, store, {0: evaluated(0.25, 0.3), 100: evaluated(0.55, 0.6)})
    after = (markdown(make_table(grid, study_of(grid, store))).splitlines(), frame(make_table(grid, study_of(grid, store))))
    differ = [a for a, b in zip(*(lines for lines, _ in (before, after)), strict=True) if a != b]
    assert len(differ) == 1 and "(32,8,0) raw" in differ[0]
    same = (before[1] == after[1]) | (before[1].isna() & after[1].isna())
    assert same.all(axis=1).tolist() == [True, False]


def test_rows_line_up(store):
    lines = markdown(make_table(make_grid(SHAPES), store)).splitlines()
    assert len({len(line) for line in lines if line.startswith("|")}) == 1


def test_files_and_csv_round_trip(store, tmp_path):
    first, second = make_grid(name="zebra"), make_grid(SHAPES, name="ants", section="4.3")
    finish_all(first, store, (0.1, 1 / 3, 0.7))
    out = tmp_path / "deep" / "out"
    paths = write_tables([first, second], store, out)
    names = ["4.3-ants.md", "4.3-ants.csv", "zebra.md", "zebra.csv", "tables.md"]
    assert [path.name for path in paths] == names
    assert sorted(p.name for p in out.iterdir()) == sorted(names)
    joined = paths[-1].read_text()
    assert joined.index("# 4.3 ants") < joined.index("# zebra")
    read = pd.read_csv(out / "zebra.csv")
    table = frame(make_table(first, store))
    numeric = table.select_dtypes("number").columns
    assert len(numeric) > 30
    pd.testing.assert_frame_equal(
        read[numeric], table[numeric], check_exact=True, check_dtype=False
    )
    waiting = pd.read_csv(out / "4.3-ants.csv").set_index("arm").loc["(32,8,0) raw"]
    assert math.isnan(waiting.gain_train_value) and waiting.gain_train_n == 0


def test_the_same_store_gives_the_same_bytes(store, tmp_path):
    grid = make_grid(SHAPES)
    finish_all(grid, store)
    texts = [
        [path.read_bytes() for path in write_tables([grid], store, tmp_path / name)]
        for name in ("one", "two")
    ]
    assert texts[0] == texts[1]


def test_equal_names_of_two_studies_do_not_overwrite(store, tmp_path):
    pair = [make_grid(study="one"), make_grid(study="two"), make_grid(name="tables")]
    names = [path.name for path in write_tables(pair, store, tmp_path)]
    assert len(set(names)) == 7 and names[-1] == "tables.md"
    assert {"small-one.md", "small-two.md", "tables-test.md"} < set(names)


def test_a_grid_given_twice_is_told(store, tmp_path):
    with pytest.raises(InputError, match="2 tables would be written to small-test.md"):
        write_tables([make_grid(), make_grid()], store, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_file_in_the_folders_place_is_told(store, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out: the tables cannot be written there"):
        write_tables([make_grid()], store, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_section_cannot_lead_out_of_the_folder(store, tmp_path):
    paths = write_tables([make_grid(section="../../x")], store, tmp_path / "out")
    assert all(path.parent == tmp_path / "out" for path in paths)
