"""Evaluation of a policy: whole question sets in wide passes, greedy or sampled, graded.

Knows nothing of training batches or losses. Leaves out intervals and gains (`analysis`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grids import outcome
from grids.cell import Cell
from workers import ranks
from workers.data import Question, Questions
from workers.engine import Engine, Response
from workers.grading import Grade
from workers.sampling import fixed_subset, uniforms
from workers.scoring import check_unscored, grade

Rows = list[dict[str, Any]]

WRONG = Grade(correct=False, parsed=False, answer=None)


@dataclass(frozen=True)
class Evaluated:
    """Rows for outcomes.parquet and their means by metric name."""

    rows: Rows
    metrics: dict[str, float]


class Evaluator:
    """Scores one cell's policy on the test set, the fixed train subset and held-out questions."""

    def __init__(self, cell: Cell, questions: Questions, engine: Engine) -> None:
        self.cell = cell
        self.engine = engine
        revision = cell.dataset_spec.revision
        subset = fixed_subset(revision, len(questions.train), cell.eval.train_questions)
        self.train_rows = [int(i) for i in subset]
        train = tuple(questions.train[i] for i in self.train_rows)
        self.splits: dict[str, Sequence[Question]] = {"test": questions.test, "train": train}
        self.held_out = {"val": questions.val} if questions.val else {}

    def greedy(self, phase: str, round: int, seen: set[int] | None = None) -> Evaluated:
        """Greedy Pass@1; `seen` are the train questions, by index, that training has drawn."""
        rows = self._answer(phase, round, self.splits | self.held_out)
        return Evaluated(rows, self._means(rows, "") | self._by_seen(rows, seen))

    def sampled(self, phase: str, round: int, seed: int | None) -> Evaluated:
        """Pass@1 over `eval.samples` samples a question, of the test set and the train subset."""
        count, tokens = self.cell.eval.samples, self.cell.max_response
        numbers = [
            uniforms(seed, f"{phase} {split}", round, _names(questions, count), tokens)
            for split, questions in self.splits.items()
        ]
        rows = self._answer(phase, round, self.splits, count, np.concatenate(numbers))
        return Evaluated(rows, self._means(rows, outcome.SAMPLED_SUFFIX))

    def _answer(
        self,
        phase: str,
        round: int,
        splits: Mapping[str, Sequence[Question]],
        samples: int = 1,
        numbers_R_T: np.ndarray | None = None,
    ) -> Rows:
        """Graded answers to all questions of some splits, which are one call of the engine."""
        cell = self.cell
        asked = [q for of in splits.values() for q in of if not q.too_long for _ in range(samples)]
        prompts = [q.prompt_ids for q in asked]
        made = iter(
            self.engine.generate(prompts, cell.max_response, numbers_R_T, cell.eval.temperature)
        )
        decoding = "greedy" if numbers_R_T is None else "sampled"

        def graded() -> Rows:
            rows: Rows = []
            for split, questions in splits.items():
                about = {"phase": phase, "round": round, "split": split, "decoding": decoding}
                answered = [
                    about | self._row(q, k, None if q.too_long else next(made))
                    for q in questions
                    for k in range(samples)
                ]
                failed = sum(row["correct"] != row["correct"] for row in answered)  # NaN differs
                check_unscored(failed, len(answered), cell)
                rows += answered
            return rows

        return ranks.told(graded)

    def _row(self, question: Question, sample: int, response: Response | None) -> dict[str, Any]:
        """A graded answer, `correct` NaN where its grader failed; a question too long to be asked
        is wrong, unparsed and empty."""
        text = ""
        strict: Grade | None = WRONG
        lenient: Grade | None = WRONG
        if response is not None:
            tokenizer = self.engine.policy.tokenizer
            text = tokenizer.decode(response.ids, skip_special_tokens=True)
            strict = grade(self.cell, self.cell.grader, text, question.gold)
            flexible = self.cell.flexible_grader
            lenient = grade(self.cell, flexible, text, question.gold) if flexible else None
        return {
            "question": question.id,
            "sample": sample,
            "correct": float(strict.correct) if strict else np.nan,
            "flexible": float(lenient.correct) if lenient else np.nan,
            "parsed": bool(strict and strict.parsed),
            "truncated": bool(response and response.truncated),
            "tokens": len(response.ids) if response else 0,
            "completion": text,
        }

    def _means(self, rows: Rows, suffix: str) -> dict[str, float]:
        means: dict[str, float] = {}
        for split in (*self.splits, *self.held_out):
            chosen = [row for row in rows if row["split"] == split]
            if not chosen:
                continue
            means[f"{split}/pass_at_1{suffix}"] = _mean(chosen, "correct")
            if self.cell.flexible_grader:
                means[f"{split}/pass_at_1_flexible{suffix}"] = _mean(chosen, "flexible")
            if split == "test":
                columns = ("parsed", "truncated", "tokens")
                means |= {f"test/{name}{suffix}": _mean(chosen, name) for name in columns}
                unscored = [float(np.isnan(row["correct"])) for row in chosen]
                means[f"{outcome.TEST_UNSCORED}{suffix}"] = float(np.mean(unscored))
        return means

    def _by_seen(self, rows: Rows, seen: set[int] | None) -> dict[str, float]:
        """Train Pass@1 over questions seen and not yet seen; a part that is empty is absent."""
        if seen is None:
            return {}
        train = [row for row in rows if row["split"] == "train"]
        is_seen = [index in seen for index in self.train_rows]
        parts = {
            outcome.TRAIN_PASS_SEEN: [r for r, s in zip(train, is_seen, strict=True) if s],
            outcome.TRAIN_PASS_UNSEEN: [r for r, s in zip(train, is_seen, strict=True) if not s],
        }
        return {name: _mean(part, "correct") for name, part in parts.items() if part}


def _names(questions: Sequence[Question], samples: int) -> list[tuple[str, int]]:
    """(question id, sample index) of each answer that is asked for."""
    return [(q.id, k) for q in questions if not q.too_long for k in range(samples)]


def _mean(rows: Rows, column: str) -> float:
    """Over the answers that have a value: an unscored one is neither right nor wrong."""
    values = [row[column] for row in rows]
    return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan
