"""Rewards by hand: what each gives for a right, a wrong and a half-right answer."""

import json

import pytest

from grids.catalog import DatasetSpec
from grids.errors import InputError
from workers.data import load_questions
from workers.grading import Grade
from workers.preflight import check
from workers.rewards import REWARDS, Answered

RIGHT = Grade(True, True, "35")
WRONG = Grade(False, True, "36")
NOTHING = Grade(False, False, None)
SOLUTION = "27 + 23 = 50. 50 - 15 = 35. #### 35"


def answered(text: str = "", solution: str = SOLUTION, uniform: float = 0.0) -> Answered:
    return Answered(text, "How many?", "35", solution, uniform)


@pytest.mark.parametrize(("name", "given"), [("correct", (1, 0, 0)), ("format", (1, 0.1, 0))])
def test_outcome_and_format(name, given):
    assert tuple(REWARDS[name](grade) for grade in (RIGHT, WRONG, NOTHING)) == given


@pytest.mark.parametrize(
    ("grade", "text", "share"),
    [
        (RIGHT, "27 + 23 = 50. 50 - 15 = 35. #### 35", 3),
        (RIGHT, "#### 35", 1),
        (WRONG, "27 + 23 = 50. 50 - 15 = 36. #### 36", 1),
        (WRONG, "23 + 27 = 50. 50 - 15 = 35. 35 + 1 = 36. #### 36", 2),
        (WRONG, "27 + 23 = 40. 40 - 15 = 25. #### 25", 0),
        (NOTHING, "27 + 23 = 50. 27 + 23 = 50.", 1),
    ],
)
def test_steps_are_the_share_of_the_solutions_equations_and_the_answer(grade, text, share):
    assert REWARDS["steps"](grade, context=answered(text)) == pytest.approx(share / 3)


def test_steps_of_a_question_without_equations_are_the_outcome():
    context = answered("1 + 1 = 2", solution="It is clear. #### 35")
    assert [REWARDS["steps"](g, context=context) for g in (RIGHT, WRONG)] == [1, 0]


def test_score_is_the_graders_own():
    assert REWARDS["score"](Grade(False, True, "x", 0.25)) == 0.25
    with pytest.raises(InputError, match="gives no partial credit.*take a grader that does"):
        REWARDS["score"](RIGHT)


def test_random_looks_at_its_number_alone():
    for grade in (RIGHT, NOTHING):
        drawn = [
            REWARDS["random"](grade, context=answered(uniform=u)) for u in (0.0, 0.49, 0.5, 0.9)
        ]
        assert drawn == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["steps", "random"])
def test_what_needs_a_context_says_so(name):
    with pytest.raises(InputError, match=f"'{name}' needs context"):
        REWARDS[name](RIGHT)


def test_random_without_a_number_is_an_error():
    with pytest.raises(InputError, match="no number was drawn"):
        REWARDS["random"](RIGHT, context=answered(uniform=float("nan")))


# ---- solutions


def data(folder, rows: list[dict], **spec) -> DatasetSpec:
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return DatasetSpec(name="mine", path=str(folder), **spec)


@pytest.mark.parametrize(
    ("row", "after", "solution"),
    [
        ({"answer": "1 + 1 = 2. #### 2"}, "####", "1 + 1 = 2. #### 2"),
        ({"answer": "2"}, None, ""),
        ({"answer": " 2 "}, None, ""),
        ({"answer": "2", "solution": "1 + 1 = 2"}, None, "1 + 1 = 2"),
    ],
)
def test_a_solution_is_its_column_or_what_an_answer_holds_beside_the_gold(
    tmp_path, row, after, solution
):
    spec = data(tmp_path, [{"question": "1 + 1?", **row}], answer_after=after)
    (question,) = load_questions(spec).train
    assert (question.gold, question.solution) == ("2", solution)


def test_steps_are_refused_before_training_where_no_solution_has_any(tmp_path, tiny):
    bare = data(tmp_path, [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(9)])
    told = "reward 'steps' counts .* and mine has none: .*take another reward"
    cell = tiny(dataset="mine", dataset_spec=bare, reward="steps")
    with pytest.raises(InputError, match=told):
        check([cell.model_copy(update={"reward": "correct"}), cell])
    assert check([tiny(reward="steps")]) == []


def test_a_score_is_refused_where_the_grader_gives_none(tiny):
    with pytest.raises(
        ValueError, match="reward: score .* gsm8k gives none; allowed .* reasoning-gym"
    ):
        tiny(reward="score")
    with pytest.raises(ValueError, match="grader: reasoning-gym scores answers to its own"):
        tiny(grader="reasoning-gym")
