"""Trainers that take turns in one process, round by round, so that a slow spell hits them alike.

Each trains in a thread of its own, of which one alone runs at any time. Leaves out what is compared
(`ratios.py`).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

# First rounds, which warm up, are not counted.
WARM_UP = 3


class Turns(TrainerCallback):
    """One trainer's turns: what each round took, from one step's end to the next.

    Attributes:
        steps: seconds of its rounds.
        updates: seconds of their updates, from the loss to the optimiser's step; ours alone.
        tokens: mean length of their responses.
    """

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer, self.turn, self.done = trainer, Semaphore(0), False
        self.began = 0.0
        self.steps: list[float] = []
        self.updates: list[float] = []
        self.tokens: list[float] = []
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def train(self, other: Turns) -> None:
        """Train to the end, one round in each turn; an error ends this trainer alone."""
        self.other = other
        self.turn.acquire()
        try:
            self.trainer.train()
        finally:
            self.done = True
            other.turn.release()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= WARM_UP and hasattr(self.trainer, "update_began"):
            self.updates.append(time.perf_counter() - self.trainer.update_began)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > WARM_UP:
            self.steps.append(time.perf_counter() - self.began)
            self.tokens.append(self.trainer._metrics["train"]["completions/mean_length"][-1])
        if not self.other.done:
            self.other.turn.release()
            self.turn.acquire()
        self.began = time.perf_counter()


def take_turns(first: Turns, second: Turns) -> None:
    """Train two trainers to their ends."""
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(first.train, second), pool.submit(second.train, first)]
        first.turn.release()
    for run in runs:
        run.result()
