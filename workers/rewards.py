"""REWARDS: (grade, context) -> float in [0, 1]. Leaves out grading (`grading.py`), and the noise
that a cell may put on a reward (`scoring.py`).

| name | of a wrong answer | of a right one |
|---|---|---|
| `correct` | 0 | 1 |
| `format` | 0.1 where an answer was found, else 0 | 1 |
| `steps` | share of the solution's steps, the answer counted as one | the same: 1 with all steps |
| `score` | the grader's own partial credit | 1, as a rule |
| `random` | 0 or 1, with equal chance | 0 or 1, with equal chance |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grids.cell import Cell
from grids.errors import InputError
from grids.plugin import provider
from workers.data import Question
from workers.equations import equations
from workers.equations import steps as steps_of
from workers.grading import Grade

# Of an answer in the form that the grader demands, and wrong. Small beside 1, so that among a
# question's answers a right one always stands out.
FORM = 0.1

# Own rewards that need a number of chance; a plug-in's always gets one.
DRAWING = frozenset({"random"})


@dataclass(frozen=True)
class Answered:
    """What some rewards need beyond the grade.

    Attributes:
        text: the response.
        question: the question's text.
        gold: the answer as graders compare it.
        solution: the data set's worked solution; empty where it has none.
        uniform: a number in [0, 1) that is this rollout's own, equal for all arms of a seed; NaN
            where the reward does not draw.
    """

    text: str
    question: str
    gold: str
    solution: str = ""
    uniform: float = math.nan


Reward = Callable[..., float]


def correct(grade: Grade, *, context: Answered | None = None) -> float:
    """The verifiable outcome reward of the paper: 1 where the answer is right, else 0."""
    return float(grade.correct)


def form(grade: Grade, *, context: Answered | None = None) -> float:
    """Format plus outcome: 1 where the answer is right, 0.1 where one was found, else 0."""
    return 1.0 if grade.correct else FORM * grade.parsed


def steps(grade: Grade, *, context: Answered | None = None) -> float:
    """(steps of the solution that the response takes + 1 if it is right) / (steps + 1).

    A step is an equation (`equations.py`), found where it stands in the response with its result,
    at any place; more equations than the solution's cost nothing. A question whose solution has no
    equation: the outcome alone.
    """
    told = _needed("steps", context)
    wanted = steps_of(told.solution)
    taken = wanted & equations(told.text) if wanted else wanted
    return (len(taken) + grade.correct) / (len(wanted) + 1)


def score(grade: Grade, *, context: Answered | None = None) -> float:
    """The grader's own partial credit."""
    if grade.score is None:
        raise InputError(
            "reward 'score': the grader gives no partial credit (Grade.score is None); take a "
            "grader that does, such as reasoning-gym, or another reward"
        )
    return grade.score


def chance(grade: Grade, *, context: Answered | None = None) -> float:
    """0 or 1 with equal chance, whatever the answer: what is learnt from it is no skill."""
    drawn = _needed("random", context).uniform
    if math.isnan(drawn):
        raise InputError("reward 'random': no number was drawn for this rollout (uniform is NaN)")
    return float(drawn < 0.5)


REWARDS: dict[str, Reward] = {
    "correct": correct,
    "format": form,
    "steps": steps,
    "score": score,
    "random": chance,
}


def check_solutions(cell: Cell, train: Sequence[Question]) -> None:
    """Raise `InputError` where the reward counts steps and no train question has any."""
    if cell.reward != "steps" or provider(cell.plugin_specs, "REWARDS", "steps") is not None:
        return
    if not any(steps_of(question.solution) for question in train):
        raise InputError(
            f"cell {cell.label}: reward 'steps' counts the equations of worked solutions, and "
            f"{cell.dataset} has none: no train question has a column `solution`, or text before "
            "its answer, with an equation such as `3 + 4 = 7`; take another reward (correct, "
            "format), or add the column"
        )


def _needed(name: str, context: Answered | None) -> Answered:
    if context is None:
        raise InputError(f"reward {name!r} needs context=Answered(...): the grade does not tell it")
    return context
