"""Held-out train questions: chosen by content, never trained on, scored as `val/pass_at_1`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grids import outcome
from grids.catalog import DatasetSpec, pinned
from grids.errors import InputError
from workers.data import load_questions, prepare, split_off
from workers.models import load_tokenizer
from workers.preflight import check
from workers.run import run_cell


def prepared(cell):
    tokenizer = load_tokenizer(Path(str(cell.model_spec.path)))
    return prepare(load_questions(cell.dataset_spec), cell, tokenizer)


def ids(questions):
    return {question.id for question in questions}


def test_the_choice_is_of_the_questions_alone_and_smaller_ones_lie_within_larger(tiny):
    train = load_questions(tiny().dataset_spec).train
    small, large = split_off(train, 20), split_off(train, 100)
    assert (len(small.val), len(small.train)) == (20, len(train) - 20)
    assert ids(small.val) < ids(large.val)
    assert not ids(large.val) & ids(large.train)
    assert ids(split_off(train[::-1], 100).val) == ids(large.val)
    assert split_off(train, 0) == (train, ())
    for changed in ({"model": "tiny-llama"}, {"seed": 3}, {"advantage": "grpo", "rollouts": 4}):
        assert ids(prepared(tiny(holdout=100, **changed)).val) == ids(large.val)


def test_a_question_with_the_text_of_a_held_out_one_is_not_trained_on(tmp_path):
    rows = [{"question": f"q{i % 6}", "answer": f"#### {i}"} for i in range(12)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = DatasetSpec(name="mine", path=str(tmp_path), answer_after="####")
    parts = split_off(load_questions(spec).train, 2)
    assert len(parts.val) == 2
    assert not {q.text for q in parts.val} & {q.text for q in parts.train}


def test_without_a_holdout_keys_are_as_they_were_and_with_one_they_are_others(tiny):
    assert tiny().key == tiny(holdout=0).key and tiny().base_key == tiny(holdout=0).base_key
    assert tiny(holdout=50).key != tiny().key
    assert tiny(holdout=50).base_key != tiny().base_key != tiny(holdout=60).base_key
    assert tiny(holdout=50).eval_key == tiny().eval_key


def test_a_cell_scores_its_held_out_questions_and_draws_none_of_them(tiny, tmp_path):
    cell = tiny(holdout=448, batch=32, rounds=4, max_prompt=32, max_response=32)
    drawn = set()
    held = prepared(cell)
    assert (len(held.train), len(held.val)) == (64, 448)
    done = run_cell(cell, tmp_path / "cell", lambda _: None)
    assert (
        done is not None and outcome.VAL_PASS in done["base"] and outcome.VAL_PASS in done["final"]
    )
    lines = [json.loads(x) for x in (tmp_path / "cell" / "journal.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if outcome.VAL_PASS in line] == [0, 2, 4]
    for text in (tmp_path / "cell" / "samples.jsonl").read_text().splitlines():
        made = json.loads(text)
        drawn |= {made["question"]} if made["from"] == "train" else set()
    assert drawn and drawn <= {q.text for q in held.train} | ids(held.train)
    rows = pq.read_table(tmp_path / "cell" / "outcomes.parquet").to_pylist()
    val = [row for row in rows if row["split"] == "val"]
    assert {row["phase"] for row in val} == {"base", "final"}
    assert {row["question"] for row in val} == ids(held.val)
    assert {row["decoding"] for row in val} == {"greedy"}
    final = [row["correct"] for row in val if row["phase"] == "final"]
    assert sum(final) / len(final) == pytest.approx(done["final"][outcome.VAL_PASS])


def test_a_batch_larger_than_what_is_left_is_refused_before_anything_starts(tiny, tmp_path):
    with pytest.raises(ValueError, match="504 of them held out, so at most 8 is allowed"):
        tiny(batch=16, holdout=504)
    rows = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(12)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = pinned(DatasetSpec(name="mine", path=str(tmp_path), answer_after="####"))
    cell = tiny(holdout=6).model_copy(update={"dataset_spec": spec, "dataset": "mine"})
    with pytest.raises(InputError, match="batch 8 is larger than the train set: mine has 6"):
        check([cell])
