"""A cell's base model and tokenizer, in float32, from a local folder or the hub.

Never runs a model's own code. Leaves out what adapters are (`adapters.py`), generation
(`engine.py`), training (`trainer.py`) and what is kept of a model for the next cell (`warm.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grids.catalog import ModelSpec
from grids.cell import Cell
from grids.errors import InputError
from workers.adapters import adapted
from workers.data import not_to_be_had, quiet_hub

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Policy:
    """A model ready to be trained: weights, tokenizer, and every token that ends a response."""

    model: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]
    folder: Path

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


def model_folder(spec: ModelSpec) -> Path:
    """The folder with the model's files, fetched from the hub where there is no local copy.

    Raises `InputError` where neither can be had.
    """
    if spec.path is not None:
        return _checked(spec, Path(spec.path))
    from huggingface_hub import snapshot_download

    quiet_hub()
    try:
        patterns = [*WEIGHTS, *TEXT_FILES]
        revision = spec.revision or None
        found = snapshot_download(str(spec.hub), revision=revision, allow_patterns=patterns)
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        message = not_to_be_had("model", spec.name, spec.hub, "models", error)
        raise InputError(message) from error
    return _checked(spec, Path(found))


def check_context(cell: Cell, folder: Path) -> None:
    """Raise `InputError` where prompt and response exceed what the model's own config allows."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    context = config.get("max_position_embeddings")
    if context is not None and cell.max_prompt + cell.max_response > context:
        raise InputError(
            f"cell {cell.label}: max_prompt {cell.max_prompt} + max_response {cell.max_response} "
            f"exceed the context of {cell.model} ({context} tokens); lower one"
        )


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer, padding on the left; without a pad token it pads with its EOS."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(cell: Cell) -> Policy:
    """The base model of a cell, ready to be trained where this machine trains."""
    return placed(adapted(load_base(cell.model_spec), cell))


def load_base(spec: ModelSpec) -> Policy:
    """A base model on the CPU, float32, with a neutral generation config.

    transformers fills what a call leaves unset from the model's own generation config (Qwen2.5's
    repetition penalty among it): so all of that is taken away but the tokens that end a response.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    folder = model_folder(spec)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    stop_ids = _stop_ids(model, tokenizer)
    model.generation_config = GenerationConfig(
        eos_token_id=list(stop_ids), pad_token_id=tokenizer.pad_token_id
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return Policy(model, tokenizer, stop_ids, folder)


def placed(policy: Policy) -> Policy:
    """The policy with its weights on the GPU, where there is one; they are moved, not copied."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return replace(policy, model=policy.model.to(device))


def _stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a response: of the generation config, the config, the tokenizer."""
    found: set[int] = set()
    sources = (model.generation_config, model.config, tokenizer)
    for ids in (getattr(source, "eos_token_id", None) for source in sources):
        listed = ids if isinstance(ids, list | tuple) else [ids]
        found |= {int(i) for i in listed if i is not None}
    return tuple(sorted(found))


def _checked(spec: ModelSpec, folder: Path) -> Path:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{spec.name}: {folder} is not a model's folder: it needs config.json and a "
            "*.safetensors file (weights in other formats are not read)"
        )
    return folder
