"""Stored answers under another grader: each as if graded by hand, and whole or not at all."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grids import plugin
from grids.catalog import DatasetSpec, pinned
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import CellPaths, read_json
from orchestrator.change import Change
from tests.rescoring import own_files, trained
from workers.data import load_questions
from workers.grading import GRADERS
from workers.lease import Held, held
from workers.regrade import golds_of, regrade_cell

PLUGIN = """
from workers.grading import Grade

def picky(completion, gold):
    if "7" in completion:
        raise ValueError("no sevens\\nat all")
    return Grade(completion.endswith(gold), True, None)

GRADERS = {"picky": picky}
"""
KILLED = """
import os, sys
from pathlib import Path
from grids.cell import Cell
from workers import named, regrade
named.write_json = lambda *_: os._exit(9)  # the answers are there by then, what tells is not
cell = Cell.model_validate_json(Path(sys.argv[1], "cell.json").read_text())
regrade.regrade_cell(cell.key, cell, "killed", Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A trained cell whose answers have all the forms that the graders part on."""
    made = trained(tmp_path_factory.mktemp("study"))
    table = pq.read_table(made.paths.outcomes)
    texts = [_spoilt(i, text) for i, text in enumerate(table["completion"].to_pylist())]
    column = table.column_names.index("completion")
    pq.write_table(table.set_column(column, "completion", pa.array(texts)), made.paths.outcomes)
    return made


def _spoilt(i, text):
    forms = (text, text.replace("#### ", "####"), text.replace("#### ", "is "), "none")
    return forms[i % 4]


@pytest.fixture
def made(kept, tmp_path):
    shutil.copytree(kept.paths.directory, tmp_path / "cell")
    return kept._replace(paths=CellPaths(tmp_path / "cell"))


def regrade(made, grader, name="new", plugins=(), of=None):
    asked = Change(grader=grader, plugins=plugins).of(made.cell)
    return regrade_cell(made.cell.key, asked, name, made.paths.directory, of)


def rows(path):
    return pq.read_table(path).to_pandas()


@pytest.mark.parametrize("grader", ["gsm8k", "gsm8k-flexible", "math", "math-flexible"])
def test_every_answer_is_graded_as_if_by_hand_and_nothing_else_changes(made, grader):
    files, before = own_files(made.paths), rows(made.paths.outcomes)
    record = regrade(made, grader).record
    after = rows(made.paths.evaluation("new").outcomes)
    questions = load_questions(made.cell.dataset_spec)
    golds = {q.id: q.gold for q in (*questions.train, *questions.test)}
    for row in after.itertuples():
        grade = GRADERS[grader](row.completion, golds[row.question])
        assert (row.correct, row.parsed) == (float(grade.correct), grade.parsed)
    others = [name for name in before.columns if name not in ("correct", "parsed")]
    assert after[others].equals(before[others]) and list(after.columns) == list(before.columns)
    chosen = after.query("phase == 'final' and split == 'test' and decoding == 'sampled'")
    assert record["final"]["test/pass_at_1_sampled"] == chosen.correct.mean()
    assert record["final"]["test/parsed_sampled"] == chosen.parsed.mean()
    assert own_files(made.paths) == files
    assert (record["key"], record["round"], record["unscored"]) == (made.cell.key, 4, 0)


def test_the_forms_tell_the_graders_apart(made):
    means = {g: regrade(made, g, g).record["final"]["test/parsed"] for g in list(GRADERS)[:2]}
    assert 0 < means["gsm8k"] < means["gsm8k-flexible"]


def test_the_cells_own_grader_gives_the_cells_own_numbers(tmp_path):
    made = trained(tmp_path)
    record, done = regrade(made, "gsm8k").record, read_json(made.paths.done)
    for phase in ("base", "final"):
        seen = ("train/pass_at_1_seen", "train/pass_at_1_unseen")
        assert record[phase] == {k: v for k, v in done[phase].items() if k not in seen}


def test_twice_is_once_and_other_answers_are_graded_anew(made):
    assert regrade(made, "gsm8k-flexible").made
    found = made.paths.evaluation("new")
    before = [found.record.read_bytes(), found.outcomes.read_bytes()]
    assert not regrade(made, "gsm8k-flexible").made
    assert [found.record.read_bytes(), found.outcomes.read_bytes()] == before
    table = pq.read_table(made.paths.outcomes)
    pq.write_table(table.slice(0, 40), made.paths.outcomes)
    assert regrade(made, "gsm8k-flexible").made and len(rows(found.outcomes)) == 40


def test_answers_of_a_named_evaluation(made):
    regrade(made, "gsm8k-flexible", "first")
    record = regrade(made, "gsm8k", "second", of="first").record
    assert record["asked"]["of"] == "first"
    direct = regrade(made, "gsm8k", "direct").record
    assert (record["base"], record["final"]) == (direct["base"], direct["final"])
    with pytest.raises(InputError, match="no stored answers"):
        regrade(made, "gsm8k", "third", of="absent")


def test_a_plug_ins_grader_that_fails_leaves_answers_unscored_and_counted(made, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    spec = plugin.read(tmp_path / "mine.py").spec
    record = regrade(made, "picky", plugins=(spec,)).record
    after = rows(made.paths.evaluation("new").outcomes)
    failed = after.completion.str.contains("7")
    assert failed.any() and not failed.all()
    assert np.isnan(after.correct[failed]).all() and not after.parsed[failed].any()
    assert not np.isnan(after.correct[~failed]).any()
    assert record["unscored"] == failed.sum()
    assert f"failed on {failed.sum()} of {len(after)} answers" in record["notes"][0]
    assert "(the first: ValueError: no sevens)" in record["notes"][0]
    test = after.query("phase == 'final' and split == 'test' and decoding == 'greedy'")
    assert record["final"]["test/unscored"] == np.isnan(test.correct).mean() > 0
    assert record["final"]["test/pass_at_1"] == pytest.approx(np.nanmean(test.correct))
    assert record["asked"]["graders"] == [["picky", spec.digest]]


def test_a_question_that_was_never_asked_stays_wrong(made, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN.replace("completion.endswith(gold)", "True"))
    spec = plugin.read(tmp_path / "mine.py").spec
    table = pq.read_table(made.paths.outcomes)
    for name, value in (("tokens", pa.array([0] * len(table))),):
        table = table.set_column(table.column_names.index(name), name, value)
    pq.write_table(table, made.paths.outcomes)
    record = regrade(made, "picky", plugins=(spec,)).record
    assert record["final"]["test/pass_at_1"] == 0 and record["unscored"] == 0


def test_a_question_that_the_data_set_lacks_is_named(made):
    table = pq.read_table(made.paths.outcomes)
    other = pa.array(["0123456789abcdef"] * len(table))
    at = table.column_names.index("question")
    pq.write_table(table.set_column(at, "question", other), made.paths.outcomes)
    with pytest.raises(InputError, match="question 0123456789abcdef .* is not in the data set"):
        regrade(made, "gsm8k-flexible")
    assert not made.paths.evaluation("new").directory.exists()


def test_a_cell_that_a_worker_holds_is_left_alone(made):
    with held(made.paths, "x"), pytest.raises(Held):
        regrade(made, "gsm8k-flexible")


def test_a_kill_leaves_nothing_half_written(made):
    folder = made.paths.directory
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert killed.returncode == 9
    assert not made.paths.evaluation("killed").directory.exists()
    assert regrade(made, "gsm8k", "killed").made
    left = [path.name for path in folder.rglob("*") if "evaluation." in path.name]
    assert sorted(left) == ["evaluation.json"]
    holder = json.loads(next(folder.glob(".lease.*/holder.json")).read_text())
    assert holder["released"] and holder["began"] == ""  # no attempt at training was lost


def test_grading_needs_no_torch():
    code = "import sys, workers.regrade, orchestrator.regrading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_question_of_both_splits_has_the_answer_of_its_own(tmp_path):
    for split, gold in (("train", "1"), ("test", "2")):
        line = json.dumps({"question": "same?", "answer": gold})
        (tmp_path / f"{split}.jsonl").write_text(line + "\n")
    spec = pinned(DatasetSpec(name="both", path=str(tmp_path)))
    found = golds_of(Cell(model="tiny-qwen2", dataset="both", dataset_spec=spec))
    assert {split: gold for (split, _), gold in found.items()} == {"train": "1", "test": "2"}
