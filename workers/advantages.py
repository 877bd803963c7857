"""ADVANTAGES: how a group's rewards become advantages. Pure functions.

Shapes: P queries ("prompts") by G rollouts of each, `rewards_P_G`; `mask_P_G` is False where a
group has no sample there, and a group's size is its unmasked count. Masked entries return 0. With
replay in baseline mode the replayed rewards are columns of the group like any other. Leaves out
what the loss does with an advantage (`trainer.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# verl's epsilon (core_algos.compute_grpo_outcome_advantage); TRL's is 1e-4.
EPSILON = 1e-6


@dataclass(frozen=True)
class Context:
    """What some estimators need beyond rewards.

    Attributes:
        singleton: what a group-relative advantage gives over a group of one:
            raw (verl's rule: the reward itself), zero, or batch_mean (reward minus mean of all).
        fresh_P_G: True where the sample was drawn this round.
        ages_P_G: age in rounds; 0 for fresh samples.
    """

    singleton: str = "raw"
    fresh_P_G: Tensor | None = None
    ages_P_G: Tensor | None = None


Estimator = Callable[..., Tensor]


def raw(rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None) -> Tensor:
    """The reward itself: REINFORCE without a baseline (arXiv 2601.22532, section 4.2).

    Group of one: its reward. Constant group: its rewards. The singleton rule does not apply.
    """
    return _only(rewards_P_G, mask_P_G)


def grpo(rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None) -> Tensor:
    """(r - mean) / (sd + 1e-6) over the group (GRPO, arXiv 2402.03300, section 4.1.2).

    As verl computes it: sd with Bessel's correction. Group of one: the singleton rule. Constant
    group: 0.
    """
    size_P_1 = mask_P_G.sum(1, keepdim=True)
    centred_P_G = _only(rewards_P_G - _mean(rewards_P_G, mask_P_G), mask_P_G)
    variance_P_1 = centred_P_G.square().sum(1, keepdim=True) / (size_P_1 - 1).clamp(min=1)
    advantages_P_G = centred_P_G / (variance_P_1.sqrt() + EPSILON)
    return _with_singletons(advantages_P_G, rewards_P_G, mask_P_G, context or Context())


ADVANTAGES: dict[str, Estimator] = {"raw": raw, "grpo": grpo}


def _mean(rewards_P_G: Tensor, mask_P_G: Tensor) -> Tensor:
    """Group means, shape (P, 1); an empty group's is 0 and is used nowhere."""
    total_P_1 = _only(rewards_P_G, mask_P_G).sum(1, keepdim=True)
    return total_P_1 / mask_P_G.sum(1, keepdim=True).clamp(min=1)


def _with_singletons(
    advantages_P_G: Tensor, rewards_P_G: Tensor, mask_P_G: Tensor, context: Context
) -> Tensor:
    """Replace the advantages of groups of one by what the singleton rule gives."""
    if context.singleton == "raw":
        alone_P_G = rewards_P_G
    elif context.singleton == "zero":
        alone_P_G = torch.zeros_like(rewards_P_G)
    else:
        alone_P_G = rewards_P_G - rewards_P_G[mask_P_G].mean()
    single_P_1 = mask_P_G.sum(1, keepdim=True) == 1
    return _only(torch.where(single_P_1, alone_P_G, advantages_P_G), mask_P_G)


def _only(values_P_G: Tensor, mask_P_G: Tensor) -> Tensor:
    """The unmasked values, 0 elsewhere: whatever a masked entry holds, NaN included, is ignored."""
    return torch.where(mask_P_G, values_P_G, torch.zeros_like(values_P_G))
