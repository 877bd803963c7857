"""Round: what one round leaves for the journal, and the seconds of its phases.

Metrics that need the weights are computed by whoever has them (`trainer.py`) and told here. Missing
is absent, never 0: a round that replays nothing has no ages. Leaves out evaluations.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grids import outcome
from grids.cell import Cell
from workers import ranks
from workers.advantages import mean_centered
from workers.data import Question
from workers.engine import Response
from workers.groups import Groups
from workers.losses import clip_bounds, clipped
from workers.passes import Row
from workers.scoring import Scored

# Rollouts of an evaluated round whose gradients are looked at one by one.
GRADIENT_ROLLOUTS = 32
# Metrics to which every pass adds.
SUMS = (outcome.LOSS, outcome.KL)


class Round:
    """One round of a cell, from its first rollout to its last update."""

    def __init__(self, number: int, cell: Cell) -> None:
        self.number, self.cell = number, cell
        self.metrics: dict[str, float] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.rollouts: list[dict[str, Any]] = []
        self._replayed, self._all = _Ratios(), _Ratios()
        self._gaps = _Gaps()

    @property
    def evaluated(self) -> bool:
        """Whether the policy that this round leaves is scored."""
        return self.number % self.cell.eval.every == 0 or self.number == self.cell.rounds

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds of a block as the phase's."""
        began = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - began

    def add(self, name: str, value: float) -> None:
        """A pass's share of a number that the round's updates are averaged over."""
        share = value / self.cell.updates_per_round
        self.metrics[name] = self.metrics.get(name, 0.0) + share

    def note_rollouts(
        self, asked: Sequence[Question], responses: Sequence[Response], scored: Scored
    ) -> None:
        """Of the fresh rollouts: rewards, grades, lengths, and one to read."""
        tokens = [len(response.ids) for response in responses]
        rewards = torch.tensor([r for r in scored.rewards if r == r], dtype=torch.float64)
        self.metrics |= {
            outcome.REWARD: rewards.mean().item(),
            outcome.REWARD_SD: rewards.std().item() if len(rewards) > 1 else math.nan,
            outcome.CORRECT: _share([g.correct for g in scored.grades if g]),
            outcome.PARSED: _share([g.parsed for g in scored.grades if g]),
            outcome.UNSCORED: _share([g is None for g in scored.grades]),
            outcome.TRUNCATED: _share([response.truncated for response in responses]),
            outcome.RESPONSE_TOKENS: sum(tokens) / len(tokens),
            outcome.GENERATED_TOKENS: float(sum(tokens)),
            outcome.UPDATES: float(self.cell.updates_per_round),
            outcome.LOSS: 0.0,
        }
        if scored.flipped:
            graded = zip(scored.flipped, scored.grades, strict=True)
            self.metrics[outcome.REWARD_FLIPPED] = _share([flip for flip, g in graded if g])
        if lenient := [g.correct for g in scored.flexible if g]:
            self.metrics[outcome.CORRECT_FLEXIBLE] = _share(lenient)
        first = {"question": asked[0].text, "gold": asked[0].gold, "completion": scored.texts[0]}
        self.rollouts = [{**first, "reward": scored.rewards[0]}]

    def note_groups(self, groups: Groups, advantages_P_G: Tensor) -> None:
        """Of the groups: how many can teach, their sizes, and how old what is replayed is.

        By the rewards that are trained on, graded or noisy ones too: all wrong where each is 0, all
        right where each is 1, mixed where they differ. So a group of equal rewards between 0 and 1,
        which teaches nothing relative to itself, is none of the three; nor is one without rewards.
        """
        n = self.cell.rollouts
        rewards_P_n, scored_P_n = groups.rewards_P_G[:, :n], groups.mask_P_G[:, :n]
        wrong_P = ((rewards_P_n == 0) | ~scored_P_n).all(1) & scored_P_n.any(1)
        right_P = ((rewards_P_n == 1) | ~scored_P_n).all(1) & scored_P_n.any(1)
        sizes_P = groups.mask_P_G.sum(1).double()
        self.metrics |= {
            outcome.ADVANTAGE_MEAN: advantages_P_G[:, :n].mean().item(),
            outcome.GROUPS_ALL_WRONG: wrong_P.double().mean().item(),
            outcome.GROUPS_ALL_RIGHT: right_P.double().mean().item(),
            outcome.GROUPS_MIXED: _differ(rewards_P_n, scored_P_n).double().mean().item(),
            outcome.GROUP_SIZE: sizes_P.mean().item(),
            outcome.SINGLETONS: (sizes_P == 1).double().mean().item(),
        }
        if (ages := groups.ages_P_G[groups.mask_P_G & (groups.ages_P_G > 0)]).numel():
            self.metrics[outcome.AGE_MEAN] = ages.mean().item()
            self.metrics[outcome.AGE_MAX] = ages.max().item()

    def note_passes(self, passes: Sequence[Sequence[Row]]) -> None:
        """Tokens of the responses that take a forward and backward pass in an update."""
        count = sum(len(row.ids_T) for rows in passes for row in rows)
        self.metrics[outcome.TRAINED_TOKENS] = self.metrics.get(outcome.TRAINED_TOKENS, 0.0) + count

    def note_ratios(self, rows: Sequence[Row], log_p_N_T: Tensor, inputs: dict[str, Any]) -> None:
        """Of a pass: policy now over the policy that sampled, by token, and what is clipped.

        Only rows with a gradient take a pass, and so only they are counted.
        """
        mask_N_T = inputs["completion_mask"].bool()
        old_N_T = inputs.get("old_per_token_logps", log_p_N_T)
        ratio_N_T = (log_p_N_T - old_N_T).double().exp()
        cut_N_T = clipped(ratio_N_T, inputs["advantages"][:, None], *clip_bounds(self.cell))
        self._all.add(ratio_N_T[mask_N_T], cut_N_T[mask_N_T])
        replayed_N = torch.tensor([row.replayed for row in rows], device=mask_N_T.device)
        if replayed_N.any():
            chosen_N_T = mask_N_T & replayed_N[:, None]
            self._replayed.add(ratio_N_T[chosen_N_T], cut_N_T[chosen_N_T])
        self._tell()

    def _tell(self) -> None:
        """What passes noted, as metrics."""
        if self._all.count:
            self.metrics[outcome.CLIP_SHARE] = self._all.clipped
        if self._replayed.count:
            self.metrics[outcome.RATIO_MEAN] = self._replayed.mean
            self.metrics[outcome.RATIO_SD] = self._replayed.sd
            self.metrics[outcome.RATIO_CLIPPED] = self._replayed.clipped
        if self._gaps.count:
            self.metrics[outcome.ENGINE_GAP] = self._gaps.mean
            self.metrics[outcome.ENGINE_GAP_MAX] = self._gaps.largest

    def settle(self) -> None:
        """At the end: take in what the cell's other processes noted of their passes."""
        if ranks.here().count == 1:
            return
        sums = {name: self.metrics[name] for name in SUMS if name in self.metrics}
        noted = ranks.gathered((sums, self._all, self._replayed, self._gaps))
        self._all, self._replayed, self._gaps = _Ratios(), _Ratios(), _Gaps()
        for name in SUMS:
            if parts := [other[0][name] for other in noted if name in other[0]]:
                self.metrics[name] = sum(parts)
        for _, ratios, replayed, gaps in noted:
            self._all.absorb(ratios)
            self._replayed.absorb(replayed)
            self._gaps.absorb(gaps)
        self._tell()

    def note_engine(self, log_p: Tensor, log_engine: Tensor, mask: Tensor) -> None:
        """Of tokens that another program drew: how far its log-probabilities are from the
        trainer's, under the same weights. All of one shape; `mask` says which are tokens."""
        self._gaps.add((log_p - log_engine).double().abs()[mask.bool()])
        self._tell()


class _Gaps:
    """Running mean and maximum of distances."""

    def __init__(self) -> None:
        self.count, self.sum, self.largest = 0, 0.0, 0.0

    def add(self, gaps: Tensor) -> None:
        self.count += gaps.numel()
        self.sum += gaps.sum().item()
        if gaps.numel():
            self.largest = float(np.maximum(self.largest, gaps.max().item()))  # NaN stays NaN

    def absorb(self, other: _Gaps) -> None:
        self.count, self.sum = self.count + other.count, self.sum + other.sum
        self.largest = float(np.maximum(self.largest, other.largest))

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else math.nan


class _Ratios:
    """Running mean, spread and clipped share of token ratios."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = self.squares = self.cut = 0.0

    def add(self, ratios: Tensor, cut: Tensor) -> None:
        self.count += ratios.numel()
        self.sum += ratios.sum().item()
        self.squares += (ratios - 1).square().sum().item()
        self.cut += cut.sum().item()

    def absorb(self, other: _Ratios) -> None:
        self.count, self.cut = self.count + other.count, self.cut + other.cut
        self.sum, self.squares = self.sum + other.sum, self.squares + other.squares

    @property
    def mean(self) -> float:
        return self.sum / self.count

    @property
    def sd(self) -> float:
        """About the mean; from squares about 1, which ratios lie near."""
        return math.sqrt(max(0.0, self.squares / self.count - (self.mean - 1) ** 2))

    @property
    def clipped(self) -> float:
        return self.cut / self.count


def second_moments(
    groups: Groups, rows: Sequence[Sequence[Row]], norm: Callable[[Row], float]
) -> dict[str, float]:
    """E |A grad log pi(response)|^2 with the reward as A, and with reward minus group mean.

    Both are over the same rollouts: of whole groups with more than one sample, up to about
    `GRADIENT_ROLLOUTS`; where no group has more than one, the first alone is told. The smaller of
    the two is the less noisy gradient: it says what a group baseline can add.

    Args:
        groups: of the round.
        rows: each query's fresh rollouts as rows.
        norm: row -> |grad log pi(response)|^2.
    """
    alike_P_G = mean_centered(groups.rewards_P_G, groups.mask_P_G)
    larger = [p for p, size in enumerate(groups.mask_P_G.sum(1).tolist()) if size > 1]
    raw: list[float] = []
    centred: list[float] = []
    for p in larger or range(len(rows)):
        if raw and len(raw) + len(rows[p]) > GRADIENT_ROLLOUTS:
            break
        for g, row in enumerate(rows[p]):
            reward, advantage = groups.rewards_P_G[p, g].item(), alike_P_G[p, g].item()
            if not math.isnan(reward):
                square = norm(row) if reward or advantage else 0.0
                raw.append(reward**2 * square)
                centred.append(advantage**2 * square)
    made = {outcome.GRADIENT_ROLLOUTS: float(len(raw)), outcome.SECOND_MOMENT_RAW: _share(raw)}
    return made | ({outcome.SECOND_MOMENT_GROUP: _share(centred)} if larger else {})


def _differ(rewards_P_G: Tensor, mask_P_G: Tensor) -> Tensor:
    """Which groups hold more than one reward; not those without any."""
    low_P = torch.where(mask_P_G, rewards_P_G, torch.inf).amin(1)
    return low_P < torch.where(mask_P_G, rewards_P_G, -torch.inf).amax(1)


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
