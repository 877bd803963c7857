"""ADVANTAGES: how a group's rewards become advantages. Pure functions.

Shapes: P queries ("prompts") by G rollouts of each, `rewards_P_G`; `mask_P_G` is False where a
group has no sample there, and a group's size is its unmasked count. Masked entries return 0. With
replay in baseline mode the replayed rewards are columns of the group like any other; "the batch" is
every unmasked sample, replayed ones included. Leaves out what the loss does with an advantage and
how running baselines are kept from one round to the next (`groups.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# verl's epsilon (core_algos.compute_grpo_outcome_advantage); TRL's is 1e-4.
EPSILON = 1e-6
# verl's epsilon when it whitens (torch_functional.masked_whiten), added to the variance.
WHITEN_EPSILON = 1e-8


@dataclass(frozen=True)
class Context:
    """What some estimators need beyond rewards.

    Attributes:
        singleton: what a group-relative advantage gives over a group of one:
            raw (verl's rule: the reward itself), zero, or batch_mean (reward minus mean of all).
        fresh_P_G: True where the sample was drawn this round.
        ages_P_G: age in rounds; 0 for fresh samples.
        lengths_P_G: response tokens of each sample; without it every sample counts as one token.
        questions_P: id of each question.
        history_P: running baseline of each question before this round; NaN where it has none yet.
    """

    singleton: str = "raw"
    fresh_P_G: Tensor | None = None
    ages_P_G: Tensor | None = None
    lengths_P_G: Tensor | None = None
    questions_P: tuple[str, ...] | None = None
    history_P: Tensor | None = None


Estimator = Callable[..., Tensor]


def raw(rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None) -> Tensor:
    """The reward itself: REINFORCE without a baseline (arXiv 2601.22532, section 4.2).

    Group of one: its reward. Constant group: its rewards. The singleton rule does not apply.
    """
    return _only(rewards_P_G, mask_P_G)


def mean_centered(
    rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None
) -> Tensor:
    """r - mean over the group (Dr. GRPO, arXiv 2503.20783).

    Group of one: the singleton rule. Constant group: 0.
    """
    centred_P_G = rewards_P_G - _mean(rewards_P_G, mask_P_G)
    return _with_singletons(centred_P_G, rewards_P_G, mask_P_G, context or Context())


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


def rloo(rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None) -> Tensor:
    """r - mean of the group's other rewards = n/(n-1) (r - mean) (RLOO, arXiv 2402.14740).

    Group of one, which has no others: the singleton rule. Constant group: 0.
    """
    size_P_1 = mask_P_G.sum(1, keepdim=True)
    centred_P_G = rewards_P_G - _mean(rewards_P_G, mask_P_G)
    advantages_P_G = centred_P_G * size_P_1 / (size_P_1 - 1).clamp(min=1)
    return _with_singletons(advantages_P_G, rewards_P_G, mask_P_G, context or Context())


def max_rl(rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None) -> Tensor:
    """(r - mean) / mean over the group (MaxRL, arXiv 2602.02710).

    Group of one: the singleton rule. Constant group: 0. A group of mean 0 or less carries no signal
    and gives 0 too.
    """
    mean_P_1 = _mean(rewards_P_G, mask_P_G)
    advantages_P_G = torch.where(mean_P_1 > 0, (rewards_P_G - mean_P_1) / mean_P_1, 0.0)
    return _with_singletons(advantages_P_G, rewards_P_G, mask_P_G, context or Context())


def reinforce_pp(
    rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None
) -> Tensor:
    """(r - mean) / sqrt(var + 1e-8) over the batch's tokens (REINFORCE++, arXiv 2501.03262).

    As verl computes it: a sample weighs as many times as its response has tokens, and Bessel's
    correction counts tokens. There is no group: a group of one or a constant group is part of the
    batch like any other, and the singleton rule does not apply. Constant batch: 0.
    """
    return _whitened(rewards_P_G, mask_P_G, (context or Context()).lengths_P_G)


def reinforce_pp_baseline(
    rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None
) -> Tensor:
    """r - group mean, then whitened over the batch's tokens (REINFORCE++, arXiv 2501.03262).

    As verl's reinforce_plus_plus_baseline. Group of one: what the singleton rule gives (the reward
    itself under raw, as in verl), then whitened with the rest. Constant group: 0, then whitened:
    0 too where the batch's centred rewards average 0. Batch of constant groups: 0.
    """
    centred_P_G = mean_centered(rewards_P_G, mask_P_G, context=context)
    return _whitened(centred_P_G, mask_P_G, (context or Context()).lengths_P_G)


def opo(rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None) -> Tensor:
    """r - sum(l r) / sum(l) over the group, l the response's tokens (OPO, arXiv 2505.23585).

    Group of one: the singleton rule. Constant group: 0. Without lengths it is mean_centered.
    """
    context = context or Context()
    centred_P_G = rewards_P_G - _mean(rewards_P_G, mask_P_G, context.lengths_P_G)
    return _with_singletons(centred_P_G, rewards_P_G, mask_P_G, context)


def ema(rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None) -> Tensor:
    """r - running baseline of the question before this round (`groups.RunningBaselines` keeps it).

    REINFORCE's moving-average baseline (Williams 1992), one per question as in SPO (arXiv
    2509.13232), whose adaptive decay and batch normalisation are left out. Group of one or constant
    group: r - baseline as well. A question without a baseline falls back to mean_centered; only
    there do replayed samples enter the baseline, and only there does the singleton rule apply.
    """
    context = context or Context()
    centred_P_G = mean_centered(rewards_P_G, mask_P_G, context=context)
    if context.history_P is None:
        return centred_P_G
    history_P_1 = context.history_P.to(rewards_P_G).unsqueeze(1)
    return torch.where(history_P_1.isnan(), centred_P_G, _only(rewards_P_G - history_P_1, mask_P_G))


def batch_mean(rewards_P_G: Tensor, mask_P_G: Tensor, *, context: Context | None = None) -> Tensor:
    """r - mean over the batch: REINFORCE with one baseline for all (Williams 1992).

    There is no group: a group of one or a constant group gives r - mean of all, and the singleton
    rule does not apply. Constant batch: 0.
    """
    return _only(rewards_P_G - _batch_mean(rewards_P_G, mask_P_G), mask_P_G)


ADVANTAGES: dict[str, Estimator] = {
    "raw": raw,
    "mean_centered": mean_centered,
    "grpo": grpo,
    "rloo": rloo,
    "max_rl": max_rl,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "opo": opo,
    "ema": ema,
    "batch_mean": batch_mean,
}
# The singleton rule applies to every group of one. Not so for ema, which follows the rule only for
# a question that has no running baseline yet.
GROUP_RELATIVE = frozenset(
    {"mean_centered", "grpo", "rloo", "max_rl", "reinforce_pp_baseline", "opo"}
)


def _mean(rewards_P_G: Tensor, mask_P_G: Tensor, weights_P_G: Tensor | None = None) -> Tensor:
    """Weighted group means, shape (P, 1); an empty group's is inf and is used nowhere."""
    if weights_P_G is None:
        weights_P_G = torch.ones_like(rewards_P_G)
    weights_P_G = _only(weights_P_G.to(rewards_P_G), mask_P_G)
    # Averaged as distances from the lowest, so that equal rewards centre to 0 without rounding,
    # which a small standard deviation would blow up.
    low_P_1 = torch.where(mask_P_G, rewards_P_G, torch.inf).amin(1, keepdim=True)
    total_P_1 = (weights_P_G * _only(rewards_P_G - low_P_1, mask_P_G)).sum(1, keepdim=True)
    return low_P_1 + total_P_1 / weights_P_G.sum(1, keepdim=True).clamp(min=1)


def _batch_mean(rewards_P_G: Tensor, mask_P_G: Tensor, weights_P_G: Tensor | None = None) -> Tensor:
    """Weighted mean of the batch, shape (1, 1): its mean as one group."""
    weights_1_N = None if weights_P_G is None else weights_P_G.reshape(1, -1)
    return _mean(rewards_P_G.reshape(1, -1), mask_P_G.reshape(1, -1), weights_1_N)


def _whitened(values_P_G: Tensor, mask_P_G: Tensor, lengths_P_G: Tensor | None) -> Tensor:
    """verl's masked_whiten over the tokens of the batch; a batch of one token gives 0."""
    if lengths_P_G is None:
        lengths_P_G = torch.ones_like(values_P_G)
    lengths_P_G = _only(lengths_P_G.to(values_P_G), mask_P_G)
    centred_P_G = _only(values_P_G - _batch_mean(values_P_G, mask_P_G, lengths_P_G), mask_P_G)
    bessel = (lengths_P_G.sum() - 1).clamp(min=1)
    variance = (lengths_P_G * centred_P_G.square()).sum() / bessel
    return centred_P_G / (variance + WHITEN_EPSILON).sqrt()


def _with_singletons(
    advantages_P_G: Tensor, rewards_P_G: Tensor, mask_P_G: Tensor, context: Context
) -> Tensor:
    """Replace the advantages of groups of one by what the singleton rule gives."""
    if context.singleton == "raw":
        alone_P_G = rewards_P_G
    elif context.singleton == "zero":
        alone_P_G = torch.zeros_like(rewards_P_G)
    else:
        alone_P_G = batch_mean(rewards_P_G, mask_P_G)
    single_P_1 = mask_P_G.sum(1, keepdim=True) == 1
    return _only(torch.where(single_P_1, alone_P_G, advantages_P_G), mask_P_G)


def _only(values_P_G: Tensor, mask_P_G: Tensor) -> Tensor:
    """The unmasked values, 0 elsewhere: whatever a masked entry holds, NaN included, is ignored."""
    return torch.where(mask_P_G, values_P_G, torch.zeros_like(values_P_G))
