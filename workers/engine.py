"""Generation: prompts in, responses out; what every engine does, and transformers' own `generate`.

Sampling is by inversion: one uniform number per (row, token) goes through the distribution function
of the next token, so that a response depends on its own numbers and not on what else is in the
batch, nor, but for rounding, on the engine. Leaves out where the numbers come from (`sampling.py`)
and vLLM (`vllm_engine.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

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
    """Token ids, the stop token included; `truncated` where none came in time.

    `log_p_T` are the log-probabilities with which another program than the trainer drew the tokens;
    None where the trainer's own model drew them, or where they are greedy.
    """

    ids: list[int]
    truncated: bool
    log_p_T: Tensor | None = field(default=None, compare=False)


class Engine(Protocol):
    """What answers prompts with the policy as it is at the time of the call."""

    policy: Policy

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        uniforms_R_T: np.ndarray | None = None,
        temperature: float = 1.0,
    ) -> list[Response]:
        """One response to each prompt, in the prompts' order.

        Args:
            prompts: token ids.
            max_tokens: of a response.
            uniforms_R_T: numbers in [0, 1) that choose the tokens; None: greedy.
            temperature: of the sampling.
        """
        ...


def inverted(scores_R_V: Tensor, uniforms_R: Tensor, temperature: float) -> Tensor:
    """Tokens that uniform numbers pick, shape (R,): F(token - 1) <= u < F(token).

    Args:
        scores_R_V: logits of the next token.
        uniforms_R: float64 numbers in [0, 1).
        temperature: divides the logits.
    """
    heated_R_V = scores_R_V if temperature == 1 else scores_R_V.double() / temperature
    distribution_R_V = heated_R_V.softmax(-1, dtype=torch.float64).cumsum_(-1)
    # The last value is 1 but for rounding: scaling by it keeps every u below it.
    u_R_1 = uniforms_R[:, None] * distribution_R_V[:, -1:]
    chosen_R_1 = torch.searchsorted(distribution_R_V, u_R_1, right=True)
    return chosen_R_1.clamp_(max=scores_R_V.shape[1] - 1)[:, 0]


def only(scores_R_V: Tensor, chosen_R: Tensor) -> Tensor:
    """Scores that leave each row its chosen token alone."""
    return torch.full_like(scores_R_V, -torch.inf).scatter_(1, chosen_R[:, None], 0.0)


class Inversion(LogitsProcessor):
    """Leaves only the token that a row's uniform number picks."""

    def __init__(self, uniforms_R_T: Tensor, temperature: float, prompt_length: int) -> None:
        self.uniforms_R_T = uniforms_R_T
        self.temperature = temperature
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        return only(scores, inverted(scores, self.uniforms_R_T[:, step], self.temperature))


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
        """See `Engine.generate`. Prompts of like length share a pass."""
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
