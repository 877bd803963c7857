"""Answers -> grades and rewards, where graders and rewards may be anybody's.

A grader that raises leaves its answer unscored: counted, and neither right nor wrong. One that
raises on more than the cell's `max_unscored` of a round's answers stops the run, and so does a
reward that is not a number in [0, 1]. With the cell's `reward_noise`, a reward r becomes 1 - r.
What chance decides here is a function of (seed, round, question, sample), as sampling is: a resumed
run is the uninterrupted one, and all arms of a seed share it. Leaves out the graders and rewards
themselves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from grids.cell import Cell
from grids.errors import InputError
from grids.plugin import provider
from workers.data import Question
from workers.grading import Grade
from workers.plugins import function
from workers.rewards import DRAWING, Answered
from workers.sampling import numbered, uniforms

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What is known of each answer; a grade is None, and its reward NaN, where it is unscored.

    `flipped` says which rewards noise has turned round; empty where the cell has none.
    """

    texts: list[str]
    grades: list[Grade | None]
    flexible: list[Grade | None]
    rewards: list[float]
    flipped: list[bool] = field(default_factory=list)


def score(texts: Sequence[str], questions: Sequence[Question], cell: Cell, round: int) -> Scored:
    """Grade and reward each of a round's answers to its question; round 0 fills replay.

    Raises `InputError` for a reward outside [0, 1] and for too many answers without a grade.
    """
    asked = list(zip(texts, questions, strict=True))
    grades = [grade(cell, cell.grader, text, q.gold) for text, q in asked]
    check_unscored(sum(g is None for g in grades), len(grades), cell)
    lenient = cell.flexible_grader
    flexible = [grade(cell, lenient, text, q.gold) if lenient else None for text, q in asked]
    rewards = _rewards(grades, texts, questions, cell, round)
    flipped: list[bool] = []
    if cell.reward_noise:
        drawn = _drawn("reward noise", questions, cell, round)
        flipped = [number < cell.reward_noise for number in drawn]
        rewards = [1 - r if flip else r for r, flip in zip(rewards, flipped, strict=True)]
    return Scored(list(texts), grades, flexible, rewards, flipped)


def grade(cell: Cell, grader: str, text: str, gold: str) -> Grade | None:
    """The grade of one answer; None where the grader raised, which is told.

    Raises `InputError` where the grader is a plug-in's that cannot be had.
    """
    rule = function(cell, "GRADERS", grader)
    try:
        made: Grade = rule(text, gold)
        return made
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


def _rewards(
    grades: Sequence[Grade | None],
    texts: Sequence[str],
    questions: Sequence[Question],
    cell: Cell,
    round: int,
) -> list[float]:
    """Before noise; NaN where there is no grade."""
    reward = function(cell, "REWARDS", cell.reward)
    own = provider(cell.plugin_specs, "REWARDS", cell.reward) is None
    draws = not own or cell.reward in DRAWING  # a plug-in's may
    drawn = _drawn("reward", questions, cell, round) if draws else [math.nan] * len(texts)
    return [
        math.nan
        if graded is None
        else _rewarded(reward, graded, cell, q, Answered(text, q.text, q.gold, q.solution, number))
        for graded, text, q, number in zip(grades, texts, questions, drawn, strict=True)
    ]


def _drawn(purpose: str, questions: Sequence[Question], cell: Cell, round: int) -> list[float]:
    """A number in [0, 1) for each rollout."""
    names = numbered([q.id for q in questions])
    drawn: list[float] = uniforms(cell.seed, purpose, round, names, 1)[:, 0].tolist()
    return drawn


def _rewarded(
    reward: Callable[..., float], graded: Grade, cell: Cell, question: Question, context: Answered
) -> float:
    where = f"{cell.label}: reward {cell.reward!r}"
    asked = f"an answer to question {question.id} ({question.text[:60]!r})"
    try:
        value = float(reward(graded, context=context))
    except InputError:
        raise
    except Exception as error:  # anybody's code
        raise InputError(
            f"{where} raised {type(error).__name__} for {asked}: {error}; a reward takes "
            "(grade, *, context) and returns a number: mend it"
        ) from error
    if not 0 <= value <= 1:
        raise InputError(
            f"{where} gave {value} for {asked}; a reward is a number in [0, 1]: mend it"
        )
    return value
