"""Recent rollouts of every query (arXiv 2601.22532, section 4.7).

In baseline mode the rewards of a question's m most recent rollouts join the group from which its
fresh ones get their advantage, and only rewards are kept. In train mode they take gradient too, so
their tokens are kept, with the log-probabilities that they had under the policy that wrote them.
Leaves out where the rollouts come from (`trainer.py`) and how a ratio is used (`losses.py`, TRL).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """One response to a question, and what later rounds may need of it.

    Attributes:
        question: id.
        round: that drew it; 0 for the base model.
        reward: in [0, 1]; NaN where it could not be scored.
        length: response tokens, the stop token included.
        ids_T: the response's tokens; None where only its reward is kept.
        log_p_T: log-probabilities under the policy that wrote it.
        log_ref_T: log-probabilities under the base model.
        log_engine_T: log-probabilities that the engine drew it with, where that is another program.
    """

    question: str
    round: int
    reward: float
    length: int
    ids_T: Tensor | None = None
    log_p_T: Tensor | None = None
    log_ref_T: Tensor | None = None
    log_engine_T: Tensor | None = None


class ReplayBuffer:
    """The `size` most recent rollouts of each question, none older than `max_age` rounds.

    Args:
        size: rollouts a question.
        max_age: in rounds; None: no limit.
        tokens: whether tokens and log-probabilities are kept, or rewards alone.
    """

    def __init__(self, size: int, max_age: int | None = None, tokens: bool = False) -> None:
        self.size, self.max_age, self.tokens = size, max_age, tokens
        self._recent: dict[str, deque[Rollout]] = {}

    def recent(self, question: str, round: int) -> list[Rollout]:
        """What joins the question's group in `round`, newest first."""
        kept = reversed(self._recent.get(question, ()))
        return [r for r in kept if self.max_age is None or round - r.round <= self.max_age]

    def add(self, rollouts: Iterable[Rollout]) -> None:
        """Keep rollouts, in the order given, but the unscored; the oldest make room."""
        for rollout in rollouts:
            if self.size and rollout.reward == rollout.reward:
                kept = self._recent.setdefault(rollout.question, deque(maxlen=self.size))
                kept.append(_on_cpu(rollout) if self.tokens else _light(rollout))

    def state(self) -> dict[str, Any]:
        """For a checkpoint: few, large tensors, whatever the number of rollouts."""
        all_kept = [rollout for kept in self._recent.values() for rollout in kept]
        return {
            "question": [r.question for r in all_kept],
            "round": torch.tensor([r.round for r in all_kept], dtype=torch.long),
            "reward": torch.tensor([r.reward for r in all_kept], dtype=torch.float64),
            "length": torch.tensor([r.length for r in all_kept], dtype=torch.long),
            **{name: _joined([getattr(r, name) for r in all_kept]) for name in _PER_TOKEN},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state in place of one's own."""
        self._recent = {}
        lengths = state["length"].tolist()
        numbers = zip(
            state["question"], state["round"].tolist(), state["reward"].tolist(), lengths,
            *(_parted(state.get(name), lengths) for name in _PER_TOKEN), strict=True,
        )  # fmt: skip
        for values in numbers:
            rollout = Rollout(*values)
            self._recent.setdefault(rollout.question, deque(maxlen=self.size)).append(rollout)


_PER_TOKEN = ("ids_T", "log_p_T", "log_ref_T", "log_engine_T")


def _light(rollout: Rollout) -> Rollout:
    return replace(rollout, ids_T=None, log_p_T=None, log_ref_T=None, log_engine_T=None)


def _on_cpu(rollout: Rollout) -> Rollout:
    """A copy of its own: a view would keep the whole round's tensor alive."""
    return replace(
        rollout,
        **{
            name: value.to("cpu", copy=True)
            for name in _PER_TOKEN
            if (value := getattr(rollout, name)) is not None
        },
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    kept = [part for part in parts if part is not None]
    return torch.cat(kept) if kept else None


def _parted(joined: Tensor | None, lengths: Sequence[int]) -> Sequence[Tensor | None]:
    if joined is None:
        return [None] * len(lengths)
    return [part.clone() for part in joined.split(list(lengths))]
