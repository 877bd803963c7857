"""What training a cell takes of a GPU's memory, predicted from its settings and its model's shape.

Every term is a count of what the workers hold, for rows as long as the cell allows:

- weights: float32, and under bf16 the copy that autocast keeps of them during a pass; with LoRA
  the frozen layers that have an adapter, under bf16 in half, and the adapters;
- reference: the base in float32, where there is a KL; with LoRA none;
- optimizer: Adam's two moments, float32. gradients: float32. Both of what is trained;
- activations: what the widest pass with a gradient saves for its backward pass, with the gradients
  of the embedding and of the head on their way; or, where that is more, what the optimiser's step
  holds beside the gradients (one value a parameter);
- generation: keys and values of the widest pass, its prompts on their way through; or, where that
  is more, a pass of scoring, which is wide for it saves nothing;
- engine: what vLLM holds from its start to its end, generating or not: its own copy of the weights
  in the precision of compute, its cache of keys and values, its CUDA graphs. To generate it takes
  its widest step and its sampler beside that, and no further keys and values.

The bytes that a layer saves a token were counted on the Qwen2, Llama and OLMo-2 classes of
transformers with scaled-dot-product attention; another class may differ. Left out: the CUDA context
and the allocator's fragments, for which who places cells adds a margin. Imports no torch.
"""

from __future__ import annotations

import json
import math
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
# vLLM: rows at once, tokens of one step, bytes of its cache on a GPU and on the CPU. Rows that the
# cache does not hold wait in its queue.
ENGINE_ROWS = 512
ENGINE_TOKENS = 8192
ENGINE_CACHE_BYTES, ENGINE_CACHE_BYTES_ON_CPU = 4 << 30, 1 << 30
ENGINE_CACHE_LEAST = 64 << 20
ENGINE_BLOCK = 128  # tokens of a block of the cache, at most
# Assumed, not measured: CUDA graphs of some dozens of widths, and workspaces of its kernels.
ENGINE_GRAPHS_BYTES = 1 << 30
# Bytes that one row's choice of a token takes for each word: scores and log-probabilities in
# float32, both twice, and what sampling by inversion makes of them in float64, twice.
ENGINE_WORD_BYTES = 4 * 4 + 2 * 8


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
    engine: int = 0

    @property
    def peak(self) -> int:
        """The most at any one time: an update and a generation never meet."""
        held = self.weights + self.optimizer + self.reference + self.engine
        return held + max(self.gradients + self.activations, self.generation)


@dataclass(frozen=True)
class EnginePlan:
    """How wide a vLLM engine is built for a cell.

    Attributes:
        rows: answered at once (`max_num_seqs`).
        batched_tokens: of one step (`max_num_batched_tokens`).
        cache_bytes: for keys and values (`kv_cache_memory_bytes`).
    """

    rows: int
    batched_tokens: int
    cache_bytes: int


def engine_plan(cell: Cell, on_gpu: bool = False) -> EnginePlan:
    """The width that the cell's work can use: its evaluations', whatever its training batch is.

    A cache in bytes, not as a share of what is free, so that engines that start beside each other
    on one GPU do not count each other's memory.
    """
    rows = min(ENGINE_ROWS, _asked(cell))
    tokens = min(max(ENGINE_TOKENS, cell.max_prompt), rows * longest(cell))
    token = token_bytes(shape_of(cell.model_spec), _size(cell))
    # One block is the engine's own; the CPU's kernels pad a head to at most twice its size.
    least = (longest(cell) + 2 * ENGINE_BLOCK) * token * (1 if on_gpu else 2)
    most = ENGINE_CACHE_BYTES if on_gpu else ENGINE_CACHE_BYTES_ON_CPU
    cache = min(most, rows * (longest(cell) + ENGINE_BLOCK) * token)
    return EnginePlan(rows, max(tokens, rows), max(cache, least, ENGINE_CACHE_LEAST))


def predicted_bytes(cell: Cell) -> Predicted:
    """The memory that training the cell takes of a GPU.

    Raises `InputError` where neither the catalogue nor a file on this machine tells the model's
    size.
    """
    shape = shape_of(cell.model_spec)
    trained = _adapters(shape, cell) if cell.lora_rank else shape.parameters
    # What the embedding and the head take, which have no adapter and so no gradient with LoRA.
    embedding = 0 if cell.lora_rank else 4 * shape.vocabulary * shape.hidden
    tokens = pass_rows(cell, gradient=True) * longest(cell)
    # The head's gradient and the embedding's, before they are added up.
    update = tokens * _saved(shape, cell) + 2 * embedding + _tile(shape, cell, tokens)
    step = 4 * trained
    looked_at = 4 * embedding  # a gradient and its square in float64, after every other is made
    return Predicted(
        weights=int(_weights(shape, cell)),
        optimizer=int(8 * trained),
        gradients=int(4 * trained),
        reference=int(4 * shape.parameters) if cell.kl > 0 and not cell.lora_rank else 0,
        activations=int(max(update, step, looked_at)),
        generation=int(max(_generation(shape, cell), _scoring(shape, cell))),
        engine=_engine(shape, cell) if cell.engine == "vllm" else 0,
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


def _weights(shape: Shape, cell: Cell) -> float:
    """Bytes of weights, and of the copies that autocast keeps of those that take gradient."""
    half = cell.precision == "bf16"
    if not cell.lora_rank:
        return (6 if half else 4) * shape.parameters
    frozen = sum(map(math.prod, _targets(shape, cell))) * shape.layers if half else 0
    return 4 * shape.parameters - 2 * frozen + (6 if half else 4) * _adapters(shape, cell)


def _adapters(shape: Shape, cell: Cell) -> float:
    """Parameters of a cell's adapters: to rank, and from it, at every layer that has one."""
    return cell.lora_rank * shape.layers * sum(map(sum, _targets(shape, cell)))


def _targets(shape: Shape, cell: Cell) -> list[tuple[int, int]]:
    """(inputs, outputs) of a layer's linear parts that have an adapter."""
    hidden, queries, keys, inner = shape.hidden, shape.queries, shape.keys, shape.inner
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    mlp = [(hidden, inner), (hidden, inner), (inner, hidden)]
    parts = {"attention": attention, "mlp": mlp, "all-linear": attention + mlp}
    return parts[cell.lora_targets]


def _saved(shape: Shape, cell: Cell) -> float:
    """Bytes that a token leaves for the backward pass."""
    hidden, queries, inner = shape.hidden, shape.queries, shape.inner
    if cell.precision == "bf16":  # the residual stream and the norms stay float32
        layer = 20 * hidden + 15 * queries + 8 * inner
    else:
        layer = 16 * hidden + 25 * queries + 16 * inner
    if shape.norms_queries:
        layer += 8 * (queries + shape.keys)
    if cell.lora_rank:  # frozen norms keep less; adapters keep what passes through their rank
        layer += _size(cell) * cell.lora_rank * len(_targets(shape, cell)) - 10 * hidden
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


def _engine(shape: Shape, cell: Cell) -> int:
    """What vLLM holds all the time."""
    cache = engine_plan(cell, on_gpu=True).cache_bytes
    return int(_size(cell) * shape.parameters + cache + ENGINE_GRAPHS_BYTES)


def _generation(shape: Shape, cell: Cell) -> int:
    if cell.engine == "vllm":
        plan = engine_plan(cell, on_gpu=True)
        step = plan.batched_tokens * _passing(shape, cell)
        return int(step + plan.rows * shape.vocabulary * ENGINE_WORD_BYTES)
    rows = min(generation_rows(cell, shape), _asked(cell))
    # While a layer's keys and values grow by a token, they are there twice.
    cache = rows * row_bytes(cell, shape) * (1 + 1 / shape.layers)
    return int(cache + rows * cell.max_prompt * _passing(shape, cell))


def row_bytes(cell: Cell, shape: Shape) -> int:
    """Keys, values and last scores of one row in generation."""
    logits = 4 * 8 * shape.vocabulary  # a few copies of the last position's scores
    return longest(cell) * token_bytes(shape) + logits


def token_bytes(shape: Shape, size: int = 4) -> int:
    """Keys and values of one token, of numbers of so many bytes."""
    return 2 * size * shape.layers * shape.keys


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
