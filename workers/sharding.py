"""A model's weights, gradients and optimiser state in shards, one to each process of a cell.

PyTorch's FSDP2: every layer is put together when a pass needs it and taken apart after. Gradients
are summed over processes, not averaged: each takes other passes of one loss. Accelerate and TRL see
a run of one process, so what they compute is what they compute for any cell, and the same code runs
over NCCL on GPUs and over gloo without one; accelerate itself shards on GPUs alone.

In one process nothing here does anything. Leaves out what the processes tell each other
(`ranks.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from workers import adapters, ranks


def shard(model: Any) -> None:
    """Leave this process its share of a model, which every process has whole and alike. What is no
    model, but a view of another or nothing, is left alone."""
    here = ranks.here()
    if here.count == 1 or not hasattr(model, "modules"):
        return
    mesh = init_device_mesh(model.device.type, (here.count,))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # The rest too goes back into shards after each pass: an optimiser that steps without one would
    # leave what is whole behind.
    model.set_reshard_after_forward(True)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    # A model with adapters generates by its inner model: it must be known before which is the root.
    with torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16):
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))


def _parts(model: Any) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole(model: Any) -> Iterator[None]:
    """Within it each process has all weights and needs no other to compute with them."""
    if not (parts := _parts(model)):
        yield
        return
    model.set_reshard_after_forward(False)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
        model.set_reshard_after_forward(True)


def full(state: Any) -> Any:
    """A state with whole tensors, on the CPU, in place of shards. Every process must ask; the first
    alone gets them."""
    if isinstance(state, DTensor):
        found = state.full_tensor()
        return found.cpu() if ranks.is_first() else None
    if isinstance(state, Mapping):
        return type(state)((name, full(value)) for name, value in state.items())  # type: ignore[call-arg]
    return [full(value) for value in state] if isinstance(state, list) else state


def gathered_weights(model: Any) -> dict[str, Any] | None:
    """What a checkpoint holds of a model in shards, whole, as `full` gives it; None where it is
    whole already. Weights that are tied stay one tensor, which files hold once."""
    if not _parts(model):
        return None
    if adapters.is_adapted(model):
        found: dict[str, Any] = full(adapters.state(model))
        return found
    tied = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    made: dict[Any, Any] = {}
    found = {}
    for name, value in model.state_dict().items():
        key = tied.get(name, name)
        if key not in made:
            made[key] = full(value)
        found[name] = made[key]
    return found


def load_weights(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """`model.load_state_dict`, not strictly; of whole tensors each process takes its share."""
    if _parts(model):
        own = model.state_dict()
        weights = {name: like(value, own.get(name)) for name, value in weights.items()}
    return model.load_state_dict(weights, strict=False)


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict`; of whole tensors each process takes its share."""
    parameters: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]
    held = {
        i: {name: like(value, parameters[i]) for name, value in kept.items()}
        for i, kept in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": held})


def like(value: Any, parameter: Any) -> Any:
    """A whole tensor as the shard of it that belongs beside a parameter of its shape."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    mesh = parameter.device_mesh
    placed = value.to(parameter.device)
    return distribute_tensor(placed, mesh, parameter.placements, src_data_rank=None)


def square_norm(gradients: Iterable[Tensor | None]) -> float:
    """The sum of squares over tensors and, where they are shards, over processes."""
    total = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        if gradient is not None:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            total += local.double().square().sum().cpu()
    return float(sum(ranks.gathered(total.item())))
