"""What training a cell takes of a GPU's memory, predicted from its settings and its model's shape.

Every term is a count of what the workers hold, for rows as long as the cell allows:

- weights: float32, and under bf16 the copy that autocast keeps of them during a pass;
- reference: the base in float32, where there is a KL;
- optimizer: Adam's two moments, float32. gradients: float32;
- activations: what the widest pass with a gradient saves for its backward pass, with the gradients
  of the embedding and of the head on their way; or, where that is more, what the optimiser's step
  holds beside the gradients (one value a parameter);
- generation: keys and values of the widest pass, its prompts on their way through; or, where that
  is more, a pass of scoring, which is wide for it saves nothing.

The bytes that a layer saves a token were counted on the Qwen2, Llama and OLMo-2 classes of
transformers with scaled-dot-product attention; another class may differ. Left out: the CUDA context
and the allocator's fragments, for which who places cells adds a margin. Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from grids.catalog import ModelSpec
from grids.cell import Cell
from grids.errors import InputError

# Tokens in one forward and backward pass; one without gradient keeps no activations and takes more.
PASS_TOKENS = 8192
WIDER_WITHOUT_GRADIENT = 4
# Memory for keys and values of one generation pass, bytes; and its rows at most.
CACHE_BYTES = 2 << 30
GENERATION_ROWS = 1024
# Logits that TRL's head makes at a time.
LOGIT_TILE = 4096 * 32768
# Test questions of a data set that does not tell.
UNCOUNTED_ROWS = 5000


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


@dataclass(frozen=True)
class Predicted:
    """Bytes of a GPU; see the module."""

    weights: int
    optimizer: int
    gradients: int
    reference: int
    activations: int
    generation: int

    @property
    def peak(self) -> int:
        """The most at any one time: an update and a generation never meet."""
        held = self.weights + self.optimizer + self.reference
        return held + max(self.gradients + self.activations, self.generation)


def predicted_bytes(cell: Cell) -> Predicted:
    """The memory that training the cell takes of a GPU.

    Raises `InputError` where neither the catalogue nor a file on this machine tells the model's
    size.
    """
    shape = shape_of(cell.model_spec)
    parameters = shape.parameters
    cast = 2 * parameters if cell.precision == "bf16" else 0
    embedding = 4 * shape.vocabulary * shape.hidden
    tokens = pass_rows(cell, gradient=True) * longest(cell)
    # The head's gradient and the embedding's, before they are added up.
    update = tokens * _saved(shape, cell) + 2 * embedding + _tile(shape, cell, tokens)
    step = 4 * parameters
    looked_at = 4 * embedding  # a gradient and its square in float64, after every other is made
    return Predicted(
        weights=int(4 * parameters + cast),
        optimizer=int(8 * parameters),
        gradients=int(4 * parameters),
        reference=int(4 * parameters) if cell.kl > 0 else 0,
        activations=int(max(update, step, looked_at)),
        generation=int(max(_generation(shape, cell), _scoring(shape, cell))),
    )


def longest(cell: Cell) -> int:
    """Tokens of the longest row."""
    return cell.max_prompt + cell.max_response


def pass_rows(cell: Cell, gradient: bool) -> int:
    """The most rows of full length that one pass holds: one always fits."""
    wider = 1 if gradient else WIDER_WITHOUT_GRADIENT
    rows = max(1, PASS_TOKENS * wider // longest(cell))
    if cell.rows_per_pass:
        rows = min(rows, cell.rows_per_pass * wider)
    return min(rows, cell.rows_per_update if gradient else cell.generated_per_step)


def _saved(shape: Shape, cell: Cell) -> float:
    """Bytes that a token leaves for the backward pass."""
    hidden, queries, inner = shape.hidden, shape.queries, shape.inner
    if cell.precision == "bf16":  # the residual stream and the norms stay float32
        layer = 20 * hidden + 15 * queries + 8 * inner
    else:
        layer = 16 * hidden + 25 * queries + 16 * inner
    if shape.norms_queries:
        layer += 8 * (queries + shape.keys)
    if cell.gradient_checkpointing:  # a layer's input, and one layer made anew
        return float(shape.layers * 4 * hidden + layer)
    return float(shape.layers * layer)


def _passing(shape: Shape, cell: Cell) -> int:
    """Bytes of a token on its way through one layer, without gradient."""
    size = _size(cell)
    return 14 * shape.hidden + 3 * size * shape.queries + 3 * size * shape.inner


def _tile(shape: Shape, cell: Cell, tokens: int) -> int:
    return min(LOGIT_TILE, tokens * shape.vocabulary) * _size(cell)


def _scoring(shape: Shape, cell: Cell) -> int:
    tokens = pass_rows(cell, gradient=False) * longest(cell)
    return tokens * _passing(shape, cell) + _tile(shape, cell, tokens)


def _generation(shape: Shape, cell: Cell) -> int:
    rows = min(generation_rows(cell, shape), _asked(cell))
    # While a layer's keys and values grow by a token, they are there twice.
    cache = rows * row_bytes(cell, shape) * (1 + 1 / shape.layers)
    return int(cache + rows * cell.max_prompt * _passing(shape, cell))


def row_bytes(cell: Cell, shape: Shape) -> int:
    """Keys, values and last scores of one row in generation."""
    token = 2 * 4 * shape.layers * shape.keys
    logits = 4 * 8 * shape.vocabulary  # a few copies of the last position's scores
    return longest(cell) * token + logits


def generation_rows(cell: Cell, shape: Shape) -> int:
    """Rows of the widest generation pass."""
    return max(1, min(GENERATION_ROWS, CACHE_BYTES // row_bytes(cell, shape)))


def _asked(cell: Cell) -> int:
    """The most rows that are ever to be generated at once."""
    tests = cell.eval.test_questions or cell.dataset_spec.test_rows or UNCOUNTED_ROWS
    evaluated = max(tests, cell.eval.train_questions) * max(1, cell.eval.samples)
    return max(cell.generated_per_step, evaluated)


def _size(cell: Cell) -> int:
    return 2 if cell.precision == "bf16" else 4


def shape_of(spec: ModelSpec) -> Shape:
    """The model's shape from its `config.json`; where this machine does not have it, a guess.

    Raises `InputError` where the catalogue does not tell its size either.
    """
    config = _config(spec.path, spec.hub, spec.revision)
    if config is not None:
        return _read(config, spec.parameters)
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
