"""How a cell is computed: bfloat16 over float32 master weights, and gradient checkpointing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grids.paths import CellPaths, read_lines
from tests.trainers import build_trainer, gradient, hand_made, update
from workers import adapters
from workers.run import run_cell
from workers.sampling import uniforms

MIXED = [1.0, -0.5, 0.25, 1.0]
LORA = {"lora_rank": 4}


def trained(model: Any) -> torch.Tensor:
    """All trained weights as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


# ---- precision


def one_step(tiny: Any, tmp_path: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights before and after one round at the paper's learning rate."""
    trainer = build_trainer(tiny(rounds=1, lr=1e-6, weight_decay=0, **settings), tmp_path)
    before = trained(trainer.policy.model).clone()
    trainer.train()
    return before, trained(trainer.policy.model)


def test_a_step_of_1e_6_moves_bf16s_weights_as_it_moves_fp32s(tiny, tmp_path):
    """Weights that were themselves bfloat16 would stay where they are: the step is far below half
    of a last place of nearly all of them."""
    moves = {}
    for precision in ("fp32", "bf16"):
        before, after = one_step(tiny, tmp_path, precision=precision)
        assert after.dtype == torch.float32
        moves[precision] = after - before
    shares = {name: (move != 0).float().mean().item() for name, move in moves.items()}
    assert shares["fp32"] > 0.9 and shares["bf16"] == pytest.approx(shares["fp32"], abs=0.03)
    for move in moves.values():  # Adam's first step is one of lr, whatever the gradient
        assert move[move != 0].abs().median() == pytest.approx(1e-6, rel=0.05)
    assert (moves["fp32"].sign() == moves["bf16"].sign()).float().mean() > 0.8
    pure = before.bfloat16()
    stepped = (pure.float() + moves["bf16"]).bfloat16()
    assert (stepped != pure).float().mean() < 0.05


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
@pytest.mark.parametrize("lora", [{}, LORA])
def test_every_pass_is_computed_in_the_cells_precision(tiny, tmp_path, precision, dtype, lora):
    """Generation, log-probabilities of policy and reference, entropy, norms of scores, the loss."""
    cell = tiny(precision=precision, rounds=2, rollouts=2, advantage="grpo", kl=0.1, **lora)
    trainer = build_trainer(cell, tmp_path)
    seen: dict[str, set[torch.dtype]] = {}
    phase = {"now": ""}

    def watched(name: str) -> None:
        kept = getattr(trainer, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            before, phase["now"] = phase["now"], name
            try:
                return kept(*args, **kwargs)
            finally:
                phase["now"] = before

        setattr(trainer, name, told)

    for name in ("_drawn", "_completed", "_entropies", "_score_norm", "_pass_loss"):
        watched(name)
    models = [trainer.policy.model] if lora else [trainer.policy.model, trainer.ref_model]
    for model in models:
        layer = adapters.inner(model).model.layers[1]
        for part in (layer.self_attn.q_proj, layer.mlp.down_proj):
            part.register_forward_hook(
                lambda module, args, out: seen.setdefault(phase["now"], set()).add(out.dtype)
            )
    trainer.train()
    prompts = [q.prompt_ids for q in trainer.questions[:4]]
    for numbers in (None, uniforms(0, "final", 0, [("q", i) for i in range(4)], 8)):
        phase["now"] = "evaluation"
        trainer.engine.generate(prompts, 8, numbers)
    phases = {"_drawn", "_completed", "_entropies", "_score_norm", "_pass_loss", "evaluation"}
    assert seen == {phase: {dtype} for phase in phases}


def test_log_probabilities_are_of_the_distribution_that_was_sampled(tiny, tmp_path):
    """In bfloat16 too: what generation computes step by step, the loss computes at once."""
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.02)):
        trainer = build_trainer(tiny(precision=precision), tmp_path)
        model, rows = trainer.policy.model, hand_made(trainer, MIXED, off_policy=False)
        found = trainer._log_probabilities(model, rows, "behaviour")
        expected = []
        for row in rows:
            cache, ids = None, torch.tensor([row.prompt])
            for token in row.ids_T:
                with torch.no_grad(), trainer.engine._autocast(model.device):
                    out = model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache, ids = out.past_key_values, token[None, None]
                expected.append(out.logits[0, -1].float().log_softmax(-1)[token])
        gaps = torch.cat(found) - torch.stack(expected)
        assert gaps.abs().mean() < tolerance


@pytest.mark.parametrize("lora", [{}, LORA])
def test_what_is_kept_of_bf16_is_float32(tiny, tmp_path, lora):
    """Weights and moments; and more than bfloat16 holds of them."""
    run_cell(tiny(rounds=2, precision="bf16", lr=1e-3, **lora), tmp_path, lambda progress: None)
    folder = CellPaths(tmp_path).checkpoint / "000002"
    weights = load_file(folder / (adapters.WEIGHTS if lora else "model.safetensors"))
    kept = torch.load(folder / "optimizer.pt", weights_only=True)["state"].values()
    moments = [moment[name] for moment in kept for name in ("exp_avg", "exp_avg_sq")]
    assert {w.dtype for w in (*weights.values(), *moments)} == {torch.float32}
    flat = torch.cat([w.flatten() for w in weights.values()])
    assert (flat != flat.bfloat16()).float().mean() > 0.9


# ---- gradient checkpointing


class Peak(TorchDispatchMode):
    """The most bytes of tensors made under it that are alive at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[Any, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize("lora", [{}, LORA])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_changes_memory_and_not_what_is_trained(
    tiny, tmp_path, caplog, recwarn, precision, lora
):
    """Two rounds with generation between the updates: equal weights, to the bit, and no word of a
    cache that could not be used."""
    made, recomputed, peaks = [], [], []
    logging.getLogger("transformers").propagate = True
    for turned_on in (False, True):
        cell = tiny(
            rounds=2, precision=precision, kl=0.1, lr=1e-3, gradient_checkpointing=turned_on, **lora
        )
        trainer = build_trainer(cell, tmp_path)
        model, calls = trainer.policy.model, []
        part = adapters.inner(model).model.layers[0].self_attn.q_proj
        with part.register_forward_hook(lambda *_, c=calls: c.append(torch.is_grad_enabled())):
            trainer.train()
        assert adapters.inner(model).is_gradient_checkpointing == turned_on
        made.append(trained(model))
        recomputed.append(sum(calls))
        with Peak() as peak, trainer.engine._autocast(model.device):  # less the head, a tile's size
            hidden = adapters.inner(model).model(torch.full((32, 48), 5), use_cache=False)
            hidden.last_hidden_state.sum().backward()
        peaks.append(peak.bytes)
    assert torch.equal(*made)
    assert recomputed[1] == 2 * recomputed[0] > 0
    assert peaks[1] < 0.75 * peaks[0]
    said = [r.getMessage() for r in caplog.records] + [str(w.message) for w in recwarn]
    assert not [text for text in said if "cach" in text.lower() or "requires_grad" in text]


def test_checkpointing_gives_the_same_gradient_and_journal(tiny, tmp_path):
    lines = []
    for turned_on in (False, True):
        cell = tiny(kl=0.1, lr=1e-3, rows_per_pass=2, gradient_checkpointing=turned_on)
        run_cell(cell, tmp_path / str(turned_on), lambda progress: None, tmp_path / "shared")
        lines.append(read_lines(CellPaths(tmp_path / str(turned_on)).journal))
    assert lines[0] == lines[1]
    trainer = build_trainer(cell, tmp_path)
    rows = hand_made(trainer, MIXED, off_policy=True)
    losses, gradients = [], []
    for turned_on in (False, True):
        if turned_on:
            trainer.policy.model.gradient_checkpointing_enable()
        losses.append(update(trainer, rows))
        gradients.append(gradient(trainer.policy.model))
    torch.testing.assert_close(losses[1] - losses[0], losses[0])  # the metric adds up updates
    torch.testing.assert_close(gradients[1], gradients[0], atol=0, rtol=1e-6)
