"""Our round, update and evaluation against TRL's own, and against ours without what saves time.

`python -m tests.benchmarks.ratios`. All are of an embedded model, in one process, from the same
weights, and take turns; a figure is a ratio of medians with its bootstrap interval. No evaluation,
log or checkpoint is made beside what is measured.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOTrainer

from grids.cell import Cell
from tests.benchmarks.told import told
from tests.benchmarks.turns import Turns, take_turns
from tests.trainers import build_trainer
from workers.data import Question, Questions, load_questions, prepare
from workers.engine import TransformersEngine
from workers.evaluate import Evaluator
from workers.grading import GRADERS
from workers.groups import Groups
from workers.models import Policy, load_policy
from workers.sampling import generator, prompt_stream
from workers.settings import trainer_settings

QUESTIONS = 500


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        print("\nOur round against a step of TRL's GRPOTrainer at equal settings", flush=True)
        against_trl(scratch, batch=8, rollouts=4, rounds=100)
        against_trl(scratch, batch=32, rollouts=8, rounds=33)
        print("\nThe update phase at a fifth of rewards and KL off, against all rows", flush=True)
        against_all_rows(scratch, batch=256, rounds=23)
        against_all_rows(scratch, batch=32, rounds=53)
        print(f"\nEvaluation of {QUESTIONS} questions against TRL's own", flush=True)
        evaluations(scratch, times=3)


def against_trl(scratch: str, batch: int, rollouts: int, rounds: int) -> None:
    """Seconds from one step's end to the next, ours and TRL's."""
    cell = tiny(batch=batch, rollouts=rollouts, advantage="grpo", rounds=rounds)
    ours, plain = Turns(build_trainer(cell, scratch)), Turns(plain_trainer(cell, scratch))
    take_turns(ours, plain)
    compared(f"({batch},{rollouts}) round over TRL's", ours.steps, plain.steps, "at most 1.02")
    told("  tokens of a response, ours", statistics.mean(ours.tokens))
    told("  tokens of a response, TRL's", statistics.mean(plain.tokens))


def against_all_rows(scratch: str, batch: int, rounds: int) -> None:
    """Seconds from the loss to the optimiser's step, with the same rollouts and weights."""
    cell = tiny(batch=batch, kl="off", rounds=rounds)
    skips, takes_all = build_trainer(cell, scratch), build_trainer(cell, scratch)
    skips._advantages = takes_all._advantages = one_in_five  # type: ignore[method-assign]
    takes_all._counts = lambda row: True  # type: ignore[method-assign]
    ours, other = Turns(skips), Turns(takes_all)
    take_turns(ours, other)
    rows = f"{-(-batch // 5)} rows over all {batch}"
    compared(rows, ours.updates, other.updates, "at most 0.45")


def one_in_five(groups: Groups) -> torch.Tensor:
    """Raw rewards of which one in five is 1, beginning with the first, whatever was answered."""
    advantages_P_G = torch.zeros_like(groups.rewards_P_G)
    advantages_P_G[::5] = 1.0
    return advantages_P_G


def evaluations(scratch: str, times: int) -> None:
    """Seconds of our greedy evaluation, of TRL's at its default width, and of TRL's in one pass."""
    cell = tiny(eval={"test_questions": QUESTIONS, "train_questions": 0})
    policy = load_policy(cell)
    evaluator = Evaluator(cell, loaded(cell, policy), TransformersEngine(policy, cell))
    narrow, wide = (
        plain_trainer(cell, scratch, per_device_eval_batch_size=width, num_generations_eval=1)
        for width in (8, QUESTIONS)
    )
    made: list[list[float]] = []
    for _ in range(times):
        runs = (lambda: evaluator.greedy("final", 1), narrow.evaluate, wide.evaluate)
        made.append([timed(run) for run in runs])
    ours, default, widest = (list(column) for column in zip(*made, strict=True))
    told("our seconds", statistics.median(ours))
    told("TRL's seconds", statistics.median(default))
    compared("ours over TRL's at its default width of 8", ours, default, "at most 0.2")
    compared(f"ours over TRL's {QUESTIONS} wide", ours, widest)


# ---- TRL's trainer


def plain_trainer(cell: Cell, scratch: str, **settings: Any) -> GRPOTrainer:
    """TRL's own trainer, told what ours tells it: the advantage alone is what it is by default."""
    policy = load_policy(cell)
    questions = loaded(cell, policy)
    revision, count = cell.dataset_spec.revision, cell.rounds * cell.batch
    stream = prompt_stream(revision, cell.seed, len(questions.train), 0, count)
    args = trainer_settings(cell, 0, scratch)
    for name, value in ({"scale_rewards": "group"} | settings).items():
        setattr(args, name, value)
    trainer = GRPOTrainer(
        model=policy.model,
        args=args,
        reward_funcs=reward_of(cell),
        train_dataset=asked([questions.train[i] for i in stream], policy),
        eval_dataset=asked(questions.test, policy),
        processing_class=policy.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def asked(questions: Sequence[Question], policy: Policy) -> Dataset:
    """Questions as TRL takes them: our prompts as text, and their answers."""
    tokenizer, ids = policy.tokenizer, [list(question.prompt_ids) for question in questions]
    prompts = tokenizer.batch_decode(ids)
    if tokenizer(text=prompts)["input_ids"] != ids:
        raise ValueError("TRL would ask other prompts than we do; expected the same tokens")
    return Dataset.from_dict({"prompt": prompts, "gold": [q.gold for q in questions]})


def reward_of(cell: Cell) -> Callable[..., list[float]]:
    """The cell's grader as a reward function of TRL's."""
    grader = GRADERS[cell.grader]

    def correct(completions: list[str], gold: list[str], **_: Any) -> list[float]:
        return [float(grader(c, g).correct) for c, g in zip(completions, gold, strict=True)]

    return correct


# ---- what they share


def tiny(**settings: Any) -> Cell:
    """A cell of an embedded model and task."""
    return Cell(**{"model": "tiny-qwen2", "dataset": "tiny-sums"} | settings)


def loaded(cell: Cell, policy: Policy) -> Questions:
    """A cell's questions."""
    return prepare(load_questions(cell.dataset_spec), cell, policy.tokenizer)


def timed(run: Callable[[], Any]) -> float:
    """Wall seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compared(what: str, ours: list[float], other: list[float], target: str = "") -> None:
    """The ratio of two medians, and below it its 95% interval over neighbours in time."""
    told(what, statistics.median(ours) / statistics.median(other), target)
    pairs_N_2, rng = np.array([ours, other]).T, generator("ratio", what)
    drawn = rng.integers(len(pairs_N_2), size=(2000, len(pairs_N_2)))
    medians_R_2 = np.median(pairs_N_2[drawn], axis=1)
    low, high = np.percentile(medians_R_2[:, 0] / medians_R_2[:, 1], [2.5, 97.5])
    print(f"    95% interval {low:.3g} to {high:.3g}, n {len(pairs_N_2)}", flush=True)


if __name__ == "__main__":
    main()
