"""How token losses become one number: AGGREGATIONS, name -> weights of tokens. Pure functions.

Every aggregation is a weighted sum of token losses with weights that depend on lengths alone. So
they are computed once for an update, and how many rows share a forward pass changes memory and
speed, not the result beyond rounding. Leaves out the token loss itself, which is TRL's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Aggregation = Callable[[Tensor, int, int], Tensor]


def token_mean_micro_batch(mask_N_T: Tensor, micro_batch: int, max_response: int) -> Tensor:
    """Mean over the tokens of each micro-batch of rows, then over micro-batches (verl's default).

    A last micro-batch with fewer rows counts like the others. TRL calls it `bnpo`.
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
