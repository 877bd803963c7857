"""Recent rollouts of every query, for the advantage of its fresh ones (arXiv 2601.22532, 4.7).

In baseline mode only rewards are kept: the m most recent past rewards of a question join the group
from which its fresh rollouts get their advantage. Leaves out replayed rollouts that take gradient.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple


class Replayed(NamedTuple):
    """A past rollout's reward and the round that drew it."""

    reward: float
    round: int


class ReplayBuffer:
    """The `size` most recent rewards of each question, none older than `max_age` rounds."""

    def __init__(self, size: int, max_age: int | None = None) -> None:
        self.size = size
        self.max_age = max_age
        self._recent: dict[str, deque[Replayed]] = {}

    def recent(self, question: str, round: int) -> list[Replayed]:
        """What joins the question's group in `round`, newest first."""
        kept = reversed(self._recent.get(question, ()))
        return [r for r in kept if self.max_age is None or round - r.round <= self.max_age]

    def add(self, question: str, round: int, rewards: list[float]) -> None:
        """Keep fresh rewards; the oldest make room."""
        if self.size:
            kept = self._recent.setdefault(question, deque(maxlen=self.size))
            kept.extend(Replayed(reward, round) for reward in rewards)

    def state(self) -> dict[str, list[list[float]]]:
        """For a checkpoint: JSON."""
        return {question: [list(r) for r in kept] for question, kept in self._recent.items()}

    def load(self, state: dict[str, list[list[Any]]]) -> None:
        """Take a checkpoint's state in place of one's own."""
        self._recent = {
            question: deque((Replayed(float(r), int(at)) for r, at in kept), maxlen=self.size)
            for question, kept in state.items()
        }
