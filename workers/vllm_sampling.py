"""Sampling in vLLM with the numbers that every engine takes: one per (row, token), by inversion.

vLLM's own seeds would not do: they make other tokens than transformers' engine, and one call of a
generator for each row and token. A logits processor leaves the picked token alone, which vLLM then
takes as the largest, and notes the log-probability that it had. Leaves out the engine
(`vllm_engine.py`) and the numbers (`sampling.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from workers.engine import inverted, only

ROW = "row"  # in a request's extra arguments: its row among the numbers
# Rows whose distributions, in float64, are there at once.
ROWS_AT_ONCE = 128


class Draw:
    """The numbers of one call of the engine, and the log-probabilities of what they picked."""

    def __init__(self, uniforms_R_T: np.ndarray, temperature: float) -> None:
        self.uniforms_R_T = torch.from_numpy(uniforms_R_T)
        self.temperature = temperature
        self._picked: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, steps, log-probabilities

    def pick(self, scores_B_V: Tensor, rows_B: Tensor, steps_B: Tensor) -> Tensor:
        """The next token of each row of the batch, shape (B,)."""
        uniforms_B = self.uniforms_R_T[rows_B, steps_B].to(scores_B_V.device)
        parts = zip(scores_B_V.split(ROWS_AT_ONCE), uniforms_B.split(ROWS_AT_ONCE), strict=True)
        chosen_B = torch.cat([inverted(s, u, self.temperature) for s, u in parts])
        picked_B = scores_B_V.gather(1, chosen_B[:, None])[:, 0] / self.temperature
        log_p_B = picked_B - (scores_B_V / self.temperature).logsumexp(1)
        self._picked.append((rows_B, steps_B, log_p_B))
        return chosen_B

    def log_p_R_T(self) -> Tensor:
        """Of every token that was picked, on the CPU; NaN elsewhere.

        A token may be picked more than once, where vLLM had to begin a row anew: the last stands.
        """
        made = torch.full(self.uniforms_R_T.shape, torch.nan)
        for rows_B, steps_B, log_p_B in self._picked:
            made[rows_B, steps_B] = log_p_B.float().cpu()
        return made


class Inversion(LogitsProcessor):
    """Leaves only the tokens that the numbers of `draw` pick; without a draw it does nothing.

    vLLM makes it and tells it which request is where in the batch. There is one engine in a
    process, and so one draw at a time.
    """

    draw: ClassVar[Draw | None] = None

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        # By place in the batch: a request's row, and its tokens so far, which vLLM keeps current.
        self._places: dict[int, tuple[int, Sequence[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """No: the largest score becomes another."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that leave, come and move, in this order."""
        if batch_update is None:
            return
        for place in batch_update.removed:
            self._places.pop(place, None)
        for place, params, _, tokens in batch_update.added:
            self._places[place] = (_row(params), tokens)
        for first, second, direction in batch_update.moved:
            moved, other = self._places.pop(first, None), self._places.pop(second, None)
            if moved is not None:
                self._places[second] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                self._places[first] = other

    def apply(self, logits: Tensor) -> Tensor:
        """Scores of the batch, by place."""
        draw = type(self).draw
        if draw is None:
            return logits
        held = [self._places[place] for place in range(len(logits))]
        rows_B = torch.tensor([row for row, _ in held])
        steps_B = torch.tensor([len(tokens) for _, tokens in held])
        return only(logits, draw.pick(logits, rows_B, steps_B))


def _row(params: SamplingParams) -> int:
    return int((params.extra_args or {}).get(ROW, -1))
