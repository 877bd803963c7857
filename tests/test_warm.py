"""workers.warm: one process gives what many give, to the bit; nothing that a cell used is kept."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from grids.catalog import DATASETS, MODELS
from grids.cell import Cell
from grids.errors import InputError
from tests.warm_cells import CELLS, Process, tensors, train
from workers import memory, warm
from workers.data import load_questions, prepare
from workers.models import load_policy
from workers.run import run_cell


@pytest.fixture(autouse=True)
def _cold():
    warm.forget()
    yield
    warm.forget()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Digests of two cells, each trained in a process of its own."""
    folder = tmp_path_factory.mktemp("fresh")
    names = ("groups", "half again")
    made = {name: Process(folder / name.replace(" ", "-"), name) for name in names}
    return {name: process.digests()[0] for name, process in made.items()}


def state(model):
    """Weights and buffers, those that are not saved too."""
    return tensors(dict(model.named_parameters()) | dict(model.named_buffers()))


def test_cells_of_one_process_equal_those_of_their_own(fresh, tmp_path):
    order = ("plain", "groups", "half", "half again", "third", "half again", "groups")
    for place, name in enumerate(order):
        made = train(name, tmp_path / str(place))
        assert made == fresh.get(name, made), f"{name} at place {place}"


def test_a_cell_that_raised_midway_changes_nothing(fresh, tmp_path):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.round == 1:
            raise Stop

    for name in ("groups", "half"):
        with pytest.raises(Stop):
            run_cell(CELLS[name], tmp_path / f"raised {name}", stop)
    assert train("groups", tmp_path / "unforgotten") == fresh["groups"]
    warm.forget()
    assert train("half again", tmp_path / "forgotten") == fresh["half again"]


def test_seeds_and_settings_that_others_left_behind_change_nothing(fresh, tmp_path):
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    assert train("groups", tmp_path) == fresh["groups"]


def test_a_cell_leaves_torch_as_it_was(tmp_path):
    def told():
        return (
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu"),
            torch.get_float32_matmul_precision(),
        )  # fmt: skip

    before = told()
    train("half", tmp_path)
    assert told() == before


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Digests of every cell, each trained in a process of its own."""
    folder = tmp_path_factory.mktemp("single")
    return {name: Process(folder / name, name).digests()[0] for name in CELLS}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_any_order_of_cells_gives_what_single_processes_give(single, tmp_path, seed):
    order = [*CELLS, *CELLS]
    random.Random(seed).shuffle(order)
    together = Process(tmp_path / "together", *order).digests()
    for place, (name, made) in enumerate(zip(order, together, strict=True)):
        assert made == single[name], f"{name} at place {place} of {order}"


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-llama", "tiny-olmo2"])
def test_a_policy_is_fresh_whatever_became_of_the_one_before(tiny, name):
    cell = tiny(model=name)
    base = load_policy(cell)
    used = warm.policy(cell)
    with torch.no_grad():
        for tensor in (*used.model.parameters(), *used.model.buffers()):
            tensor.zero_()
    for parameter in used.model.parameters():
        parameter.requires_grad = False
        parameter.grad = torch.ones_like(parameter)
    used.model.train()
    used.model.forward = None
    used.model.register_forward_hook(lambda *_: None)
    used.model.add_module("adapter", torch.nn.Linear(2, 2))
    used.model.generation_config.repetition_penalty = 3.0
    used.model.config.vocab_size = 1
    used.tokenizer.pad_token = used.tokenizer.eos_token
    used.tokenizer.padding_side = "right"

    again = warm.policy(cell)
    assert state(again.model) == state(base.model)
    assert [n for n, _ in again.model.named_modules()] == [n for n, _ in base.model.named_modules()]
    for (name, p), (_, of_base) in zip(
        again.model.named_parameters(), base.model.named_parameters(), strict=True
    ):
        assert p.requires_grad and p.grad is None, name
        assert p.stride() == of_base.stride() and p.data_ptr() % 64 == 0, name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in again.model.modules())
    assert "forward" not in again.model.__dict__
    assert again.model.training == base.model.training
    assert again.model.config.to_dict() == base.model.config.to_dict()
    assert again.model.generation_config.to_dict() == base.model.generation_config.to_dict()
    assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight
    assert (again.tokenizer.pad_token, again.tokenizer.padding_side) == (
        base.tokenizer.pad_token, "left",
    )  # fmt: skip
    assert (again.stop_ids, again.folder) == (base.stop_ids, base.folder)


def test_the_model_is_read_once_while_cells_need_the_same(tiny, monkeypatch):
    read = []

    def reading(spec):
        read.append(spec.name)
        return load_base(spec)

    load_base = warm.load_base
    monkeypatch.setattr(warm, "load_base", reading)
    for model in ("tiny-qwen2", "tiny-qwen2", "tiny-llama", "tiny-qwen2"):
        warm.policy(tiny(model=model, precision="bf16" if read else "fp32"))
    assert read == ["tiny-qwen2", "tiny-llama", "tiny-qwen2"]
    warm.forget()
    warm.policy(tiny())
    assert len(read) == 4
    monkeypatch.setattr(warm, "KEPT_ON_CPU", 1000)
    monkeypatch.setattr(warm, "KEPT_BESIDE_GPU", 1000)
    warm.forget()
    large, again = warm.policy(tiny()), warm.policy(tiny())
    assert len(read) == 6 and state(large.model) == state(again.model)


def test_files_that_changed_are_read_anew(tmp_path):
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(MODELS["tiny-qwen2"].path, model)
    shutil.copytree(DATASETS["tiny-sums"].path, data)
    specs = {
        "model_spec": MODELS["tiny-qwen2"].model_copy(update={"path": str(model)}),
        "dataset_spec": DATASETS["tiny-sums"].model_copy(update={"path": str(data)}),
    }
    cell = Cell(model="tiny-qwen2", dataset="tiny-sums", batch=8, **specs)
    policy = warm.policy(cell)
    before, first = state(policy.model), warm.questions(cell, policy)
    (data / "test.jsonl").write_text((data / "train.jsonl").read_text())
    second = warm.questions(cell, policy)
    assert len(second.test) == len(first.train) != len(first.test)
    for file in Path(str(MODELS["tiny-llama"].path)).iterdir():
        shutil.copy(file, model / file.name)
    assert state(warm.policy(cell).model) != before


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"max_prompt": 20}, {"eval": {"test_questions": 3}}, {"dataset": "tiny-boxed"},
        {"model": "tiny-llama"},
    ],
)  # fmt: skip
def test_questions_are_those_that_a_cell_would_prepare(tiny, settings):
    first = tiny()
    warm.questions(first, warm.policy(first))
    cell = tiny(**settings)
    policy = warm.policy(cell)
    made = prepare(load_questions(cell.dataset_spec), cell, policy.tokenizer)
    assert warm.questions(cell, policy) == made
    assert warm.questions(cell, policy) is warm.questions(cell, policy)


def test_questions_that_are_kept_are_still_checked_against_the_batch(tiny):
    few = tiny(max_prompt=20)
    usable = len(warm.questions(few, warm.policy(few)).train)
    assert 8 <= usable < 400
    with pytest.raises(InputError, match=f"batch 400 is larger than .* {usable} usable"):
        warm.questions(tiny(max_prompt=20, batch=400), warm.policy(few))


def test_a_leak_is_told_by_what_is_held_after_the_first_cell(tiny, monkeypatch):
    cell = tiny()
    monkeypatch.setattr(warm, "_after_first", {})
    monkeypatch.setattr(warm, "LEAK_SHARE", 0.0)
    monkeypatch.setattr(warm, "LEAK_BYTES", 100 * 10**6)
    assert not warm.leaked(cell)
    held = torch.ones(40 * 10**6)
    assert warm.leaked(cell)
    del held
    assert not warm.leaked(cell)
    assert warm._grew(10**9, 10**9 + 10**8 + 1) and not warm._grew(10**9, 10**9 + 10**8)


def test_a_cycle_that_a_cell_left_is_no_leak(tiny, monkeypatch):
    monkeypatch.setattr(warm, "_after_first", {})
    assert not warm.leaked(tiny())
    before = memory.rss_bytes()
    knot = {"values": torch.ones(40 * 10**6)}
    knot["self"] = knot
    del knot
    assert not warm.leaked(tiny())
    assert memory.rss_bytes() - before < 50 * 10**6
