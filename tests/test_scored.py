"""Pass@1 of a cell for its description: Wilson's interval by another hand, unscored answers out."""

from __future__ import annotations

import math

import pytest
from statsmodels.stats.proportion import proportion_confint

from grids.paths import CellPaths
from orchestrator.scored import scores
from workers.journal import write_outcomes


def row(phase: str, correct: float | None, question: int, **more: object) -> dict[str, object]:
    made = {
        "phase": phase, "round": 0, "split": "test", "decoding": "greedy", "sample": 0,
        "question": str(question), "correct": correct, "parsed": True, "truncated": False,
        "tokens": 3, "completion": "x",
    }  # fmt: skip
    return made | more


def test_scores_have_the_interval_of_their_n(tmp_path) -> None:
    rows = [row("base", float(q < 3), q) for q in range(10)]
    rows += [row("final", float(q < 7), q) for q in range(10)]
    rows += [row("final", math.nan, 11), row("final", 1.0, 12, split="train")]
    rows += [row("final", 1.0, 13, decoding="sampled")]
    paths = CellPaths(tmp_path)
    write_outcomes(paths.outcomes, rows)
    found = scores(paths)
    assert {phase: (s.value, s.n) for phase, s in found.items()} == {
        "base": (0.3, 10), "final": (0.7, 10),
    }  # fmt: skip
    low, high = proportion_confint(7, 10, method="wilson")
    assert (found["final"].low, found["final"].high) == pytest.approx((low, high))


def test_a_phase_without_answers_and_a_broken_file_have_no_score(tmp_path) -> None:
    paths = CellPaths(tmp_path)
    assert scores(paths) == {}
    paths.outcomes.write_text("no parquet")
    assert scores(paths) == {}
    write_outcomes(paths.outcomes, [row("base", math.nan, 1)])
    assert scores(paths) == {}
