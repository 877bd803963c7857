"""reasoning-gym's questions and scorers, in a child that may hang, die or be of another version."""

import json
import os
import signal
import subprocess
import sys

import pytest

from grids.catalog import DATASETS, DatasetSpec
from grids.errors import InputError
from tests.conftest import ROOT
from workers import reasoning
from workers.data import load_questions
from workers.evaluate import grade
from workers.grading import GRADERS
from workers.run import run_cell

pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")

OURS = [name for name, spec in DATASETS.items() if spec.source == "reasoning-gym"]


def spec(task: str = "word_sorting", **given) -> DatasetSpec:
    options = {"task": task, "train": 30, "test": 10, **given}
    return DatasetSpec(
        name="mine", source="reasoning-gym", revision="0.1.25", options=options,
        grader="reasoning-gym",
    )  # fmt: skip


def graded(text: str, gold: str):
    return GRADERS["reasoning-gym"](text, gold)


@pytest.mark.parametrize("name", OURS)
def test_a_catalogue_entry_has_its_questions_and_its_answers_score_1(name):
    read = load_questions(DATASETS[name])
    assert (len(read.train), len(read.test)) == (2000, 500)
    assert not {q.text for q in read.train} & {q.text for q in read.test}
    assert len({q.text for q in read.train}) == 2000 and read.notes == ()
    for question in read.test[:20]:
        right = json.loads(question.gold)["answer"]
        made = graded(f"I think\n<answer> {right} </answer>", question.gold)
        assert (made.correct, made.parsed, made.score) == (True, True, 1.0)


def test_an_answer_is_right_wrong_partly_right_or_absent():
    gold = load_questions(spec()).train[0].gold
    words = json.loads(gold)["answer"].split(", ")
    swapped = ", ".join([*words[:-2], words[-1], words[-2]])
    part = graded(f"<answer>{swapped}</answer>", gold)
    assert part.parsed and not part.correct and 0 < part.score < 1
    assert part.answer == swapped
    wrong = graded("<answer>x</answer>", gold)
    assert (wrong.parsed, wrong.correct, wrong.score) == (True, False, 0.0)
    none = graded(", ".join(words), gold)
    assert (none.parsed, none.correct, none.answer, none.score) == (False, False, None, 0.0)


def test_the_last_answer_counts():
    gold = load_questions(spec()).train[0].gold
    right = json.loads(gold)["answer"]
    assert graded(f"<answer>x</answer> no: <answer>{right}</answer>", gold).correct


def test_questions_are_equal_in_every_process_and_more_of_them_change_none():
    code = (
        "from grids.catalog import DatasetSpec; from workers.data import load_questions\n"
        f"made = load_questions(DatasetSpec(**{spec('knights_knaves').model_dump()!r}))\n"
        "print([(q.id, q.gold) for q in made.train])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1 and told.pop().count("knights_knaves") == 30
    few, more = load_questions(spec(seed=3)), load_questions(spec(seed=3, train=60))
    assert (more.test, more.train[:30]) == (few.test, few.train)
    assert load_questions(spec(seed=4)).test != few.test


# ---- what goes wrong


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train": 0}, "train: got 0"),
        ({"train": "many"}, "train: got 'many'"),
        ({"size": 5}, "unknown 'size'; allowed: config, seed, task, test, train"),
        ({"config": {"seed": 5}}, "config: 'seed' is not a task's"),
        ({"config": {"min_words": 9, "max_words": 3}}, "word_sorting with config"),
        ({"task": "word_sortng"}, "word_sortng"),
    ],
)
def test_wrong_options_are_told(given, told):
    with pytest.raises(InputError, match=told):
        load_questions(spec(**given))


def test_a_task_with_too_few_questions_is_told():
    few = spec("spell_backward", train=15_000, config={"min_word_len": 3, "max_word_len": 3})
    with pytest.raises(InputError, match="different questions .* fewer than test . train = 15010"):
        load_questions(few)


def test_another_version_and_no_package_are_told_with_the_command(monkeypatch):
    other = spec().model_copy(update={"revision": "0.1.24"})
    with pytest.raises(
        InputError, match=r"pinned to reasoning-gym 0.1.24; installed is 0.1.25.*pip"
    ):
        load_questions(other)

    def absent(name: str):
        raise reasoning.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(reasoning.metadata, "version", absent)
    with pytest.raises(InputError, match=r"not installed; pip install .*\[reasoning-gym\]"):
        load_questions(spec())


def test_an_answer_that_is_not_scored_in_time_is_unscored_and_the_next_is(tiny, monkeypatch):
    cell = tiny(dataset="mine", dataset_spec=spec(), grader="reasoning-gym")
    gold = load_questions(spec()).train[0].gold
    right = f"<answer>{json.loads(gold)['answer']}</answer>"
    monkeypatch.setattr(reasoning, "ANSWER_SECONDS", 0.05)
    # The package's pattern for an answer is slow on very many unclosed tags.
    slow = "<answer>" * 2500
    assert grade(cell, "reasoning-gym", slow, gold) is None
    monkeypatch.setattr(reasoning, "ANSWER_SECONDS", 5.0)
    made = grade(cell, "reasoning-gym", right, gold)
    assert made is not None and made.correct


def test_a_child_that_died_is_replaced():
    gold = load_questions(spec()).train[0].gold
    assert graded("<answer>x</answer>", gold).score == 0.0
    before = reasoning._child._process
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    before.wait()
    assert graded("<answer>x</answer>", gold).score == 0.0
    assert reasoning._child._process is not before


def test_a_scorer_that_raises_leaves_the_answer_unscored():
    gold = json.dumps({"task": "no_such_task", "config": {}, "seed": 0, "index": 0})
    with pytest.raises(reasoning.NotScored, match="no_such_task"):
        graded("<answer>x</answer>", gold)


# ---- in a cell


def test_a_cell_trains_on_scores(tiny, tmp_path):
    mine = spec("letter_counting").model_copy(update={"prompt": "what is {question}"})
    cell = tiny(
        dataset="mine", dataset_spec=mine, reward="score", rounds=1, batch=4, rollouts=2,
        max_prompt=60, max_response=4, eval={"test_questions": 4, "train_questions": 4},
    )  # fmt: skip
    done = run_cell(cell, tmp_path, lambda progress: None)
    assert done is not None and done["status"] == "finished"
