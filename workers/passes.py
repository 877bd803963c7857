"""Rows of an update, packed into forward passes of like length. Pure functions.

A pass is padded to its own longest prompt and response only, and rows of like length share one, so
that little is computed for nothing. Token weights belong to a row (`losses.py`), so how rows are
packed changes memory and speed, not the result beyond rounding. Leaves out the passes themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grids.cell import Cell
from workers.footprint import PASS_TOKENS, WIDER_WITHOUT_GRADIENT
from workers.plugins import function


@dataclass(frozen=True)
class Row:
    """One response as the loss takes it.

    Attributes:
        prompt: token ids.
        ids_T: the response's tokens.
        advantage: one number for all of its tokens.
        weights_T: of its token losses in the update's loss.
        log_old_T: denominator of the ratio; None: the ratio is 1.
        log_ref_T: log-probabilities under the base; None where there is no KL.
        log_engine_T: those with which another program than the trainer drew the response.
        replayed: drawn in an earlier round.
    """

    prompt: Sequence[int]
    ids_T: Tensor
    advantage: float = 0.0
    weights_T: Tensor | None = None
    log_old_T: Tensor | None = None
    log_ref_T: Tensor | None = None
    log_engine_T: Tensor | None = None
    replayed: bool = False


def token_weights(lengths: Sequence[int], cell: Cell) -> list[Tensor]:
    """Weights of the token losses of an update's rows, in the rows' order; they sum to its loss."""
    lengths_N_1 = torch.tensor(lengths)[:, None]
    mask_N_T = (torch.arange(int(lengths_N_1.max())) < lengths_N_1).float()
    weigh = function(cell, "AGGREGATIONS", cell.aggregation)
    weights_N_T = weigh(mask_N_T, cell.micro_batch, cell.max_response)
    return [weights_T[:n] for weights_T, n in zip(weights_N_T, lengths, strict=True)]


def packed(rows: Sequence[Row], tokens: int, most: int | None = None) -> list[list[Row]]:
    """Rows in passes of like length, the longest first.

    Args:
        rows: in any order.
        tokens: bounds rows × (longest prompt + longest response) of a pass; one row always fits.
        most: bounds the rows of a pass.
    """
    passes: list[list[Row]] = []
    prompt = response = 0
    for row in sorted(rows, key=lambda row: -len(row.ids_T)):
        prompt, response = max(prompt, len(row.prompt)), max(response, len(row.ids_T))
        full = passes and (
            (len(passes[-1]) + 1) * (prompt + response) > tokens or len(passes[-1]) == most
        )
        if not passes or full:
            passes.append([])
            prompt, response = len(row.prompt), len(row.ids_T)
        passes[-1].append(row)
    return passes


# Takes the place of a pass in a process that has fewer than others of its cell.
NOTHING = Row(prompt=(0,), ids_T=torch.tensor([0]), weights_T=torch.zeros(1))


def dealt(
    rows: Sequence[Row], tokens: int, most: int | None, rank: int, count: int
) -> list[list[Row]]:
    """The passes of one of `count` processes: rows of like length are dealt out in turn. All have
    as many passes, for they take each together; what one lacks is `NOTHING`."""
    ordered = sorted(rows, key=lambda row: -len(row.ids_T))
    hands = [packed(ordered[r::count], tokens, most) for r in range(count)]
    lacking = max(map(len, hands)) - len(hands[rank])
    return hands[rank] + [[NOTHING]] * lacking


def pass_bounds(cell: Cell, gradient: bool) -> tuple[int, int | None]:
    """Tokens and, where the cell sets them, rows that one pass may hold."""
    wider = 1 if gradient else WIDER_WITHOUT_GRADIENT
    return PASS_TOKENS * wider, cell.rows_per_pass and cell.rows_per_pass * wider


def padded(rows: Sequence[Row], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """A pass as TRL's loss takes it: prompts padded on the left, responses on the right.

    Weights, ratio denominators and reference log-probabilities are there where the rows have them,
    under the names that TRL gives them; weights travel as its `tool_mask`.
    """
    prompt_ids, prompt_mask = left_padded([row.prompt for row in rows], pad_id)
    lengths = torch.tensor([len(row.ids_T) for row in rows])
    made = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": _pad([row.ids_T for row in rows], pad_id),
        "completion_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "advantages": torch.tensor([row.advantage for row in rows], dtype=torch.float32),
    }
    for name, of in _OPTIONAL.items():
        values = [value for row in rows if (value := of(row)) is not None]
        if len(values) not in (0, len(rows)):
            raise ValueError(f"{name}: {len(values)} of {len(rows)} rows of a pass have it")
        if values:
            made[name] = _pad(values, 0.0)
    return {name: value.to(device) for name, value in made.items()}


_OPTIONAL: dict[str, Callable[[Row], Tensor | None]] = {
    "tool_mask": lambda row: row.weights_T,
    "old_per_token_logps": lambda row: row.log_old_T,
    "ref_per_token_logps": lambda row: row.log_ref_T,
    "engine_per_token_logps": lambda row: row.log_engine_T,
}


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts that end together."""
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = np.full((len(prompts), longest), pad_id)
    for row, prompt in zip(ids, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    mask = np.arange(longest) >= longest - lengths[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask).long()


def _pad(parts: Sequence[Tensor], value: float) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value)
