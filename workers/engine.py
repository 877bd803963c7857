"""Generation: prompts in, responses out, with transformers' own `generate`.

Sampling is by inversion: one uniform number per (row, token) goes through the distribution function
of the next token, so that a response depends on its own numbers and not on what else is in the
batch. Leaves out where the numbers come from (`sampling.py`) and vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from grids.cell import Cell
from workers.footprint import CACHE_BYTES, GENERATION_ROWS
from workers.models import Policy
from workers.passes import left_padded


@dataclass(frozen=True)
class Response:
    """Token ids, the stop token included; `truncated` where none came in time."""

    ids: list[int]
    truncated: bool


class Inversion(LogitsProcessor):
    """Leaves only the token that a row's uniform number picks: F(token - 1) <= u < F(token)."""

    def __init__(self, uniforms_R_T: Tensor, temperature: float, prompt_length: int) -> None:
        self.uniforms_R_T = uniforms_R_T
        self.temperature = temperature
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        heated = scores if self.temperature == 1 else scores.double() / self.temperature
        distribution_R_V = heated.softmax(-1, dtype=torch.float64).cumsum_(-1)
        # The last value is 1 but for rounding: scaling by it keeps every u below it.
        u_R_1 = self.uniforms_R_T[:, step : step + 1] * distribution_R_V[:, -1:]
        chosen_R_1 = torch.searchsorted(distribution_R_V, u_R_1, right=True)
        chosen_R_1 = chosen_R_1.clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen_R_1, 0.0)


class TransformersEngine:
    """Generates with the model that is being trained, in passes as wide as memory allows."""

    def __init__(self, policy: Policy, cell: Cell) -> None:
        self.policy = policy
        self.precision = cell.precision
        self.width = max(1, min(GENERATION_ROWS, CACHE_BYTES // self._row_bytes(cell)))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        uniforms_R_T: np.ndarray | None = None,
        temperature: float = 1.0,
    ) -> list[Response]:
        """One response to each prompt: sampled by `uniforms_R_T`, or greedy where it is None.

        Prompts of like length share a pass; the order of the answers is that of the prompts.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        responses: dict[int, Response] = {}
        for start in range(0, len(order), self.width):
            rows = order[start : start + self.width]
            numbers = None if uniforms_R_T is None else uniforms_R_T[rows]
            made = self._pass([prompts[i] for i in rows], max_tokens, numbers, temperature)
            responses |= dict(zip(rows, made, strict=True))
        return [responses[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _pass(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        uniforms_R_T: np.ndarray | None,
        temperature: float,
    ) -> list[Response]:
        model, device = self.policy.model, self.policy.model.device
        ids, mask = left_padded(prompts, self.policy.pad_id)
        chosen = LogitsProcessorList()
        if uniforms_R_T is not None:
            numbers = torch.from_numpy(uniforms_R_T).to(device)
            chosen.append(Inversion(numbers, temperature, ids.shape[1]))
        training = model.training
        model.eval()
        try:
            with self._autocast(device):
                out = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=self._config(max_tokens),
                    logits_processor=chosen,
                )
        finally:
            model.train(training)
        return [self._cut(row) for row in out[:, ids.shape[1] :].tolist()]

    def _config(self, max_tokens: int) -> GenerationConfig:
        """Every field that could change a token is set: nothing is left to a model's own config."""
        return GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, num_beams=1, num_return_sequences=1,
            temperature=1.0, top_p=1.0, top_k=50, repetition_penalty=1.0, no_repeat_ngram_size=0,
            encoder_repetition_penalty=1.0, length_penalty=1.0, min_new_tokens=0, use_cache=True,
            eos_token_id=list(self.policy.stop_ids), pad_token_id=self.policy.pad_id,
            bos_token_id=self.policy.tokenizer.bos_token_id, disable_compile=True,
        )  # fmt: skip

    def _cut(self, row: list[int]) -> Response:
        ends = [i for i, token in enumerate(row) if token in self.policy.stop_ids]
        return Response(row[: ends[0] + 1], False) if ends else Response(row, True)

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _row_bytes(self, cell: Cell) -> int:
        config = self.policy.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * 4 * config.num_hidden_layers * heads * size
        logits = 4 * 8 * config.vocab_size  # a few copies of the last position's scores
        return int((cell.max_prompt + cell.max_response) * token + logits)
