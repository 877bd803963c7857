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

Of a cell on several GPUs it is what each of them holds (`_in_shards`).

The bytes that a layer saves a token were counted on the Qwen2, Llama and OLMo-2 classes of
transformers with scaled-dot-product attention; another class may differ. Left out: the CUDA context
and the allocator's fragments, for which who places cells adds a margin. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from grids.cell import Cell
from workers.shapes import Shape, shape_of

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
# cache does not hold wait in its queue. Two widths alone, so that an engine that is kept serves
# cells of other shapes.
ENGINE_ROWS = (256, 512)
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
    rows = engine_rows(cell)
    tokens = min(max(ENGINE_TOKENS, cell.max_prompt), rows * longest(cell))
    token = token_bytes(shape_of(cell.model_spec), _size(cell))
    # One block is the engine's own; the CPU's kernels pad a head to at most twice its size.
    least = (longest(cell) + 2 * ENGINE_BLOCK) * token * (1 if on_gpu else 2)
    most = ENGINE_CACHE_BYTES if on_gpu else ENGINE_CACHE_BYTES_ON_CPU
    cache = min(most, rows * (longest(cell) + ENGINE_BLOCK) * token)
    return EnginePlan(rows, max(tokens, rows), max(cache, least, ENGINE_CACHE_LEAST))


def engine_rows(cell: Cell) -> int:
    """Rows that an engine of vLLM is to answer at once."""
    few, many = ENGINE_ROWS
    return few if _asked(cell) <= few else many


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
    step = 4 * trained / cell.processes
    looked_at = (
        4 * embedding / cell.processes
    )  # a gradient and its square in float64, after every other is made
    made = Predicted(
        weights=int(_weights(shape, cell)),
        optimizer=int(8 * trained),
        gradients=int(4 * trained),
        reference=int(4 * shape.parameters) if cell.kl > 0 and not cell.lora_rank else 0,
        activations=int(max(update, step, looked_at)),
        generation=int(max(_generation(shape, cell), _scoring(shape, cell))),
        engine=_engine(shape, cell) if cell.engine == "vllm" else 0,
    )
    return _in_shards(made, shape, cell) if cell.processes > 1 else made


def _in_shards(whole: Predicted, shape: Shape, cell: Cell) -> Predicted:
    """Of a cell on several GPUs, what each has: a share of what is kept and, in a pass, a layer and
    the embeddings put together, with their gradients; to generate, all weights. The copies that
    autocast makes for the backward pass are whole. At the start the policy, and then the reference,
    are whole in turn, which is no more than to generate."""
    count = cell.processes
    copies = max(0.0, _weights(shape, cell) - 4 * shape.parameters)
    together = 4 * shape.parameters / shape.layers + 8 * shape.vocabulary * shape.hidden
    return Predicted(
        weights=int((whole.weights - copies) / count + copies),
        optimizer=whole.optimizer // count,
        gradients=whole.gradients // count,
        reference=whole.reference // count,
        activations=whole.activations + int(2 * together),
        generation=whole.generation + int(4 * shape.parameters),
        engine=whole.engine,
    )


def longest(cell: Cell) -> int:
    """Tokens of the longest row."""
    return cell.max_prompt + cell.max_response


def pass_rows(cell: Cell, gradient: bool) -> int:
    """The most rows of full length that one pass holds: one always fits. The rows of an update, or
    of a round, are dealt out to the cell's processes."""
    wider = 1 if gradient else WIDER_WITHOUT_GRADIENT
    rows = max(1, PASS_TOKENS * wider // longest(cell))
    if cell.rows_per_pass:
        rows = min(rows, cell.rows_per_pass * wider)
    dealt = cell.rows_per_update if gradient else cell.generated_per_step
    return min(rows, math.ceil(dealt / cell.processes))


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
