"""A round's groups: each query's fresh rollouts and the replayed ones that join them.

Shapes: P queries by G = n + m places, fresh ones first. Leaves out advantages (`advantages.py`) and
what a replayed rollout is (`replay.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from grids.cell import Cell
from workers.replay import ReplayBuffer, Rollout


class Member(NamedTuple):
    """A rollout at its place in its group, and its tokens."""

    query: int
    place: int
    rollout: Rollout
    ids_T: Tensor


@dataclass(frozen=True)
class Groups:
    """Rollouts by query and their numbers as tensors.

    `mask_P_G` is False where a place is empty or its rollout could not be scored.
    """

    rollouts_P: tuple[tuple[Rollout, ...], ...]
    questions_P: tuple[str, ...]
    rewards_P_G: Tensor
    mask_P_G: Tensor
    fresh_P_G: Tensor
    ages_P_G: Tensor
    lengths_P_G: Tensor

    @staticmethod
    def of(fresh: Sequence[Rollout], replay: ReplayBuffer, round: int, cell: Cell) -> Groups:
        """Groups of fresh rollouts, n neighbours a query, and of what replay has for them."""
        n, size = cell.rollouts, cell.rollouts + cell.replay
        grouped = []
        for start in range(0, len(fresh), n):
            question = fresh[start].question
            grouped.append((*fresh[start : start + n], *replay.recent(question, round)))
        rewards_P_G = torch.full((len(grouped), size), torch.nan, dtype=torch.float64)
        ages_P_G, lengths_P_G = torch.zeros_like(rewards_P_G), torch.zeros_like(rewards_P_G)
        for p, group in enumerate(grouped):
            count = len(group)
            rewards_P_G[p, :count] = torch.tensor([r.reward for r in group], dtype=torch.float64)
            ages_P_G[p, :count] = torch.tensor([round - r.round for r in group]).double()
            lengths_P_G[p, :count] = torch.tensor([r.length for r in group]).double()
        questions_P = tuple(group[0].question for group in grouped)
        mask_P_G, fresh_P_G = ~rewards_P_G.isnan(), (torch.arange(size) < n).expand_as(ages_P_G)
        return Groups(
            tuple(grouped), questions_P, rewards_P_G, mask_P_G, fresh_P_G, ages_P_G, lengths_P_G
        )

    def members(self, queries: Iterable[int]) -> list[Member]:
        """Rollouts of some queries that take gradient: those whose tokens are at hand."""
        return [
            Member(p, g, rollout, rollout.ids_T)
            for p in queries
            for g, rollout in enumerate(self.rollouts_P[p])
            if rollout.ids_T is not None
        ]


class RunningBaselines:
    """The `ema` estimator's baseline of every question: a running mean of its fresh rewards.

    Args:
        decay: share of the old baseline that a visit keeps; None: nothing is remembered.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self._means: dict[str, float] = {}

    def of(self, groups: Groups) -> Tensor:
        """Baselines before this round, shape (P,); NaN for a question that is new."""
        means = [self._means.get(question, math.nan) for question in groups.questions_P]
        return torch.tensor(means, dtype=torch.float64)

    def add(self, groups: Groups, fresh: int) -> None:
        """Take in a round's fresh rewards, query by query."""
        if self.decay is None:
            return
        for question, group in zip(groups.questions_P, groups.rollouts_P, strict=True):
            rewards = [r.reward for r in group[:fresh] if not math.isnan(r.reward)]
            if rewards:
                mean = sum(rewards) / len(rewards)
                old = self._means.get(question, mean)
                self._means[question] = self.decay * old + (1 - self.decay) * mean

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return dict(self._means)

    def load(self, state: dict[str, float]) -> None:
        """Take a checkpoint's state in place of one's own."""
        self._means = dict(state)
