"""A model's shape: what of its architecture decides its memory, from its `config.json`.

Where that is not on this machine, as on one that only plans, the shapes of the catalogue's models
are noted here, and others are guessed from their size. Leaves out what follows from a shape
(`footprint.py`). Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from grids.catalog import MODELS, ModelSpec
from grids.errors import InputError


@dataclass(frozen=True)
class Shape:
    """What of a model's architecture decides its memory; widths are per token."""

    parameters: float
    layers: int
    hidden: int
    queries: int  # heads × head size
    keys: int  # the same of keys, and of values
    inner: int
    vocabulary: int
    norms_queries: bool = False  # queries and keys have norms of their own


# As the config.json of the catalogue's models have it: layers, hidden, queries, keys, inner width,
# vocabulary.
_NOTED = {
    "qwen2.5-0.5b-instruct": Shape(0, 24, 896, 896, 128, 4864, 151936),
    "llama-3.2-1b-instruct": Shape(0, 16, 2048, 2048, 512, 8192, 128256),
    "olmo-2-1b-instruct": Shape(0, 16, 2048, 2048, 2048, 8192, 100352, norms_queries=True),
    "smollm2-135m-instruct": Shape(0, 30, 576, 576, 192, 1536, 49152),
}
# By revision: another one may have another shape.
NOTED = {
    MODELS[name].revision: replace(shape, parameters=MODELS[name].parameters)
    for name, shape in _NOTED.items()
}


def shape_of(spec: ModelSpec) -> Shape:
    """The model's shape from its `config.json`; where this machine does not have it, as noted here,
    else a guess.

    Raises `InputError` where the catalogue does not tell its size either.
    """
    config = _config(spec.path, spec.hub, spec.revision)
    if config is not None:
        return _read(config, spec.parameters)
    if spec.revision in NOTED:
        return NOTED[spec.revision]
    if spec.parameters:
        return _guessed(spec.parameters)
    raise InputError(
        f"{spec.name}: cannot tell how much memory it takes: neither its size nor its config.json "
        "is known here; give `parameters:` of the model in the grid, or `gpus:` of its cells"
    )


@lru_cache(maxsize=64)
def _config(path: str | None, hub: str | None, revision: str) -> dict[str, Any] | None:
    """The `config.json` of a local copy, or of what the hub's client has fetched before."""
    found: Any = Path(path) / "config.json" if path else None
    if found is None and hub is not None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(hub, "config.json", revision=revision or None)
    try:
        config = json.loads(Path(found).read_text(encoding="utf-8"))
    except (TypeError, OSError, ValueError):  # not there, or no model's: the worker tells why
        return None
    return config if isinstance(config, dict) and "hidden_size" in config else None


def _read(config: dict[str, Any], parameters: float) -> Shape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    size = int(config.get("head_dim") or hidden // heads)
    layers, vocabulary = int(config["num_hidden_layers"]), int(config["vocab_size"])
    queries, keys = heads * size, int(config.get("num_key_value_heads") or heads) * size
    inner = int(config.get("intermediate_size") or 4 * hidden)
    if not parameters:
        tables = 1 if config.get("tie_word_embeddings") else 2
        layer = 2 * hidden * (queries + keys) + 3 * hidden * inner
        parameters = tables * vocabulary * hidden + layers * layer
    normed = str(config.get("model_type", "")).startswith(("olmo2", "olmo3", "qwen3", "gemma3"))
    return Shape(parameters, layers, hidden, queries, keys, inner, vocabulary, normed)


def _guessed(parameters: float) -> Shape:
    """A decoder of this size as most of that size are: 16 layers at least, inner width four times
    the hidden, no grouped keys, a large vocabulary."""
    hidden = max(64, round(1.9 * parameters ** (1 / 3) / 64) * 64)
    vocabulary = 128_000
    layers = max(16, round((parameters - vocabulary * hidden) / (16 * hidden**2)))
    return Shape(parameters, layers, hidden, hidden, hidden, 4 * hidden, vocabulary, True)
