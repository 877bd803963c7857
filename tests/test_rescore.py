"""Kept weights under another evaluation: equal where it is unchanged, and whole or not at all."""

import shutil

import pyarrow.parquet as pq
import pytest

from grids.catalog import DATASETS, pinned
from grids.cell import Evaluation
from grids.errors import InputError
from grids.paths import CellPaths, read_json
from orchestrator.change import Change
from tests.rescoring import own_files, trained
from workers.lease import Held, held
from workers.rescore import evaluate_cell
from workers.scores import kept_base


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A trained cell, its folder and its study's shared bases."""
    return trained(tmp_path_factory.mktemp("study"))


@pytest.fixture
def made(kept, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(kept.paths.directory, tmp_path / "cell")
    return kept._replace(paths=CellPaths(tmp_path / "cell"))


def evaluate(made, asked, name="again"):
    evaluate_cell(made.cell, asked, name, made.paths.directory, made.shared)
    return made.paths.evaluation(name)


def test_the_unchanged_evaluation_gives_the_cells_own_answers_byte_for_byte(made):
    before = own_files(made.paths)
    found = evaluate(made, made.cell)
    assert found.outcomes.read_bytes() == made.paths.outcomes.read_bytes()
    record, done = read_json(found.record), read_json(made.paths.done)
    assert (record["base"], record["final"]) == (done["base"], done["final"])
    assert (record["key"], record["round"], record["kind"]) == (made.cell.key, 4, "evaluate")
    assert own_files(made.paths) == before


def test_equal_input_gives_equal_files(made):
    first = evaluate(made, made.cell, "first")
    again = evaluate(made, made.cell, "first")
    files = [first.record, first.outcomes]
    before = [file.read_bytes() for file in files]
    evaluate(made, made.cell, "first")
    assert [file.read_bytes() for file in files] == before and again == first


def test_a_base_that_nobody_scored_is_scored_with_the_bases_own_weights(made, tmp_path):
    fresh = made._replace(shared=tmp_path / "shared")
    found = evaluate(fresh, made.cell)
    assert found.outcomes.read_bytes() == made.paths.outcomes.read_bytes()
    assert (fresh.shared / made.cell.base_key / "metrics.json").is_file()


def test_more_samples_and_questions(made):
    changes = {"samples": 3, "test_questions": 24, "train_questions": 0}
    asked = Change(evaluation=changes).of(made.cell)
    frame = pq.read_table(evaluate(made, asked).outcomes).to_pandas()
    counts = frame.groupby(["phase", "split", "decoding"]).size().to_dict()
    assert counts == {
        (phase, "test", decoding): rows
        for phase in ("base", "final")
        for decoding, rows in (("greedy", 24), ("sampled", 72))
    }
    own = pq.read_table(made.paths.outcomes).to_pandas()
    keys = ["phase", "split", "decoding", "question", "sample"]
    both = frame.merge(own, on=keys, suffixes=("", "_own"))
    assert len(both) == 2 * (16 + 2 * 16)  # of K = 3 the first two samples are those of K = 2
    assert (both.completion == both.completion_own).all()


def test_another_data_set_smaller_than_a_batch(made, tmp_path):
    """Its own grader, no train questions, and no word on what training has seen."""
    folder = tmp_path / "few"
    shutil.copytree(str(DATASETS["tiny-boxed"].path), folder)
    for split, lines in (("train", 3), ("test", 9)):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))
    spec = DATASETS["tiny-boxed"].model_copy(update={"path": str(folder), "name": "few"})
    asked = Change(dataset=pinned(spec)).of(made.cell)
    record = read_json(evaluate(made, asked).record)
    assert (record["dataset"], record["grader"]) == ("few", "math")
    assert not any(metric.startswith("train/") for metric in record["final"])
    frame = pq.read_table(made.paths.evaluation("again").outcomes).to_pandas()
    assert set(frame.split) == {"test"} and len(frame.query("decoding == 'greedy'")) == 18


def test_weights_that_are_gone_or_damaged_are_one_message(made):
    weights = next(made.paths.checkpoint.glob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read .*put them back from a copy"):
        evaluate(made, made.cell)
    shutil.rmtree(made.paths.checkpoint)
    with pytest.raises(InputError, match="holds no weights"):
        evaluate(made, made.cell)
    assert not made.paths.evaluation("again").directory.exists()


def test_a_cell_that_a_worker_holds_is_left_alone(made):
    with held(made.paths, made.cell.label), pytest.raises(Held, match=r"tiny-sums \(8,1,0\) raw"):
        evaluate(made, made.cell)
    assert not made.paths.evaluation("again").directory.exists()


def test_the_evaluation_changes_nothing_but_itself(made):
    asked = Change(max_response=9, evaluation={"samples": 0}).of(made.cell)
    assert asked.eval == Evaluation(**{**made.cell.eval.model_dump(), "samples": 0})
    record = read_json(evaluate(made, asked).record)
    assert record["key"] == made.cell.key != asked.key
    assert record["final"]["test/tokens"] <= 9 and record["max_response"] == 9


def test_a_shared_base_that_is_damaged_or_gone_counts_as_none(made, tmp_path):
    shared = shutil.copytree(made.shared, tmp_path / "damaged")
    rows = shared / made.cell.base_key / "outcomes.parquet"
    assert kept_base(made.cell, shared) is not None
    rows.write_bytes(rows.read_bytes()[:1000])
    assert kept_base(made.cell, shared) is None
    rows.unlink()
    assert kept_base(made.cell, shared) is None
