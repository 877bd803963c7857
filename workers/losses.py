"""How token losses become one number, and what is added to them. Pure functions.

AGGREGATIONS: name -> weights of tokens. Every aggregation is a weighted sum of token losses with
weights that depend on lengths alone. So they are computed once for an update, over all of its rows,
and which rows share a forward pass changes memory and speed, not the result beyond rounding.
KLS: name -> estimate of the KL from the base, by token. LOSSES: name -> a token's loss, where it is
not TRL's, which is left out here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grids.cell import Cell

TokenLoss = Callable[..., Tensor]
Aggregation = Callable[[Tensor, int, int], Tensor]
KL = Callable[[Tensor, Tensor], Tensor]

# verl's bounds of k3 (core_algos.kl_penalty_forward): of the log-ratio, and of the estimate.
K3_LOG_RATIO, K3_LARGEST = 20.0, 10.0
# TRL has no word for no clip: a width that no ratio reaches.
NO_CLIP = 1e9


def token_mean_micro_batch(mask_N_T: Tensor, micro_batch: int, max_response: int) -> Tensor:
    """Mean over the tokens of each micro-batch of rows, then over micro-batches (verl's default).

    A last micro-batch with fewer rows counts like the others, and a token of a short micro-batch
    counts more than one of a long: so, alone of the four, it depends on the size of micro-batches.
    TRL calls it `bnpo`.
    """
    weights_N_T = torch.zeros_like(mask_N_T)
    parts = mask_N_T.split(micro_batch)
    for i, part in enumerate(parts):
        share = part / part.sum().clamp(min=1) / len(parts)
        weights_N_T[i * micro_batch : i * micro_batch + len(part)] = share
    return weights_N_T


def token_mean(mask_N_T: Tensor, micro_batch: int, max_response: int) -> Tensor:
    """Mean over all tokens of the update (DAPO, arXiv 2503.14476, eq. 8)."""
    return mask_N_T / mask_N_T.sum().clamp(min=1)


def seq_mean_token_mean(mask_N_T: Tensor, micro_batch: int, max_response: int) -> Tensor:
    """Mean over each response's tokens, then over responses (GRPO, arXiv 2402.03300, eq. 3)."""
    return mask_N_T / mask_N_T.sum(1, keepdim=True).clamp(min=1) / len(mask_N_T)


def seq_mean_token_sum(mask_N_T: Tensor, micro_batch: int, max_response: int) -> Tensor:
    """Sum over each response's tokens over a constant, then mean (Dr. GRPO, arXiv 2503.20783).

    The constant is `max_response`.
    """
    return mask_N_T / max_response / len(mask_N_T)


AGGREGATIONS: dict[str, Aggregation] = {
    "token_mean_micro_batch": token_mean_micro_batch,
    "token_mean": token_mean,
    "seq_mean_token_mean": seq_mean_token_mean,
    "seq_mean_token_sum": seq_mean_token_sum,
}


def k1(log_p: Tensor, log_ref: Tensor) -> Tensor:
    """log p - log ref: unbiased, of any sign (Schulman, "Approximating KL Divergence", 2020).

    As a term of the loss its gradient is that of log p: where the update is on-policy, zero in
    expectation.
    """
    return log_p - log_ref


def k2(log_p: Tensor, log_ref: Tensor) -> Tensor:
    """(log p - log ref)^2 / 2: biased, never negative (Schulman 2020)."""
    return (log_p - log_ref).square() / 2


def k3(log_p: Tensor, log_ref: Tensor) -> Tensor:
    """ref / p - 1 - log(ref / p): unbiased, never negative (Schulman 2020; GRPO, eq. 4).

    Bounded as in verl: the log-ratio to +-20, the estimate to 10.
    """
    log_ratio = (log_ref - log_p).clamp(-K3_LOG_RATIO, K3_LOG_RATIO)
    return (log_ratio.exp() - log_ratio - 1).clamp(-K3_LARGEST, K3_LARGEST)


KLS: dict[str, KL] = {"k1": k1, "k2": k2, "k3": k3}

# (log_p_N_T, log_old_N_T, advantages_N_1, *, low, high) -> losses_N_T: of plug-ins. The default,
# `clip`, is PPO's with the dual clip, and TRL computes it.
LOSSES: dict[str, TokenLoss] = {}


# Truncated importance sampling: the most that a token may weigh under the trainer's policy over the
# engine's (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
# training"; C = 2 there and in verl's rollout correction).
CORRECTION_CAP = 2.0


def corrected(weights: Tensor, log_p: Tensor, log_engine: Tensor) -> Tensor:
    """Token weights times the policy that is trained over the program that drew the tokens.

    Args:
        weights: of the token losses.
        log_p: of the tokens, under the policy that sampled, as the trainer computes it.
        log_engine: the same, as the engine computed it; all of one shape.
    """
    return weights * (log_p - log_engine).exp().clamp(max=CORRECTION_CAP)


def clipped(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual: float | None
) -> Tensor:
    """Where the clip takes the gradient away (PPO, arXiv 1707.06347, eq. 7; dual: 1912.09729).

    Args:
        ratio: policy now over the policy that sampled, by token.
        advantages: of the same shape, or one that broadcasts to it.
        low: tokens with a negative advantage lose their gradient below 1 - low.
        high: tokens with a positive one lose it above 1 + high.
        dual: tokens with a negative one lose it above this too; None: no dual clip.
    """
    negative, positive = advantages < 0, advantages > 0
    cut = (negative & (ratio < 1 - low)) | (positive & (ratio > 1 + high))
    return cut if dual is None else cut | (negative & (ratio > dual))


def clip_bounds(cell: Cell) -> tuple[float, float, float | None]:
    """Lower and upper width of a cell's clip, and its dual clip; without a clip there is none of
    any kind."""
    low = NO_CLIP if cell.clip is None else cell.clip
    return low, cell.clip_high or low, cell.dual_clip if cell.clip else None
