"""Evaluation: whole sets whatever the batch, overlong questions wrong, samples by their seed."""

import math

import pytest

from grids import outcome
from grids.errors import InputError
from workers.data import load_questions, prepare
from workers.engine import TransformersEngine
from workers.evaluate import Evaluator
from workers.grading import GRADERS
from workers.models import load_policy


def evaluator_of(cell):
    policy = load_policy(cell)
    questions = prepare(load_questions(cell.dataset_spec), cell, policy.tokenizer)
    return Evaluator(cell, questions, TransformersEngine(policy, cell))


def test_a_question_that_is_too_long_is_scored_wrong_and_counted(tiny):
    lengths = sorted(len(q.prompt_ids) for q in evaluator_of(tiny()).splits["test"])
    cell = tiny(max_prompt=lengths[8] - 1)
    evaluator = evaluator_of(cell)
    test = [row for row in evaluator.greedy("final", 1).rows if row["split"] == "test"]
    overlong = {q.id for q in evaluator.splits["test"] if q.too_long}
    assert len(test) == 16 and 0 < len(overlong) < 16
    for row in test:
        if row["question"] in overlong:
            assert (row["correct"], row["parsed"], row["tokens"], row["completion"]) == (
                0,
                0,
                0,
                "",
            )
        else:
            assert row["tokens"] > 0
    assert not any(q.too_long for q in evaluator.splits["train"])


def test_the_width_of_a_pass_does_not_change_an_evaluation(tiny):
    evaluator = evaluator_of(tiny(eval={"samples": 2}))
    wide = evaluator.greedy("final", 1), evaluator.sampled("final", 1, 0)
    evaluator.engine.width = 3
    narrow = evaluator.greedy("final", 1), evaluator.sampled("final", 1, 0)
    assert wide == narrow


def test_the_training_batch_does_not_change_an_evaluation(tiny):
    made = [evaluator_of(tiny(batch=batch)).greedy("base", 0).rows for batch in (2, 64)]
    assert made[0] == made[1]


def test_samples_of_a_question_differ_and_depend_on_the_seed(tiny):
    evaluator = evaluator_of(tiny(eval={"samples": 8, "temperature": 2.0}))
    rows = evaluator.sampled("final", 1, 0).rows
    first = [row["completion"] for row in rows if row["question"] == rows[0]["question"]]
    assert len(first) == 8 and len(set(first)) > 1
    assert rows == evaluator.sampled("final", 1, 0).rows
    assert rows != evaluator.sampled("final", 1, 1).rows


def test_seen_and_unseen_questions_make_up_the_train_subset(tiny):
    evaluator = evaluator_of(tiny(eval={"train_questions": 40}))
    seen = set(evaluator.train_rows[:10])
    metrics = evaluator.greedy("final", 1, seen).metrics
    parts = metrics[outcome.TRAIN_PASS_SEEN] * 10 + metrics[outcome.TRAIN_PASS_UNSEEN] * 30
    assert parts / 40 == pytest.approx(metrics[outcome.TRAIN_PASS])
    assert outcome.TRAIN_PASS_UNSEEN not in evaluator.greedy("final", 1, set(range(512))).metrics


def test_without_a_train_subset_there_is_no_train_score(tiny):
    metrics = evaluator_of(tiny(eval={"train_questions": 0})).greedy("final", 1, set()).metrics
    assert not [name for name in metrics if name.startswith("train/")]


def test_an_answer_whose_grader_fails_is_unscored_and_not_wrong(tiny, monkeypatch):
    evaluator = evaluator_of(tiny(eval={"train_questions": 0}))
    strict, golds = GRADERS["gsm8k"], [q.gold for q in evaluator.splits["test"]]
    victim = next(i for i, gold in enumerate(golds) if golds.count(gold) == 1)

    def failing(completion, gold):
        if gold == golds[victim]:
            raise RuntimeError("out of paper")
        return strict(completion, gold)

    before = evaluator.greedy("final", 1)
    monkeypatch.setitem(GRADERS, "gsm8k", failing)
    after = evaluator.greedy("final", 1)
    assert math.isnan(after.rows[victim]["correct"])
    scored = [row["correct"] for i, row in enumerate(before.rows) if i != victim]
    assert after.metrics[outcome.TEST_PASS] == pytest.approx(sum(scored) / 15)
    assert after.metrics[outcome.TEST_UNSCORED] == 1 / 16


def test_a_grader_that_keeps_failing_stops_an_evaluation(tiny, monkeypatch):
    evaluator = evaluator_of(tiny())
    monkeypatch.setitem(GRADERS, "gsm8k", lambda completion, gold: 1 / 0)
    with pytest.raises(InputError, match="failed on 16 of 16 answers"):
        evaluator.greedy("final", 1)
