"""The loss and its gradient against formulas written apart in float64, and what takes no pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainers import (
    build_trainer,
    gradient,
    hand_made,
    in_double,
    log_probabilities,
    move,
    update,
)
from workers import pass_trainer
from workers.losses import AGGREGATIONS, KLS
from workers.pass_trainer import PassTrainer
from workers.passes import Row


def reference_loss(model: Any, rows: list[Row], cell: Any) -> Tensor:
    """PPO's clipped loss with dual clip, and the KL, token by token from their formulas."""
    total = torch.zeros((), dtype=torch.float64)
    for row, weights in zip(rows, reference_weights(rows, cell), strict=True):
        log_p_T = log_probabilities(model, row)
        old_T = log_p_T.detach() if row.log_old_T is None else row.log_old_T.double()
        for t in range(len(row.ids_T)):
            loss = reference_policy_loss((log_p_T[t] - old_T[t]).exp(), row.advantage, cell)
            if row.log_ref_T is not None:
                gap = row.log_ref_T[t].double() - log_p_T[t]
                kls = {"k1": -gap, "k2": gap**2 / 2, "k3": gap.exp() - gap - 1}
                loss = loss + cell.kl * kls[cell.kl_form]
            total = total + weights * loss
    return total


def reference_policy_loss(ratio: Tensor, advantage: float, cell: Any) -> Tensor:
    if cell.clip is None:
        return -ratio * advantage
    low, high = 1 - cell.clip, 1 + (cell.clip_high or cell.clip)
    surrogate = torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)
    if advantage < 0 and cell.dual_clip is not None:
        surrogate = torch.max(surrogate, torch.tensor(cell.dual_clip * advantage).double())
    return -surrogate


def reference_weights(rows: list[Row], cell: Any) -> list[float]:
    """Weight of each of a row's tokens, from the sentence that defines the aggregation."""
    lengths = [len(row.ids_T) for row in rows]
    if cell.aggregation == "token_mean":
        return [1 / sum(lengths)] * len(rows)
    if cell.aggregation == "seq_mean_token_mean":
        return [1 / n / len(rows) for n in lengths]
    if cell.aggregation == "seq_mean_token_sum":
        return [1 / cell.max_response / len(rows)] * len(rows)
    size = cell.micro_batch
    parts = [lengths[i : i + size] for i in range(0, len(rows), size)]
    return [1 / sum(part) / len(parts) for part in parts for _ in part]


MIXED, GRADED = [1.0, 0.0, 1.0, 0.0], [0.5, -1.5, 0.5, 0.5]
OFF: dict[str, Any] = {"updates_per_round": 2}
CASES: dict[str, tuple[list[float], dict[str, Any]]] = {
    **{f"{name}": (GRADED, {"aggregation": name, "kl": 0.3}) for name in AGGREGATIONS},
    **{f"micro-batch {n}": (MIXED, {"micro_batch": n}) for n in (1, 2, 3)},
    **{f"{form}": (GRADED, {"kl": 0.3, "kl_form": form}) for form in KLS},
    **{
        f"{form}, off-policy": (GRADED, {**OFF, "kl": 0.3, "kl_form": form})
        for form in ("k1", "k2")
    },
    "no KL": (GRADED, {"kl": "off"}),
    "clip": (GRADED, {**OFF, "kl": 0.3}),
    "clip-higher": (GRADED, {**OFF, "clip": 0.1, "clip_high": 0.5}),
    "no dual clip": (GRADED, {**OFF, "dual_clip": "off"}),
    "a low dual clip": (GRADED, {**OFF, "dual_clip": 1.2}),
    "no clip": (GRADED, {**OFF, "clip": "off"}),
    "raw rewards off-policy": (MIXED, {**OFF, "kl": 0.3}),
}


@pytest.mark.parametrize(("advantages", "settings"), CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_equal_a_float64_computation(tiny, tmp_path, advantages, settings):
    off_policy = "updates_per_round" in settings
    cell = tiny(batch=8 if off_policy else 4, **settings)  # four rows an update
    trainer = build_trainer(cell, tmp_path)
    move(trainer.policy.model)
    rows = hand_made(trainer, advantages, off_policy)
    twin = in_double(trainer.policy.model)
    loss = update(trainer, rows) * cell.updates_per_round
    expected = reference_loss(twin, rows, cell)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-5, abs=1e-6)
    theirs = gradient(twin)
    # off-policy, TRL's normaliser is of one update and the round's mean is ours
    assert theirs.norm() > 0
    assert (gradient(trainer.policy.model) - theirs).norm() / theirs.norm() < 1e-4


def test_k3_is_bounded_as_in_verl():
    log_p = torch.tensor([-30.0, 0.0, -1.0], requires_grad=True)
    log_ref = torch.tensor([0.0, -30.0, -1.5])
    made = KLS["k3"](log_p, log_ref)
    assert made.tolist() == pytest.approx([10, 10, 2.718281828**-0.5 + 0.5 - 1])
    made.sum().backward()
    assert log_p.grad[:2].tolist() == [0, 0] and log_p.grad[2] != 0


SIGNAL = [1.0, 0.0, 0.0, -0.5, 0.0, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("off_policy", [False, True])
def test_rows_without_a_gradient_take_no_pass_and_the_gradient_is_the_same(
    tiny, tmp_path, aggregation, off_policy
):
    """In float64, where KL is off: denominators stay those of the full micro-batches."""
    cell = tiny(batch=8, kl="off", aggregation=aggregation, micro_batch=4)
    trainer = build_trainer(cell, tmp_path)
    trainer.policy.model.double()
    rows = hand_made(trainer, SIGNAL, off_policy)
    update(trainer, rows)
    full = gradient(trainer.policy.model)
    kept = [row for row in rows if trainer._counts(row)]
    assert len(kept) == 3
    update(trainer, kept)
    assert (gradient(trainer.policy.model) - full).norm() / full.norm() < 1e-6


@pytest.mark.parametrize(
    ("settings", "passing"),
    [({"kl": "off"}, 3), ({}, 8), ({"kl_on_signal_only": True}, 3)],
)
def test_which_rows_count(tiny, tmp_path, settings, passing):
    trainer = build_trainer(tiny(**settings), tmp_path)
    rows = [Row([1], torch.tensor([5]), advantage) for advantage in SIGNAL]
    assert sum(map(trainer._counts, rows)) == passing


def test_an_update_without_any_gradient_still_takes_its_step(tiny, tmp_path):
    """Weight decay and momentum go on: the optimiser steps on zeros, as with all rows in passes."""
    weights = []
    for skip in (True, False):
        cell = tiny(kl="off", advantage="grpo", singleton="zero", rounds=3, weight_decay=0.5)
        trainer = build_trainer(cell, tmp_path)
        if not skip:
            trainer._counts = lambda row: True
        before = torch.cat([p.flatten().clone() for p in trainer.policy.model.parameters()])
        trainer.train()
        after = torch.cat([p.flatten() for p in trainer.policy.model.parameters()])
        assert trainer.round.metrics["update/grad_norm"] == 0
        assert not torch.equal(before, after)
        weights.append(after)
    assert torch.equal(*weights)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_micro_batch_changes_the_gradient_of_the_default_alone(tiny, tmp_path, aggregation):
    """`token_mean_micro_batch` averages micro-batches of unequal numbers of tokens, so its gradient
    depends on their size; the others promise that it does not."""
    made = []
    for micro_batch in (1, 2, 8):
        cell = tiny(batch=8, aggregation=aggregation, micro_batch=micro_batch)
        trainer = build_trainer(cell, tmp_path)
        trainer.policy.model.double()
        update(trainer, hand_made(trainer, GRADED + MIXED, off_policy=False))
        made.append(gradient(trainer.policy.model))
    changes = [((g - made[0]).norm() / made[0].norm()).item() for g in made[1:]]
    if aggregation == "token_mean_micro_batch":
        assert min(changes) > 0.01
    else:
        assert max(changes) < 1e-6


@pytest.mark.parametrize("rows_per_pass", [1, 3, None])
def test_passes_change_memory_and_not_the_gradient(tiny, tmp_path, rows_per_pass):
    made = []
    for bound in (8, rows_per_pass):
        trainer = build_trainer(tiny(batch=8, rows_per_pass=bound, kl=0.1), tmp_path)
        move(trainer.policy.model)
        trainer.policy.model.double()
        update(trainer, hand_made(trainer, GRADED + MIXED, off_policy=True))
        made.append(gradient(trainer.policy.model))
    assert (made[0] - made[1]).norm() / made[0].norm() < 1e-6


def test_the_reference_is_the_base_and_not_the_policy(tiny, tmp_path):
    from workers.models import load_policy

    trainer = build_trainer(tiny(), tmp_path)
    assert trainer.ref_model is not trainer.model
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1.0)
    again = load_policy(trainer.cell).model
    for ours, base in zip(trainer.ref_model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, base)


def test_the_policy_is_in_shards_before_the_reference_is_read(tiny, tmp_path, monkeypatch):
    done: list[str] = []
    make = PassTrainer._reference

    def reference(self):
        done.append("reads the reference")
        return make(self)

    monkeypatch.setattr(pass_trainer, "shard", lambda model: done.append("shards"))
    monkeypatch.setattr(PassTrainer, "_reference", reference)
    made = build_trainer(tiny(), tmp_path).ref_model
    assert done == ["shards", "reads the reference", "shards"]
    assert not made.training and not hasattr(made, "hf_device_map")


def test_without_kl_there_is_no_reference(tiny, tmp_path):
    assert build_trainer(tiny(kl="off"), tmp_path).ref_model is None


def test_log_probabilities_and_entropies_come_in_the_order_of_the_rows(tiny, tmp_path):
    trainer = build_trainer(tiny(rows_per_pass=1), tmp_path)
    rows = hand_made(trainer, SIGNAL, off_policy=False)
    twin = in_double(trainer.policy.model)
    log_p = trainer._log_probabilities(trainer.model, rows, "behaviour")
    entropies = trainer._entropies(rows)
    for row, log_p_T, entropy_T in zip(rows, log_p, entropies, strict=True):
        torch.testing.assert_close(
            log_p_T.double(), log_probabilities(twin, row).detach(), atol=1e-5, rtol=1e-5
        )
        ids = torch.cat([torch.tensor(row.prompt), row.ids_T])[None]
        log_p_L_V = twin(input_ids=ids).logits[0].log_softmax(-1)[len(row.prompt) - 1 : -1]
        expected_T = -(log_p_L_V.exp() * log_p_L_V).sum(-1)
        torch.testing.assert_close(entropy_T.double(), expected_T, atol=1e-5, rtol=1e-5)


def test_the_score_norm_is_that_of_the_log_likelihoods_gradient(tiny, tmp_path):
    trainer = build_trainer(tiny(), tmp_path)
    row = hand_made(trainer, SIGNAL, off_policy=False)[0]
    twin = in_double(trainer.policy.model)
    log_probabilities(twin, row).sum().backward()
    assert trainer._score_norm(row) == pytest.approx(gradient(twin).square().sum().item(), rel=1e-4)
    assert all(p.grad is None for p in trainer.policy.model.parameters())
