"""Journal lines -> the points that MLflow gets: evaluations as they are, training as means.

Every metric of every round of a large grid is more than a tracking server takes. So a training
metric goes as its mean over rounds 1 to 10 at step 10, over 11 to 20 at step 20, and so on; round 0
stands alone. A mean is over those lines of its window that have the metric. A window gives nothing
before its last line, unless the cell has ended: then its mean goes at the step of the round that it
ended with. Equal lines give equal points, and a longer window has a later step, so no point is ever
contradicted. Leaves out sending (`tracking.py`) and what has been sent (`marks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

MEAN_ROUNDS: Final = 10

Line = dict[str, Any]


class Point(NamedTuple):
    """One value of one metric; its round is its step."""

    round: int
    metric: str
    value: float


def is_evaluation(metric: str) -> bool:
    """Whether a metric is of an evaluation and not of training.

    The rule of `workers.journal`, which cannot be imported before a trial: it loads pyarrow.
    """
    return metric.startswith(("test/", "val/", "train/pass_at_1"))


def last_of_window(round: int) -> int:
    """The last round of the window that holds a round; round 0 is a window of its own."""
    return -(-round // MEAN_ROUNDS) * MEAN_ROUNDS


def last_whole(round: int) -> int:
    """The last round whose window is whole when a round is written."""
    return round // MEAN_ROUNDS * MEAN_ROUNDS


def points(lines: Iterable[Line], ended: bool = False) -> list[Point]:
    """All that can be sent of consecutive lines, of which the first begins a window."""
    lines = list(lines)
    return evaluations(lines) + means(lines, ended)


def evaluations(lines: Iterable[Line]) -> list[Point]:
    """Scores, each at its own round."""
    return [
        Point(int(line["round"]), name, float(value))
        for line in lines
        for name, value in line.items()
        if is_evaluation(name) and value is not None
    ]


def means(lines: Iterable[Line], ended: bool = False) -> list[Point]:
    """Means of training metrics over whole windows; where the cell has ended, over the last too."""
    made = []
    for last, group in groupby(lines, key=lambda line: last_of_window(int(line["round"]))):
        window = list(group)
        if ended or window[-1]["round"] == last:
            made += _window_means(window)
    return made


def _window_means(window: Sequence[Line]) -> list[Point]:
    values: dict[str, list[float]] = {}
    for line in window:
        for name, value in line.items():
            if name != "round" and value is not None and not is_evaluation(name):
                values.setdefault(name, []).append(float(value))
    step = int(window[-1]["round"])
    return [Point(step, name, _mean(found)) for name, found in values.items()]


def _mean(values: Sequence[float]) -> float:
    """The mean, exact to the last digit; NaN or infinite where a value is: it must be seen."""
    try:
        return math.fsum(values) / len(values)
    except (ValueError, OverflowError):  # infinities of both signs; a sum too large for a float
        return sum(values) / len(values)
