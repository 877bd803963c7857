"""Answers -> grades and rewards, where graders and rewards may be anybody's.

A grader that raises leaves its answer unscored: counted, and neither right nor wrong. One that
raises on more than the cell's `max_unscored` of a round's answers stops the run, and so does a
reward that is not a number in [0, 1]. Leaves out the graders and rewards themselves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from grids.cell import Cell
from grids.errors import InputError
from workers.data import Question
from workers.grading import GRADERS, Grade
from workers.rewards import REWARDS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What is known of each answer; a grade is None, and its reward NaN, where it is unscored."""

    texts: list[str]
    grades: list[Grade | None]
    flexible: list[Grade | None]
    rewards: list[float]


def score(texts: Sequence[str], questions: Sequence[Question], cell: Cell) -> Scored:
    """Grade and reward each answer to its question.

    Raises `InputError` for a reward outside [0, 1] and for too many answers without a grade.
    """
    asked = list(zip(texts, questions, strict=True))
    grades = [grade(cell.grader, text, q.gold) for text, q in asked]
    check_unscored(sum(g is None for g in grades), len(grades), cell)
    lenient = cell.flexible_grader
    flexible = [grade(lenient, text, q.gold) if lenient else None for text, q in asked]
    rewards = [
        math.nan if graded is None else _reward(graded, cell, question)
        for graded, question in zip(grades, questions, strict=True)
    ]
    return Scored(list(texts), grades, flexible, rewards)


def grade(grader: str, text: str, gold: str) -> Grade | None:
    """The grade of one answer; None where the grader raised, which is told."""
    try:
        return GRADERS[grader](text, gold)
    except Exception as error:  # anybody's code: no fault of it may pass for a wrong answer
        logger.warning("grader %s failed: %s: %s", grader, type(error).__name__, error)
        return None


def check_unscored(failed: int, answers: int, cell: Cell) -> None:
    """Raise `InputError` where more answers are unscored than the cell allows; one always may."""
    if failed > max(1, cell.max_unscored * answers):
        raise InputError(
            f"{cell.label}: grader {cell.grader!r} failed on {failed} of {answers} answers (the "
            f"log says why); at most a share of {cell.max_unscored:g} may stay unscored: mend the "
            "grader, or raise max_unscored"
        )


def _reward(graded: Grade, cell: Cell, question: Question) -> float:
    value = float(REWARDS[cell.reward](graded))
    if not 0 <= value <= 1:
        raise InputError(
            f"{cell.label}: reward {cell.reward!r} gave {value} for an answer to question "
            f"{question.id} ({question.text[:60]!r}); a reward is a number in [0, 1]: mend it"
        )
    return value
