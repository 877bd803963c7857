"""Tables under a named evaluation: its numbers, its words, and runs that lack it in no number."""

import json
import shutil

import pandas as pd
import pytest

from analysis.declared import results
from analysis.evaluated import evaluated_at
from analysis.report import open_studies
from analysis.study import Study
from analysis.tables import frame, make_table
from grids.errors import InputError
from grids.paths import write_json
from orchestrator.register import register
from tests.synthetic_store import (
    answers,
    evaluated,
    finish,
    make_grid,
    make_store,
    right_of,
    write_answers,
)
from tests.test_cli import banditgrid  # noqa: F401  (a fixture)

NAME = "lenient"


@pytest.fixture
def grid():
    axes = {"rollouts": [1, 8]}
    contrast = {
        "name": "shape", "a": {"rollouts": 1}, "b": {"rollouts": 8}, "claim": "superior",
        "margin": 0.05, "match": "prompts",
    }  # fmt: skip
    return make_grid(axes, contrasts=[contrast], section="4.5")


@pytest.fixture
def store(grid, tmp_path):
    """Runs at 0.5 by their own scores; by the evaluation at 0.6, 0.7 and 0.8, and K = 2."""
    store = make_store(tmp_path)
    store.study(grid.study).directory.mkdir(parents=True)
    register(grid, {cell.key: cell for cell in grid.cells()}, store)
    for cell in grid.cells():
        paths = finish(grid, cell, store, {0: evaluated(0.2, 0.2), 100: evaluated(0.5, 0.5)})
        evaluate(paths, cell, 0.6 + 0.1 * cell.seed)
    return store


def evaluate(paths, cell, final, round=100, **changed):
    rows, scores = [], {}
    for phase, share, at in (("base", 0.3, 0), ("final", final, round)):
        scores[phase] = evaluated(round_to_3(share), sampled=round_to_3(share))
        rows += answers(phase, at, "test", "greedy", right_of(share))
        rows += answers(phase, at, "test", "sampled", right_of(share, 2))
    found = paths.evaluation(NAME)
    found.directory.mkdir(parents=True, exist_ok=True)
    write_answers(paths_in(found), rows)
    record = {
        "name": NAME, "kind": "evaluate", "key": cell.key, "round": round, "asked": {"kind": "x"},
        "grader": "gsm8k-flexible", "dataset": "gsm8k", "max_response": 1024,
        "eval": {"samples": 2, "temperature": 0.7, "test_questions": None, "train_questions": 0},
    }  # fmt: skip
    write_json(found.record, record | scores | changed)


def round_to_3(share):
    return round(share * 300) / 300


def paths_in(found):
    """What `write_answers` expects of a cell's paths."""
    return type("Paths", (), {"directory": found.directory, "outcomes": found.outcomes})


def study_of(grid, store):
    return Study(evaluated_at(store, grid.study, NAME))


def test_the_numbers_are_the_evaluations_and_the_rest_the_runs(grid, store):
    table = make_table(grid, study_of(grid, store))
    one, _ = table.rows
    assert one.estimates["final_test"].value == pytest.approx(0.7)
    assert one.estimates["base_test"].value == pytest.approx(0.3)
    assert one.estimates["gain_test"].value == pytest.approx(0.4)
    assert one.estimates["final_test"].low < 0.7 < one.estimates["final_test"].high
    assert one.estimates["final_train"].n == 0  # it has no train questions
    assert {"pass_at_1", "pass_at_2"} <= one.estimates.keys()  # of its K, not the cell's
    assert [run.cell.seed for run in one.counted] == [0, 1, 2]
    assert [run.training.curve[100]["test/pass_at_1"] for run in one.runs] == [0.5] * 3
    assert not one.reported and not one.reported_arm_unknown
    rows = frame(table)
    assert set(rows.evaluation) == {NAME} and "pass_at_2_value" in rows


def test_a_run_without_it_is_named_and_in_no_number(grid, store):
    cells = [cell for cell in grid.cells() if cell.rollouts == 1]
    paths = [store.study(grid.study).cell(cell.key) for cell in cells]
    shutil.rmtree(paths[0].evaluation(NAME).directory)
    evaluate(paths[1], cells[1], 0.9, round=50)
    row = make_table(grid, study_of(grid, store)).rows[0]
    assert row.estimates["final_test"].value == pytest.approx(0.8)
    assert row.estimates["final_test"].n == 1
    told = "\n".join(row.details)
    assert "s0 unfinished: has no evaluation lenient" in told
    assert "s1 unfinished: evaluation lenient is of round 50; this grid reads round 100" in told
    assert "2 of 3 seeds unfinished (s0, s1)" in row.notes


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"key": "0" * 16}, "another cell's"),
        ({"final": {"test/pass_at_1": 1.5}}, "expected a share between 0 and 1"),
        ({"round": "100"}, "round: got '100'; expected int"),
    ],
)
def test_a_record_that_cannot_be_trusted_is_damaged(grid, store, changed, told):
    cell = grid.cells()[0]
    paths = store.study(grid.study).cell(cell.key)
    record = json.loads(paths.evaluation(NAME).record.read_text()) | changed
    write_json(paths.evaluation(NAME).record, record)
    run = study_of(grid, store).run(cell)
    assert run.state == "damaged" and told in run.reason
    assert f"{cell.key}/evaluations/lenient/evaluation.json" in run.reason


def test_answers_that_contradict_the_record_are_not_used(grid, store):
    cell = grid.cells()[0]
    paths = store.study(grid.study).cell(cell.key)
    record = json.loads(paths.evaluation(NAME).record.read_text())
    write_json(paths.evaluation(NAME).record, record | {"final": evaluated(0.1)})
    row = make_table(grid, study_of(grid, store)).rows[0]
    assert list(row.numbers.missing) == [0]


def test_a_grid_of_another_own_evaluation_reads_it_all_the_same(grid, store):
    """Its own scores would have to be made anew; those of the evaluation stand."""
    other = make_grid({"rollouts": [1, 8]}, base={"rounds": 100, "eval": {"samples": 8}})
    assert {run.state for row in make_table(other, Study.open(store.root, "test")).rows
            for run in row.runs} == {"unfinished"}  # fmt: skip
    row = make_table(other, study_of(grid, store)).rows[0]
    assert row.estimates["final_test"].value == pytest.approx(0.7)


def test_a_contrast_read_under_it_is_exploratory(grid, store):
    own = results(grid, open_studies([grid], store)["test"])[0]
    under = results(grid, study_of(grid, store))[0]
    assert not any("evaluation" in reason for reason in own.standing.exploratory)
    assert "read under evaluation lenient, which was not registered" in under.standing.exploratory
    assert under.comparison is not None


def test_an_evaluation_that_nobody_made_is_one_message(grid, store):
    with pytest.raises(InputError, match="an evaluation 'lenint'; there are: lenient; did you"):
        evaluated_at(store, grid.study, "lenint")
    with pytest.raises(InputError, match="named evaluations lie in a store"):
        evaluated_at("https://mlflow.example", grid.study, NAME)


def test_the_command_names_it_and_overwrites_nothing(banditgrid, grid_file, grid, store, tmp_path):  # noqa: F811
    path = grid_file(grid.model_dump_json(by_alias=True, exclude_unset=True))
    ran = banditgrid("tables", path, "--store", store.root)
    assert ran.code == 0, ran.err
    own = (tmp_path / "tables" / "4.5-small.md").read_bytes()
    ran = banditgrid("tables", path, "--store", store.root, "--evaluation", NAME)
    assert ran.code == 0, ran.err
    assert (tmp_path / "tables" / "4.5-small.md").read_bytes() == own
    text = (tmp_path / "tables-lenient" / "4.5-small.md").read_text()
    assert text.startswith("# 4.5 small (lenient)")
    assert (
        "evaluation lenient, beside the runs' own scores: kept weights on gsm8k, all test "
        "questions, greedy, K = 2 at temperature 0.7, at most 1024 tokens, graded by gsm8k-flexible"
    ) in text
    assert "numbers come from evaluation lenient of study test of the store" in text
    rows = pd.read_csv(tmp_path / "tables-lenient" / "4.5-small.csv")
    assert rows.final_test_value.tolist() == pytest.approx([0.7, 0.7])
    ran = banditgrid("tables", path, "--store", store.root, "--evaluation", "other")
    assert ran.code == 2 and "no cell has an evaluation 'other'" in ran.err
    ran = banditgrid("report", path, "--store", store.root, "--evaluation", NAME)
    assert ran.code == 0, ran.err
    page = (tmp_path / "report-lenient.html").read_text()
    assert "evaluation lenient, beside the runs" in page


def test_no_mean_is_of_several_settings(grid, store):
    """One seed of three was scored otherwise: it is in no number; of two and two, none is."""
    cells = [cell for cell in grid.cells() if cell.rollouts == 1]
    for cell in grid.cells():
        file = store.study(grid.study).cell(cell.key).cell
        file.write_text(cell.model_dump_json(), encoding="utf-8")

    def asked(cell, form):
        record = store.study(grid.study).cell(cell.key).evaluation(NAME).record
        write_json(record, json.loads(record.read_text()) | {"asked": {"kind": form}})

    asked(cells[0], "other")
    rows = make_table(grid, study_of(grid, store)).rows
    assert rows[0].estimates["final_test"].value == pytest.approx(0.75)
    assert "s0 unfinished: evaluation lenient is of other settings than most" in rows[0].details[0]
    assert rows[1].estimates["final_test"].n == 3
    for cell in cells[1:]:
        asked(cell, "other")
    rows = make_table(grid, study_of(grid, store)).rows
    assert [row.estimates["final_test"].n for row in rows] == [0, 0]
    assert "than as many others" in rows[1].details[0]
