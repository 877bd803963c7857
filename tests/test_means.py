"""orchestrator.means on journals small enough to check by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from grids import outcome
from orchestrator.means import Point, is_evaluation, last_of_window, last_whole, means, points
from workers import journal


def lines(first: int, last: int, **metrics: Any) -> list[dict[str, Any]]:
    return [{"round": r, "train/reward": float(r), **metrics} for r in range(first, last + 1)]


def test_windows_end_with_every_tenth_round_and_round_0_stands_alone() -> None:
    assert [last_of_window(r) for r in (0, 1, 10, 11, 20, 21)] == [0, 10, 10, 20, 20, 30]
    assert [last_whole(r) for r in (0, 1, 9, 10, 11, 57)] == [0, 0, 0, 10, 10, 50]


def test_a_window_gives_its_mean_with_its_last_line_and_not_before() -> None:
    assert means(lines(1, 9)) == []
    assert means(lines(1, 10)) == [Point(10, "train/reward", 5.5)]
    assert means(lines(11, 27)) == [Point(20, "train/reward", 15.5)]
    assert means(lines(0, 3)) == [Point(0, "train/reward", 0.0)]


def test_the_last_window_of_a_cell_that_ended_gives_what_it_holds() -> None:
    assert means(lines(1, 13), ended=True) == [
        Point(10, "train/reward", 5.5),
        Point(13, "train/reward", 12.0),
    ]
    assert means(lines(1, 10), ended=True) == means(lines(1, 10))
    assert means([], ended=True) == []


def test_scores_go_as_they_are() -> None:
    scored = [{"round": 3, "test/pass_at_1": 0.25, "train/pass_at_1_seen": 0.5, "train/reward": 1}]
    assert points(scored) == [
        Point(3, "test/pass_at_1", 0.25),
        Point(3, "train/pass_at_1_seen", 0.5),
    ]
    assert points(scored, ended=True)[2:] == [Point(3, "train/reward", 1.0)]


def test_a_mean_is_over_the_lines_that_have_the_metric() -> None:
    window = lines(1, 10)
    window[1]["train/entropy"], window[6]["train/entropy"] = 1.0, 2.0
    window[7]["train/entropy"] = None
    assert Point(10, "train/entropy", 1.5) in means(window)


def test_ten_equal_values_have_their_own_mean() -> None:
    assert Point(10, "update/loss", 0.1) in means(lines(1, 10, **{"update/loss": 0.1}))


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ((math.nan, 1.0), math.nan),
        ((math.inf, 1.0), math.inf),
        ((-math.inf, 1.0), -math.inf),
        ((math.inf, -math.inf), math.nan),
        ((math.inf, math.nan), math.nan),
        ((1.7e308, 1.7e308), math.inf),
    ],
)
def test_a_broken_value_breaks_its_mean(values: tuple[float, float], mean: float) -> None:
    window = lines(1, 10)
    window[4]["update/loss"], window[5]["update/loss"] = values
    (found,) = [p.value for p in means(window) if p.metric == "update/loss"]
    assert found == mean or (math.isnan(found) and math.isnan(mean))


def test_the_workers_and_the_orchestrator_call_the_same_metrics_evaluations() -> None:
    names = [v for v in vars(outcome).values() if isinstance(v, str) and "/" in v]
    names += [name + outcome.SAMPLED_SUFFIX for name in names]
    assert any(map(is_evaluation, names)) and not all(map(is_evaluation, names))
    assert [is_evaluation(n) for n in names] == [journal.is_evaluation(n) for n in names]
