"""LoRA (arXiv 2106.09685): low-rank adapters beside a frozen base, through peft, where a cell asks.

A linear layer W becomes W + (alpha / rank) B A; A is drawn from the cell's own generator, B is
zero, so that training begins at the base. The output head and the embeddings have no adapter.
Everything else of a cell takes the model with adapters for any model: the KL's reference is the
same model with its adapters off, and a checkpoint holds the adapters alone, as peft keeps them.

Leaves out the base model (`models.py`) and adapters that were trained elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grids.cell import Cell
from grids.errors import InputError
from workers.sampling import generator

if TYPE_CHECKING:
    from torch import Tensor

    from workers.models import Policy

WEIGHTS = "adapter_model.safetensors"
NAME = "default"  # peft's for the first adapter


def adapted(policy: Policy, cell: Cell) -> Policy:
    """The policy with the cell's adapters in its model, which is changed; itself without LoRA.

    Raises `InputError` where no layer of the model is one of `lora_targets`.
    """
    if not cell.lora_rank:
        return policy
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=cell.lora_rank, lora_alpha=cell.lora_alpha, target_modules=_targets(policy.model, cell),
        lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # peft draws too, from torch's own generator
        model = get_peft_model(policy.model, config)
    _draw(model, cell)
    if cell.precision == "bf16":
        _halve(model)
    # For whoever loads the adapter later: where its base is to be had, not where it lay here.
    spec = cell.model_spec
    config.base_model_name_or_path = spec.hub or spec.name
    config.revision = spec.revision if spec.hub else None
    return replace(policy, model=model)


def inner(model: Any) -> Any:
    """The transformers model, whether it has adapters or not."""
    return model.get_base_model() if is_adapted(model) else model


def is_adapted(model: Any) -> bool:
    return hasattr(model, "get_base_model")  # peft's; a model that it was put into lacks it


class Base:
    """A model with its adapters off, which is the base; to be called as the model itself is."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.model.disable_adapter():
            return self.model(*args, **kwargs)


def merged(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the plain model that computes the same, under its names, one at a time.

    The base is only read: peft's own merging and unmerging in place leave rounding in it.
    """
    plain = inner(model)
    for name, parameter in plain.named_parameters():
        owner, base, kind = name.partition(".base_layer.")
        if base and kind == "weight":
            delta = plain.get_submodule(owner).get_delta_weight(NAME)
            yield f"{owner}.{kind}", parameter.detach().float() + delta.detach()
        elif ".lora_" not in name:
            yield f"{owner}.{kind}" if base else name, parameter.detach()


# ---- files


def save(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Write the adapters as peft keeps them, so that its `PeftModel.from_pretrained` loads them.

    `weights`: their state, whole, where the model holds it in shards.
    """
    from safetensors.torch import save_file

    whole = {name: value.contiguous() for name, value in (weights or state(model)).items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config[NAME]
    config.inference_mode = True  # what a loaded adapter is for, unless its reader says otherwise
    config.save_pretrained(folder)
    config.inference_mode = False


def state(model: Any) -> dict[str, Tensor]:
    """The adapters' weights under the names that peft's files have."""
    found = model.state_dict()
    return {file_name: found[name] for name, file_name in _names(model).items()}


def _names(model: Any) -> dict[str, str]:
    """Names of the weights in the model, and in files of peft, which lack the adapter's name."""
    names = [name for name, _ in model.named_parameters() if ".lora_" in name]
    return {name: name.replace(f".{NAME}.", ".") for name in names}


def load(model: Any, weights: dict[str, Any], folder: Path) -> None:
    """Put weights into a model's adapters. Raises `ValueError` where they are not all there."""
    from workers.sharding import load_weights

    names = _names(model)
    if missing := sorted(set(names.values()) - weights.keys()):
        raise ValueError(f"{folder} lacks weights: {missing[:3]}")
    load_weights(model, {name: weights[file_name] for name, file_name in names.items()})


# ---- how adapters begin


def _targets(model: Any, cell: Cell) -> str | list[str]:
    """What peft is told: its own word for all linear layers but the head, or names of layers."""
    if cell.lora_targets == "all-linear":
        return cell.lora_targets
    import torch

    head = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m != head]
    wanted = cell.lora_targets == "attention"
    found = {n.rpartition(".")[2] for n in linear if ("attn" in n or "attention" in n) == wanted}
    if not found:
        raise InputError(
            f"cell {cell.label}: lora_targets: {cell.lora_targets!r} is no linear layer of "
            f"{cell.model}, whose are {sorted({n.rpartition('.')[2] for n in linear})}; "
            "take 'all-linear'"
        )
    return sorted(found)


def _draw(model: Any, cell: Cell) -> None:
    """A of every layer, as peft draws it (uniform, within 1 / sqrt(inputs)), from the cell's seed:
    equal cells begin equally, whatever else drew numbers before, and on any device."""
    import torch

    for name, parameter in inner(model).named_parameters():
        if ".lora_A." in name:
            rng = generator("lora", cell.seed, name.partition(".lora_A.")[0])
            bound = 1 / math.sqrt(parameter.shape[1])
            drawn = rng.uniform(-bound, bound, tuple(parameter.shape))
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(drawn))


def _halve(model: Any) -> None:
    """Frozen layers in bfloat16, which autocast computes them in anyhow, to the same bits.

    They are never updated, so float32 would only take memory, and time in every pass: autocast
    keeps no copy of a weight that takes no gradient.
    """
    import torch

    for module in inner(model).modules():
        if hasattr(module, "base_layer"):
            module.base_layer.to(torch.bfloat16)
