"""Builds real trainers of the embedded models, for the tests of the learning step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from grids.cell import Cell
from workers.data import load_questions, prepare
from workers.engine import TransformersEngine
from workers.models import load_policy
from workers.passes import Row, token_weights
from workers.trainer import BanditTrainer

LENGTHS, PROMPTS = [7, 3, 1, 5, 4, 2, 7, 6], [5, 2, 4, 3, 1, 5, 2, 4]


def build_trainer(cell: Cell, scratch: Any) -> BanditTrainer:
    """A trainer at round 0 of a cell."""
    policy = load_policy(cell)
    questions = prepare(load_questions(cell.dataset_spec), cell, policy.tokenizer)
    engine = TransformersEngine(policy, cell)
    return BanditTrainer(cell, policy, engine, questions.train, 0, str(scratch))


def move(model: Any, by: float = 0.004) -> None:
    """Away from the base, so that the KL and its gradient are not zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p += by * torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype)


def hand_made(trainer: BanditTrainer, advantages: list[float], off_policy: bool) -> list[Row]:
    """An update of ragged rows, with every field that the loss takes."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = trainer.policy.model.config.vocab_size
    weights = token_weights(LENGTHS[: len(advantages)], trainer.cell)
    rows = []
    for advantage, length, prompt, weights_T in zip(
        advantages, LENGTHS, PROMPTS, weights, strict=False
    ):
        ids = torch.randint(4, vocabulary, (prompt + length,), generator=generator)
        noise_T = torch.randn(length, generator=generator)
        row = Row(ids[:prompt].tolist(), ids[prompt:], advantage, weights_T)
        old_T = log_probabilities(trainer.policy.model, row).detach().float() + noise_T
        ref_T = None
        if trainer.ref_model is not None:
            ref_T = log_probabilities(trainer.ref_model, row).detach().float()
        old = old_T if off_policy else None
        rows.append(Row(row.prompt, row.ids_T, advantage, weights_T, old, ref_T))
    return rows


def log_probabilities(model: Any, row: Row) -> Tensor:
    """log p of a row's tokens, shape (T,), from plain logits."""
    ids = torch.cat([torch.tensor(row.prompt), row.ids_T])[None]
    log_p_L_V = model(input_ids=ids).logits[0].log_softmax(-1)
    return log_p_L_V[len(row.prompt) - 1 : -1].gather(1, row.ids_T[:, None])[:, 0]


def in_double(model: Any) -> Any:
    """A copy of the model in float64, with its own forward."""
    twin = copy.deepcopy(model)
    twin.__dict__.pop("forward", None)
    return twin.double()


def update(trainer: BanditTrainer, rows: list[Row]) -> Tensor:
    """Loss of one update; its gradient is left in the model."""
    model = trainer.policy.model
    model.train()
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer.updates = iter([rows])
    loss = trainer._compute_loss(model, {})
    loss.backward()
    return torch.tensor(trainer.round.metrics["update/loss"])


def gradient(model: Any) -> Tensor:
    """All of a model's gradient as one vector, float64."""
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])
