"""REWARDS: Grade -> float in [0, 1]. Leaves out grading itself (`grading.py`)."""

from __future__ import annotations

from collections.abc import Callable

from workers.grading import Grade


def correct(grade: Grade) -> float:
    """The verifiable outcome reward of the paper: 1 where the answer is right, else 0."""
    return float(grade.correct)


REWARDS: dict[str, Callable[[Grade], float]] = {"correct": correct}
