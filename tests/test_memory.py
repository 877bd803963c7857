"""workers.footprint and workers.memory: what a cell takes, and how a worker is held to it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import torch

from grids.catalog import MODELS, ModelSpec
from grids.cell import Cell
from grids.errors import InputError
from tests.conftest import ROOT
from workers import memory
from workers.engine import TransformersEngine
from workers.footprint import (
    ENGINE_BLOCK,
    ENGINE_CACHE_LEAST,
    ENGINE_GRAPHS_BYTES,
    _saved,
    engine_plan,
    generation_rows,
    longest,
    pass_rows,
    predicted_bytes,
    row_bytes,
    token_bytes,
)
from workers.models import load_policy
from workers.passes import pass_bounds
from workers.shapes import NOTED, _read, shape_of

TINY = ("tiny-qwen2", "tiny-llama", "tiny-olmo2")


def paper(**settings):
    return Cell(**{"model": "qwen2.5-0.5b-instruct", "dataset": "gsm8k"} | settings)


# ---- prediction


def test_weights_gradients_and_moments_are_counted_by_parameter():
    made, count = predicted_bytes(paper(precision="fp32")), 494_032_768
    assert (made.weights, made.gradients, made.optimizer) == (4 * count, 4 * count, 8 * count)
    assert made.reference == 4 * count
    assert predicted_bytes(paper(kl="off")).reference == 0
    assert predicted_bytes(paper(precision="bf16")).weights == 6 * count


def test_the_peak_is_an_update_or_a_generation_never_both():
    made = predicted_bytes(paper())
    held = made.weights + made.optimizer + made.reference
    assert made.peak == held + max(made.gradients + made.activations, made.generation)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({}, {"rows_per_pass": 1}),
        ({"rows_per_pass": 4}, {"rows_per_pass": 2}),
        ({"max_response": 16000, "max_prompt": 512}, {}),
        ({}, {"gradient_checkpointing": True}),
        ({"precision": "fp32", "kl": "off"}, {"precision": "bf16", "kl": "off"}),
        ({}, {"kl": "off"}),
        ({}, {"batch": 2, "micro_batch": 2}),
        ({"model": "llama-3.2-1b-instruct"}, {}),
    ],
)
def test_what_takes_more_is_predicted_to(more, less):
    assert predicted_bytes(paper(**more)).peak > predicted_bytes(paper(**less)).peak


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_those_that_a_pass_saves(tiny, name, precision):
    """Counted by autograd's own hooks, every storage once; the weights' copies are not of them."""
    cell = tiny(model=name, precision=precision)
    model, rows, length = load_policy(cell).model.train(), 32, 48
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved, held = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # a storage that is let go would give its address to another
        return tensor

    cast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast:
        model.model(input_ids=torch.full((rows, length), 5), use_cache=False)
    copies = 2 * sum(p.numel() for p in model.model.layers.parameters())
    counted = sum(saved.values()) - (copies if precision == "bf16" else 0)
    predicted = rows * length * _saved(shape_of(cell.model_spec), cell)
    assert counted == pytest.approx(predicted, rel=0.12)


@pytest.mark.parametrize("name", TINY)
def test_the_shape_is_that_of_the_model(tiny, name):
    cell = tiny(model=name, max_prompt=32)
    policy = load_policy(cell)
    shape, config = shape_of(cell.model_spec), policy.model.config
    assert (shape.layers, shape.hidden, shape.vocabulary) == (
        config.num_hidden_layers, config.hidden_size, config.vocab_size,
    )  # fmt: skip
    assert generation_rows(cell, shape) == TransformersEngine(policy, cell).width
    config.num_key_value_heads = 2
    grouped = _read(config.to_dict(), shape.parameters)
    assert row_bytes(cell, grouped) == TransformersEngine(policy, cell)._row_bytes(cell)
    bare = cell.model_spec.model_copy(update={"parameters": 0.0})
    weights = sum(p.numel() for p in policy.model.parameters())
    assert shape_of(bare).parameters == pytest.approx(weights, rel=0.02)


@pytest.mark.parametrize(
    ("name", "width"),  # layers × hidden size, as their config.json has them
    [
        ("qwen2.5-0.5b-instruct", 24 * 896), ("llama-3.2-1b-instruct", 16 * 2048),
        ("olmo-2-1b-instruct", 16 * 2048), ("smollm2-135m-instruct", 30 * 576),
    ],
)  # fmt: skip
def test_a_model_that_is_not_here_is_guessed_from_its_size(name, width):
    spec = MODELS[name].model_copy(update={"path": None, "revision": "0" * 40})
    shape = shape_of(spec)
    assert 0.85 * width < shape.layers * shape.hidden < 1.25 * width


@pytest.mark.parametrize("spec", [s for s in MODELS.values() if s.hub])
def test_the_shapes_that_are_noted_make_up_the_parameters(spec):
    """Weights of one or two tables of the vocabulary, of attention and of the inner layers."""
    shape = NOTED[spec.revision]
    layer = 2 * shape.hidden * (shape.queries + shape.keys) + 3 * shape.hidden * shape.inner
    tables = {n: n * shape.vocabulary * shape.hidden + shape.layers * layer for n in (1, 2)}
    assert any(abs(total / spec.parameters - 1) < 1e-3 for total in tables.values())


def test_a_noted_shape_is_that_of_the_model_s_own_config():
    folder = ROOT / "models" / "smollm2-135m-instruct"
    if not (folder / "config.json").is_file():
        pytest.skip("no local copy of SmolLM2 in models/")
    spec = MODELS["smollm2-135m-instruct"]
    assert shape_of(spec.model_copy(update={"path": str(folder)})) == NOTED[spec.revision]


def test_a_model_of_unknown_size_is_told_with_what_to_do():
    spec = ModelSpec(name="mine", hub="some/one", revision="0" * 40)
    with pytest.raises(InputError, match="mine: cannot tell .* `parameters:` .* or `gpus:`"):
        predicted_bytes(Cell(model="mine", dataset="gsm8k", model_spec=spec))


@pytest.mark.parametrize(
    "settings",
    [{}, {"rows_per_pass": 2}, {"rows_per_pass": 64}, {"max_response": 31000}, {"batch": 2}],
)
def test_the_rows_of_a_pass_are_what_its_bounds_allow(settings):
    cell = paper(**settings)
    for gradient in (True, False):
        tokens, most = pass_bounds(cell, gradient)
        allowed = max(1, tokens // (cell.max_prompt + cell.max_response))
        rows = pass_rows(cell, gradient)
        assert rows == min(allowed, most or allowed, cell.batch)


# ---- vLLM's engine


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"batch": 2048, "rollouts": 8}, {"max_response": 31000}, {"precision": "fp32"},
        {"model": "olmo-2-1b-instruct", "max_prompt": 2048, "max_response": 2048},
        {"model": "tiny-qwen2", "dataset": "tiny-sums", "max_prompt": 16, "max_response": 8},
    ],
)  # fmt: skip
def test_an_engine_is_as_wide_as_vllm_demands(settings, on_gpu):
    cell = paper(**settings)
    plan, shape = engine_plan(cell, on_gpu), shape_of(cell.model_spec)
    assert plan.rows <= plan.batched_tokens <= plan.rows * longest(cell)
    size = 2 if cell.precision == "bf16" else 4
    blocks = longest(cell) // ENGINE_BLOCK + 2  # its last one is not full, and one is the engine's
    assert plan.cache_bytes >= blocks * ENGINE_BLOCK * token_bytes(shape, size)


def test_an_engine_is_as_wide_as_the_evaluation_whatever_the_batch():
    narrow = paper(batch=32)
    assert engine_plan(narrow).rows == 512  # of 1319 test questions; of them TRL would take 32
    assert engine_plan(narrow) == engine_plan(paper(batch=2048, rollouts=8))
    asked = {"test_questions": 64, "train_questions": 0}
    assert engine_plan(paper(eval=asked)).rows == 256
    assert engine_plan(paper(eval=asked, batch=512)).rows == 512


def test_an_engines_cache_is_bounded_and_smaller_on_the_cpu():
    whole = paper(model="tiny-qwen2", dataset="tiny-sums")
    shape = shape_of(whole.model_spec)
    rows = engine_plan(whole).rows * (longest(whole) + ENGINE_BLOCK)
    assert engine_plan(whole).cache_bytes == rows * token_bytes(shape) > ENGINE_CACHE_LEAST
    large = paper(model="olmo-2-1b-instruct")
    assert engine_plan(large, on_gpu=True).cache_bytes == 4 << 30
    assert engine_plan(large).cache_bytes == 1 << 30
    short = paper(model="tiny-qwen2", dataset="tiny-sums", max_prompt=16, max_response=8)
    few = short.model_copy(update={"eval": short.eval.model_copy(update={"test_questions": 9})})
    assert engine_plan(few).cache_bytes >= ENGINE_CACHE_LEAST


def test_what_the_engine_holds_is_there_beside_the_update():
    """Its weights, its cache and its graphs, all the time; the scores of a step but then."""
    made, before = predicted_bytes(paper(engine="vllm")), predicted_bytes(paper())
    cache = engine_plan(paper(), on_gpu=True).cache_bytes
    assert before.engine == 0
    assert made.engine == 2 * 494_032_768 + cache + ENGINE_GRAPHS_BYTES
    assert made.peak == before.peak + made.engine  # of an update
    wide = predicted_bytes(paper(engine="vllm", precision="fp32"))
    assert wide.engine - made.engine == 2 * 494_032_768, "the cache is at its bound in both"
    vocabulary = shape_of(paper().model_spec).vocabulary
    assert made.generation > 512 * vocabulary * 32
    longer = predicted_bytes(paper(engine="vllm", max_response=4096))
    assert longer.generation == made.generation, "but for a pass of scoring, it is the step's"


# ---- half the rows


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 2),  # 8192 tokens hold 5 rows of 512 + 1024
        ({"rows_per_pass": 4}, 2),
        ({"rows_per_pass": 64}, 2),
        ({"max_prompt": 64, "max_response": 64}, 16),  # an update has 32
        ({"rows_per_pass": 1}, None),
        ({"max_response": 8000}, None),
        ({"max_prompt": 64, "max_response": 64, "batch": 16, "gpus": 8}, 1),  # a process has 2
    ],
)
def test_halved_is_half_of_what_binds(settings, rows):
    cell = paper(**settings)
    half = memory.halved(cell)
    assert (half and half.rows_per_pass) == rows
    if half is not None:
        assert (half.key, half.eval_key) == (cell.key, cell.eval_key)
        assert predicted_bytes(half).activations < predicted_bytes(cell).activations
        assert half.model_copy(update={"rows_per_pass": cell.rows_per_pass}) == cell


def test_halving_ends():
    cell, times = paper(max_prompt=64, max_response=64, batch=256), 0
    while (half := memory.halved(cell)) is not None:
        cell, times = half, times + 1
    assert (cell.rows_per_pass, times) == (1, 6)


# ---- out of memory

PROVOKED = """
import resource, sys
import numpy, torch
from workers.memory import is_out_of_memory
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
made = {
    "torch": lambda: torch.empty(2**31),
    "numpy": lambda: numpy.ones(2**31),
    "python": lambda: bytearray(2**32),
    "mmap": lambda: __import__("mmap").mmap(-1, 2**33),
}
for name, make in made.items():
    try:
        make()
    except BaseException as error:
        kind = MemoryError if isinstance(error, MemoryError) else type(error)
        print(name, kind.__name__, is_out_of_memory(error))
"""


def test_real_refusals_of_memory_are_known():
    done = subprocess.run(
        [sys.executable, "-c", PROVOKED], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["torch", "RuntimeError", "True"],
        ["numpy", "MemoryError", "True"],
        ["python", "MemoryError", "True"],
        ["mmap", "OSError", "True"],
    ]


def chained(first, then):
    try:
        try:
            raise first
        except BaseException as error:
            raise then from error
    except BaseException as made:
        return made


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("std::bad_alloc"), True),
        (chained(MemoryError(), ValueError("the tokenizer failed")), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
        (OSError(28, "No space left on device"), False),
        (chained(KeyError("a"), RuntimeError("b")), False),
        (InputError("give less memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, is_one):
    assert memory.is_out_of_memory(error) is is_one


def test_an_error_that_hides_its_context_is_judged_alone():
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise RuntimeError("another") from None
    except RuntimeError as error:
        assert not memory.is_out_of_memory(error)


# ---- peaks, fences, locks


def test_the_peak_is_of_what_came_since_the_reset():
    peak = memory.Peak()
    peak.reset()
    before = peak.read()["peak_rss_bytes"]
    block = bytearray(200 * 10**6)
    del block
    reached = peak.read()
    assert 180e6 < reached["peak_rss_bytes"] - before < 300e6
    assert reached["peak_gpu_bytes"] is None or torch.cuda.is_available()
    peak.reset()
    assert peak.read()["peak_rss_bytes"] < before + 100e6


def test_the_peak_can_be_read_from_a_thread_and_is_cheap():
    peak, told = memory.Peak(), []
    peak.reset()

    def read():
        began = time.perf_counter()
        told.extend(peak.read() for _ in range(100))
        told.append(time.perf_counter() - began)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert told.pop() < 1.0 and all(t["peak_rss_bytes"] > 0 for t in told)


def test_without_a_mark_the_peak_is_of_the_whole_life():
    peak = memory.Peak().read()["peak_rss_bytes"]
    assert peak >= 0.99 * memory.rss_bytes()  # the system counts pages in lots


@pytest.mark.parametrize(
    ("share", "fraction"), [(None, 1.0), (1.0, 1.0), (0.5, 0.5 - 0.00732), (0.005, 0.01)]
)
def test_a_share_holds_the_cuda_context_too(share, fraction):
    assert memory.fraction(share, 80 * 2**30) == pytest.approx(fraction, abs=1e-5)


def test_fences_and_starts_do_nothing_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    memory.fence(0.25)
    with memory.starting(), memory.starting():
        pass
    memory.fence(None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_fence_refuses_what_lies_beyond_it():
    total = torch.cuda.get_device_properties(0).total_memory
    memory.fence(0.2)
    try:
        with pytest.raises(torch.OutOfMemoryError) as error:
            torch.empty(int(0.25 * total), dtype=torch.uint8, device="cuda")
        assert memory.is_out_of_memory(error.value)
    finally:
        memory.fence(None)
    torch.empty(int(0.25 * total), dtype=torch.uint8, device="cuda")


HOLDER = """
import sys, time
from workers.memory import alone
with alone("GPU-test/../x"):
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_holds_the_lock_of_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert holder.stdout.readline() == b"has it\n"
    (lock,) = tmp_path.glob("banditgrid-*/gpu-*.lock")
    assert lock.parent.stat().st_mode & 0o777 == 0o700
    took = threading.Event()

    def take():
        with memory.alone("GPU-test/../x"):
            took.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    with memory.alone("another"):
        assert not took.wait(0.5)
    holder.kill()
    holder.wait()
    assert took.wait(10)
    thread.join()


def test_predicting_imports_no_torch():
    code = (
        "import sys\n"
        "from workers import footprint, memory\n"
        "from grids.cell import Cell\n"
        "made = footprint.predicted_bytes(Cell(model='tiny-qwen2', dataset='tiny-sums'))\n"
        "assert made.peak > 0\n"
        "memory.Peak().reset()\n"
        "print(sorted({'torch', 'transformers', 'ray', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
