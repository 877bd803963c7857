"""LoRA: how adapters begin, what they leave alone, the KL's reference, and what is kept of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grids import outcome
from grids.paths import CellPaths, read_json, read_lines
from tests import rescoring
from tests.trainers import build_trainer, gradient, hand_made, log_probabilities, move, update
from workers import adapters, checkpoint, warm
from workers.data import load_questions, prepare
from workers.engine import TransformersEngine
from workers.footprint import predicted_bytes
from workers.models import load_base, load_policy
from workers.rescore import evaluate_cell
from workers.run import run_cell
from workers.sampling import uniforms

TINY = ("tiny-qwen2", "tiny-llama", "tiny-olmo2")
LORA: dict[str, Any] = {"lora_rank": 4, "lr": 1e-3}


def quiet(progress: object) -> None:
    pass


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


def of_base(model: Any) -> dict[str, torch.Tensor]:
    """The frozen weights under the plain model's names."""
    named = adapters.inner(model).named_parameters()
    return {
        name.replace(".base_layer.", "."): p.detach().clone()
        for name, p in named
        if ".lora_" not in name
    }


def stirred(model: Any) -> Any:
    """The model with adapters that are no longer zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.02 * torch.randn(p.shape, generator=generator)
    return model


# ---- how adapters begin


@pytest.mark.parametrize("name", TINY)
def test_training_begins_at_the_base(tiny, name):
    """To the bit: so base evaluations are shared with cells that train all weights."""
    ids = torch.arange(4, 40).reshape(2, 18)
    for precision in ("fp32", "bf16"):
        cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        cell = tiny(model=name, lora_rank=4, precision=precision)
        with cast, torch.no_grad():
            ours = load_policy(cell).model(ids).logits
            base = load_policy(tiny(model=name, precision=precision)).model(ids).logits
        assert torch.equal(ours, base)


def test_equal_cells_have_equal_adapters_whatever_drew_numbers_before(tiny):
    made = []
    for seed, already in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(already)
        before = torch.random.get_rng_state()
        model = load_policy(tiny(seed=seed, lora_rank=4)).model
        assert torch.equal(before, torch.random.get_rng_state())
        made.append(adapters.state(model))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    drawn = [name for name in made[0] if ".lora_A." in name]
    assert not any(torch.equal(made[0][name], made[2][name]) for name in drawn)
    assert len({made[0][name].sum().item() for name in drawn}) == len(drawn)
    inputs = made[0][drawn[0]].shape[1]
    assert 0.9 / inputs**0.5 < made[0][drawn[0]].abs().max() <= 1 / inputs**0.5


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        ("all-linear", {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        }),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", TINY)
def test_the_targets_alone_have_adapters_and_take_gradient(tiny, name, targets, layers):
    model = load_policy(tiny(model=name, lora_rank=2, lora_targets=targets)).model
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in trained} == layers
    assert all(".lora_" in n for n in trained)
    assert not any("lm_head" in n or "embed" in n for n in trained)


def test_alpha_over_rank_scales_an_adapter(tiny):
    ids = torch.arange(4, 22)[None]
    moved = {}
    for rank, alpha in ((4, 32), (4, 64)):
        model = stirred(load_policy(tiny(lora_rank=rank, lora_alpha=alpha)).model)
        layer = adapters.inner(model).model.layers[0].self_attn.q_proj
        made = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        moved[alpha] = layer.get_delta_weight("default")
        torch.testing.assert_close(moved[alpha], made * alpha / rank)
        assert model(ids).logits.isfinite().all()
    torch.testing.assert_close(moved[64], 2 * moved[32])


# ---- what they leave alone


def test_only_adapters_move(tiny, tmp_path):
    trainer = build_trainer(tiny(rounds=2, kl=0.1, **LORA), tmp_path)
    model = trainer.policy.model
    before, began = of_base(model), adapters.state(copy.deepcopy(model))
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in of_base(model).items())
    after = adapters.state(model)
    assert all(not torch.equal(after[name], began[name]) for name in after if "lora_B" in name)
    kept = trainer.optimizer.state_dict()["state"]
    assert len(kept) == len(after)


def test_no_adapter_is_left_in_the_base_that_a_process_keeps(tiny, tmp_path):
    warm.forget()
    plain = {name: p.clone() for name, p in warm.policy(tiny()).model.named_parameters()}
    trained = stirred(warm.policy(tiny(lora_rank=4)).model)
    assert adapters.is_adapted(trained)
    again = warm.policy(tiny()).model
    assert not adapters.is_adapted(again) and not hasattr(again, "peft_config")
    assert {n for n, _ in again.named_parameters()} == plain.keys()
    assert all(torch.equal(p, plain[n]) and p.requires_grad for n, p in again.named_parameters())
    warm.forget()


# ---- the reference, passes, generation


def test_the_reference_is_the_base_without_a_second_model(tiny, tmp_path):
    trainer = build_trainer(tiny(kl=0.3, **LORA), tmp_path)
    assert list(trainer.model.peft_config) == ["default"]  # TRL's own would be a second adapter
    rows = hand_made(trainer, [1.0, -0.5, 0.0], off_policy=False)
    stirred(trainer.policy.model)
    (row, *_) = trainer._completed([rows[0]], later=False)
    twin = load_base(trainer.cell.model_spec).model
    expected_T = log_probabilities(twin, rows[0]).detach()
    torch.testing.assert_close(row.log_ref_T, expected_T, atol=1e-5, rtol=1e-5)
    found = trainer._log_probabilities(trainer.model, rows[:1], "behaviour")[0]
    assert (found - expected_T).abs().max() > 1e-3  # and the adapters are on again


def test_without_kl_there_is_no_reference(tiny, tmp_path):
    assert build_trainer(tiny(kl="off", **LORA), tmp_path).ref_model is None


def merged_twin(trainer: Any) -> Any:
    """The plain model with the adapters added in, float64, all of it trained."""
    twin = load_base(trainer.cell.model_spec).model
    with torch.no_grad():
        for name, value in adapters.merged(trainer.policy.model):
            twin.get_parameter(name).copy_(value)
    return twin.double()


def test_loss_and_gradient_are_those_of_the_merged_model(tiny, tmp_path):
    """By the chain rule: W = base + s B A, so dB = s dW A', dA = s B' dW."""
    cell = tiny(kl=0.3, batch=4, **LORA)
    trainer = build_trainer(cell, tmp_path)
    model = stirred(trainer.policy.model)
    rows = hand_made(trainer, [0.5, -1.5, 0.5, 0.5], off_policy=False)
    loss = update(trainer, rows)
    plain = build_trainer(tiny(kl=0.3, batch=4), tmp_path)
    with torch.no_grad():
        for name, value in adapters.merged(model):
            plain.policy.model.get_parameter(name).copy_(value)
    assert update(plain, rows).item() == pytest.approx(loss.item(), rel=1e-5)
    scale = cell.lora_alpha / cell.lora_rank
    for name, layer in adapters.inner(model).named_modules():
        if hasattr(layer, "base_layer"):
            full = plain.policy.model.get_submodule(name).weight.grad
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            torch.testing.assert_close(b.grad, scale * full @ a.T, atol=1e-6, rtol=1e-3)
            torch.testing.assert_close(a.grad, scale * b.T @ full, atol=1e-6, rtol=1e-3)


def test_generation_scores_and_entropy_are_those_of_the_merged_model(tiny, tmp_path):
    trainer = build_trainer(tiny(**LORA), tmp_path)
    model, cell = stirred(trainer.policy.model), trainer.cell
    plain = build_trainer(tiny(), tmp_path)
    with torch.no_grad():
        for name, value in adapters.merged(model):
            plain.policy.model.get_parameter(name).copy_(value)
    asked = prepare(load_questions(cell.dataset_spec), cell, trainer.policy.tokenizer).test[:24]
    prompts = [q.prompt_ids for q in asked]
    numbers = uniforms(0, "train", 1, [(q.id, 0) for q in asked], 32)
    for drawn in (numbers, None):
        ours = trainer.engine.generate(prompts, 32, drawn)
        assert ours == plain.engine.generate(prompts, 32, drawn)
        assert ours != TransformersEngine(load_policy(tiny()), cell).generate(prompts, 32, drawn)
    rows = hand_made(trainer, [1.0, 0.5], off_policy=False)
    for ours_T, theirs_T in zip(trainer._entropies(rows), plain._entropies(rows), strict=True):
        torch.testing.assert_close(ours_T, theirs_T, atol=1e-5, rtol=1e-5)
    log_probabilities(model, rows[0]).sum().backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    expected = sum(g.double().square().sum().item() for g in trained)
    assert trainer._score_norm(rows[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_merged_parameters_are_the_plain_models_and_leave_the_base_alone(tiny, name):
    model = stirred(load_policy(tiny(model=name, lora_rank=4)).model)
    before, ids = of_base(model), torch.arange(4, 40).reshape(2, 18)
    plain = load_base(tiny(model=name).model_spec).model
    found = dict(adapters.merged(model))
    assert list(found) == [n for n, _ in plain.named_parameters()]
    with torch.no_grad():
        for n, value in found.items():
            plain.get_parameter(n).copy_(value)
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(p, before[n]) for n, p in of_base(model).items())
    model.merge_adapter()  # what is taken instead, and why
    theirs = of_base(model)
    assert all(torch.equal(value, theirs[n]) for n, value in found.items())
    model.unmerge_adapter()
    assert any(not torch.equal(p, before[n]) for n, p in of_base(model).items())


# ---- what is kept


def test_a_checkpoint_holds_adapters_that_peft_loads(tiny, tmp_path, shared):
    cell = tiny(**LORA)
    done = run_cell(cell, tmp_path, quiet, shared)
    paths = CellPaths(tmp_path)
    folder = paths.checkpoint / "000004"
    assert {p.name for p in folder.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "memory.pt",
        "state.json",
    }  # fmt: skip
    config = read_json(folder / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    assert str(Path.cwd()) not in (folder / "adapter_config.json").read_text()
    base = AutoModelForCausalLM.from_pretrained(cell.model_spec.path, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(folder))
    ours = load_policy(cell)
    checkpoint.restore_weights(checkpoint.newest_weights(paths.checkpoint, cell.key), ours.model)
    ids = torch.arange(4, 40).reshape(2, 18)
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours.model(ids).logits)
        assert not torch.equal(theirs(ids).logits, load_policy(cell).model(ids).logits)
    assert done["status"] == "finished"
    assert read_json(paths.provenance)["versions"]["peft"]


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, shared):
    """Journal and adapters to the byte, from a checkpoint in the middle."""
    settings: dict[str, Any] = {
        "kl": 0.1, "updates_per_round": 2, "rollouts": 2, "advantage": "grpo", **LORA,
    }  # fmt: skip
    whole, parts = CellPaths(tmp_path / "whole"), CellPaths(tmp_path / "parts")
    run_cell(tiny(**settings), whole.directory, quiet, shared)
    left = run_cell(tiny(**settings), parts.directory, lambda p: p.round == 2, shared)
    assert left is None and len(read_lines(parts.journal)) == 3
    run_cell(tiny(**settings), parts.directory, quiet, shared)
    assert whole.journal.read_bytes() == parts.journal.read_bytes()
    names = [p.checkpoint / "000004" / "adapter_model.safetensors" for p in (whole, parts)]
    assert names[0].read_bytes() == names[1].read_bytes()
    moved = load_file(names[0])
    assert all(moved[name].abs().max() > 0 for name in moved)
    kls = [line[outcome.KL] for line in read_lines(whole.journal)[1:]]
    assert 0 < kls[0] < kls[-1]


def test_weights_of_another_kind_are_not_taken_for_adapters(tiny, tmp_path):
    model = load_policy(tiny(lora_rank=4)).model
    weights = dict(load_base(tiny().model_spec).model.state_dict())
    with pytest.raises(ValueError, match="lacks weights"):
        adapters.load(model, weights, tmp_path)


def test_the_gradient_of_no_other_weight_is_kept(tiny, tmp_path):
    trainer = build_trainer(tiny(kl="off", **LORA), tmp_path)
    move(trainer.policy.model, 0.0)
    update(trainer, hand_made(trainer, [1.0, -1.0], off_policy=False))
    frozen = [p for p in trainer.policy.model.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)
    with pytest.raises(AttributeError):
        gradient(trainer.policy.model)


def test_kept_adapters_are_scored_again(tmp_path):
    made = rescoring.trained(tmp_path, **LORA)
    record = evaluate_cell(made.cell, made.cell, "again", made.paths.directory, made.shared)
    done = read_json(made.paths.done)
    assert (record["base"], record["final"]) == (done["base"], done["final"])
    assert record["final"] != record["base"]


# ---- settings and prediction


def test_the_adapter_is_in_the_key_and_without_one_its_settings_are_not(tiny):
    assert tiny(lora_rank=0).key == tiny().key == tiny(lora_alpha=8, lora_targets="mlp").key
    changes: tuple[dict[str, Any], ...] = (
        {}, {"lora_rank": 8}, {"lora_rank": 4}, {"lora_rank": 4, "lora_alpha": 8},
        {"lora_rank": 4, "lora_targets": "mlp"},
    )  # fmt: skip
    assert len({tiny(**change).key for change in changes}) == len(changes)
    assert {tiny(**change).base_key for change in changes} == {tiny().base_key}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp"])
def test_memory_is_predicted_from_what_is_trained(tiny, name, targets):
    for precision in ("fp32", "bf16"):
        cell = tiny(model=name, lora_rank=8, lora_targets=targets, precision=precision)
        model = load_policy(cell).model
        counted = cell.model_spec.model_copy(update={"parameters": 0.0})  # from its config.json
        made = predicted_bytes(cell.model_copy(update={"model_spec": counted}))
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert (made.optimizer, made.gradients, made.reference) == (8 * count, 4 * count, 0)
        held = sum(p.numel() * p.element_size() for p in model.parameters())
        cast = 2 * count if precision == "bf16" else 0
        assert made.weights == pytest.approx(held + cast, rel=0.02)
        assert made.peak < predicted_bytes(tiny(model=name, precision=precision)).peak
