"""Evaluation of a policy: whole question sets in wide passes, greedy or sampled, graded.

Knows nothing of training batches or losses. Leaves out intervals and gains (`analysis`).
"""

from __future__ import annotations

from collections.abc import Sequence
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
        rows: Rows = []
        for split, questions in (self.splits | self.held_out).items():
            rows += self._answer(phase, round, split, questions, samples=1, sampled=False)
        return Evaluated(rows, self._means(rows, "") | self._by_seen(rows, seen))

    def sampled(self, phase: str, round: int, seed: int | None) -> Evaluated:
        """Pass@1 over `eval.samples` samples a question, of the test set and the train subset."""
        rows: Rows = []
        for split, questions in self.splits.items():
            rows += self._answer(
                phase, round, split, questions, self.cell.eval.samples, sampled=True, seed=seed
            )
        return Evaluated(rows, self._means(rows, outcome.SAMPLED_SUFFIX))

    def _answer(
        self,
        phase: str,
        round: int,
        split: str,
        questions: Sequence[Question],
        samples: int,
        sampled: bool,
        seed: int | None = None,
    ) -> Rows:
        cell = self.cell
        asked = [(q, k) for q in questions if not q.too_long for k in range(samples)]
        numbers = None
        if sampled:
            names = [(q.id, k) for q, k in asked]
            numbers = uniforms(seed, f"{phase} {split}", round, names, cell.max_response)
        prompts = [q.prompt_ids for q, _ in asked]
        made = self.engine.generate(prompts, cell.max_response, numbers, cell.eval.temperature)
        told = {(q.id, k): r for (q, k), r in zip(asked, made, strict=True)}
        about = {"phase": phase, "round": round, "split": split}
        about["decoding"] = "sampled" if sampled else "greedy"
        every = [(q, k) for q in questions for k in range(samples)]
        rows = ranks.told(lambda: [about | self._row(q, k, told.get((q.id, k))) for q, k in every])
        failed = sum(row["correct"] != row["correct"] for row in rows)  # NaN alone differs
        check_unscored(failed, len(rows), cell)
        return rows

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


def _mean(rows: Rows, column: str) -> float:
    """Over the answers that have a value: an unscored one is neither right nor wrong."""
    values = [row[column] for row in rows]
    return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan
