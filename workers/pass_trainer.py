"""PassTrainer: how TRL's GRPOTrainer computes one update, in passes of our own.

TRL's loss, ratio, clip, log-probabilities and optimiser step, over rows that a subclass gives
(`passes.Row`). Ours:

- passes: an update comes whole, and is taken in passes of like length;
- aggregation: the rows' token weights travel as TRL's `tool_mask`, which its `dapo` loss multiplies
  every token loss by, with a normaliser of one;
- the KL (`KLS`), since TRL has only an unbounded k3;
- a plug-in's loss of a token in place of TRL's;
- log-probabilities without gradient, in wide passes, of the rows that need them alone.

Left out: where rows and advantages come from (`trainer.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from grids import outcome
from grids.cell import Cell
from workers import adapters, liger, ranks
from workers.losses import clip_bounds, corrected
from workers.models import Policy
from workers.passes import NOTHING, Row, dealt, padded, pass_bounds
from workers.plugins import function
from workers.sharding import shard, square_norm
from workers.trl_alone import GRPOTrainer, add_fused_lm_head, disable_dropout_in_model

TRLS_LOSS = "clip"  # PPO's, with the dual clip: TRL computes it


class PassTrainer(GRPOTrainer):
    """Takes the updates of `self.updates`, one after the other, in passes.

    Args:
        cell: whose settings count.
        policy: the base model; it is trained in place.
        options: everything else that GRPOTrainer takes.
    """

    updates: Iterator[list[Row]]
    ref_model: Any

    def __init__(self, cell: Cell, policy: Policy, **options: Any) -> None:
        self.cell, self.policy = cell, policy
        super().__init__(model=policy.model, processing_class=policy.tokenizer, **options)
        self._headed = adapters.inner(self.model)
        shard(self.model)  # with adapters all of it: peft calls its parts
        if cell.kl > 0:
            self.ref_model = adapters.Base(self.model) if cell.lora_rank else self._reference()
        # TRL's head tells the entropy with every pass: kept for the rounds that want it.
        self._forward_with_entropy = self._headed.__dict__.pop("forward")
        add_fused_lm_head(self._headed, temperature=self.temperature)
        if cell.liger:
            liger.check(cell, policy.folder)
            liger.add_loss(self._headed, cell)

    def _reference(self) -> Any:
        """The base, as TRL makes it of the policy; ours, since TRL would read it onto a GPU beside
        a policy that is whole, and where there is no room leave parts of it elsewhere."""
        model = AutoModelForCausalLM.from_pretrained(
            self.policy.folder, dtype=self.model.dtype, trust_remote_code=False,
            use_safetensors=True, attn_implementation=self.model.config._attn_implementation,
        )  # fmt: skip
        disable_dropout_in_model(model)
        add_fused_lm_head(model, temperature=self.temperature)
        made = self.accelerator.prepare_model(model, evaluation_mode=True)
        shard(made)
        return made

    # ---- passes without gradient

    @torch.no_grad()
    def _log_probabilities(
        self, model: Any, rows: Sequence[Row], phase: str, entropy: bool = False
    ) -> list[Tensor]:
        """log p of each row's tokens, in wide passes; with `entropy`, the entropy there instead."""
        found: dict[int, Tensor] = {}
        with self.round.timed(phase):
            for part in self._packed(rows, gradient=False):
                scored_N_T = self._scored_pass(model, part, entropy)[1 if entropy else 0].cpu()
                for row, values_T in zip(part, scored_N_T, strict=True):
                    found[id(row)] = values_T[: len(row.ids_T)]
        by_process = ranks.gathered([found.get(id(row)) for row in rows])
        return [next(v for v in made if v is not None) for made in zip(*by_process, strict=True)]

    def _entropies(self, rows: Sequence[Row]) -> list[Tensor]:
        """The policy's entropy at each of the rows' tokens, nats."""
        plain, self._headed.forward = self._headed.forward, self._forward_with_entropy
        try:
            return self._log_probabilities(self.model, rows, "look closer", entropy=True)
        finally:
            self._headed.forward = plain

    def _scored_pass(self, model: Any, rows: Sequence[Row], entropy: bool = False) -> Any:
        made = padded(rows, self.policy.pad_id, self.accelerator.device)
        ids = torch.cat([made["prompt_ids"], made["completion_ids"]], 1)
        mask = torch.cat([made["prompt_mask"], made["completion_mask"]], 1)
        length = made["completion_ids"].shape[1]
        return super()._get_per_token_logps_and_entropies(
            model, ids, mask, length, compute_entropy=entropy
        )

    def _packed(self, rows: Sequence[Row], gradient: bool) -> list[list[Row]]:
        here = ranks.here()
        return dealt(rows, *pass_bounds(self.cell, gradient), here.rank, here.count)

    def _score_norm(self, row: Row) -> float:
        """|grad log p(response)|^2 over all trained weights."""
        log_p_1_T = self._scored_pass(self.model, [row])[0]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if ranks.here().count > 1:  # each gets its shard of the sum over processes, of equal rows
            (log_p_1_T.sum() / ranks.here().count).backward()
            norm = square_norm(p.grad for p in trained)
            self.model.zero_grad()
            return norm
        gradients = torch.autograd.grad(log_p_1_T.sum(), trained, allow_unused=True)
        return sum(g.double().square().sum().item() for g in gradients if g is not None)

    def _completed(self, rows: list[Row], later: bool) -> list[Row]:
        """Rows with what the loss needs: the reference's log-probabilities under a KL, and in the
        later updates of a round those of the policy that sampled, which it is about to leave; in
        all where they are held against an engine's."""
        if self.ref_model is not None:
            rows = self._with(rows, self.ref_model, "reference", "log_ref_T")
        compared = self.cell.importance_correction or self.cell.liger
        if later or (compared and self.cell.engine == "vllm"):
            rows = self._with(rows, self.model, "behaviour", "log_old_T")
        return rows

    def _with(self, rows: list[Row], model: Any, phase: str, name: str) -> list[Row]:
        lacking = [i for i, row in enumerate(rows) if getattr(row, name) is None]
        found = self._log_probabilities(model, [rows[i] for i in lacking], phase)
        for i, log_p_T in zip(lacking, found, strict=True):
            rows[i] = replace(rows[i], **{name: log_p_T})  # type: ignore[arg-type]
        return rows

    # ---- the update: TRL's loss, pass by pass

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The loss of the next update. All passes but the last take their backward pass here."""
        self.update_began = time.perf_counter()
        rows = next(self.updates)
        passes = self._packed(rows, gradient=True)
        self.round.note_passes([rows])
        for part in passes[:-1]:
            self.accelerator.backward(self._pass_loss(model, part))
        return self._pass_loss(model, passes[-1]) if passes else self._no_loss(model)

    def _pass_loss(self, model: Any, rows: list[Row]) -> Tensor:
        cell = self.cell
        inputs = padded(rows, self.policy.pad_id, self.accelerator.device)
        inputs["num_items_in_batch"] = torch.tensor(float(cell.updates_per_round))
        weights_N_T = inputs["tool_mask"]
        if cell.importance_correction and "engine_per_token_logps" in inputs:
            log_old_N_T = inputs["old_per_token_logps"]
            log_engine_N_T = inputs["engine_per_token_logps"]
            inputs["tool_mask"] = corrected(weights_N_T, log_old_N_T, log_engine_N_T)
        loss = self._clipped_loss(model, inputs)
        log_p_N_T = self._log_p_N_T
        if cell.loss != TRLS_LOSS:
            loss = self._own_loss(log_p_N_T, inputs)
        if "ref_per_token_logps" in inputs:
            estimate = function(cell, "KLS", cell.kl_form)
            kl_N_T = estimate(log_p_N_T, inputs["ref_per_token_logps"])
            kl = (kl_N_T * weights_N_T).sum()
            self.round.add(outcome.KL, kl.item())
            loss = loss + cell.kl * kl
        self.round.add(outcome.LOSS, loss.item())
        if rows[0] is NOTHING:
            return loss
        self.round.note_ratios(rows, log_p_N_T.detach(), inputs)
        if "engine_per_token_logps" in inputs:
            old_N_T = inputs.get("old_per_token_logps", log_p_N_T.detach())
            log_engine_N_T = inputs["engine_per_token_logps"]
            fresh_N = torch.tensor([not row.replayed for row in rows], device=old_N_T.device)
            mask_N_T = inputs["completion_mask"].bool() & fresh_N[:, None]
            self.round.note_engine(old_N_T, log_engine_N_T, mask_N_T)
        return loss

    def _clipped_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """PPO's, with the tokens' log-probabilities in `_log_p_N_T`; of liger's there are none."""
        if self.cell.liger:
            unknown_N_T = torch.zeros_like(inputs["tool_mask"])  # any number: the ratio is 1
            self._log_p_N_T = inputs.get("old_per_token_logps", unknown_N_T)
            return liger.loss(model, inputs)
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    def _own_loss(self, log_p_N_T: Tensor, inputs: dict[str, Any]) -> Tensor:
        """A plug-in's loss of each token, under the same weights; TRL's is let go."""
        old_N_T = inputs.get("old_per_token_logps", log_p_N_T.detach())
        low, high, _ = clip_bounds(self.cell)
        token_loss = function(self.cell, "LOSSES", self.cell.loss)
        advantages_N_1 = inputs["advantages"][:, None]
        losses_N_T: Tensor = token_loss(log_p_N_T, old_N_T, advantages_N_1, low=low, high=high)
        return (losses_N_T * inputs["tool_mask"]).sum()

    def _no_loss(self, model: Any) -> Tensor:
        """Of an update in which no row has a gradient: the optimiser steps on one of zeros."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        return torch.zeros((), device=self.accelerator.device, requires_grad=True)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """TRL's call. Before rewards are known it asks for the sampling policy's of every row: put
        off, since few rows may need them. Of entropies it makes a metric that is not read."""
        if not torch.is_grad_enabled():
            return input_ids.new_full(input_ids.shape, torch.nan, dtype=torch.float32), None, None
        kwargs["compute_entropy"] = False
        made = super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)
        self._log_p_N_T = made[0]
        return self._log_p_N_T, torch.zeros_like(self._log_p_N_T), made[2]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            largest = np.maximum(float(norm), self.round.metrics.get(outcome.GRAD_NORM, 0.0))
            self.round.metrics[outcome.GRAD_NORM] = float(largest)  # NaN stays NaN
        return norm
