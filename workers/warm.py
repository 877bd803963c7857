"""What a process keeps from one cell for the next: the base model, its questions as prompts, and an
engine that serves it.

The last base model stays on the CPU as it was read, and no cell touches it: each cell trains a copy
of its own. So what a cell gets is as fresh as from the files, whatever became of the copy before,
and one process gives the same policies as many. What is kept goes by content: other files, another
revision, prompt or length are read anew. A model that is too large to be there twice is not kept.

Leaves out imports, which stay by themselves, and when a process is to end (the orchestrator).
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from grids.catalog import DatasetSpec, ModelSpec, stamp
from grids.cell import Cell
from workers import memory
from workers.adapters import adapted
from workers.data import Questions, check_batch, load_questions, prepare
from workers.engine import Engine, TransformersEngine
from workers.models import Policy, load_base, placed
from workers.rewards import check_solutions

T = TypeVar("T")
# The largest model that is kept, bytes of float32 weights. Where cells train on the CPU, the copy
# takes of their memory, and a larger one is read in a small part of the time that its cells take;
# beside a GPU, the machine has memory to spare.
KEPT_ON_CPU, KEPT_BESIDE_GPU = 256 << 20, 8 << 30
# Memory that a process may gain from the first cell of a model to a later one: the larger of these.
LEAK_BYTES, LEAK_SHARE = 500 * 10**6, 0.25


@dataclass(frozen=True)
class Held:
    """Memory of this process, bytes."""

    rss: int
    gpu: int


_kept: dict[str, tuple[Any, Any]] = {}  # of each kind the last: what it depends on, and itself
_after_first: dict[Any, Held] = {}  # a model and engine -> the memory after their first cell


def policy(cell: Cell) -> Policy:
    """The cell's base model, fresh and the cell's own, as `models.load_policy` gives it."""
    _settle()
    spec = cell.model_spec
    if "engine" in _kept and not _is_served(cell):
        close_engine()
    with memory.starting():
        base = _once("model", _model_content(spec), lambda: _base(spec))
        if _is_large(base):
            _kept.pop("model")
            return placed(adapted(base, cell))
        return placed(adapted(_copied(base), cell))


def _base(spec: ModelSpec) -> Policy:
    """The base model; one that is kept lies in memory of its own, not in its files' pages, which
    a program that writes the files anew takes away."""
    base = load_base(spec)
    return base if _is_large(base) else _copied(base)


def _copied(base: Policy) -> Policy:
    model, tokenizer = copy.deepcopy(base.model), copy.deepcopy(base.tokenizer)
    return replace(base, model=model, tokenizer=tokenizer)


def questions(cell: Cell, policy: Policy) -> Questions:
    """The cell's questions as prompts; see `data.prepare`, whose errors it raises."""
    content = (
        _model_content(cell.model_spec), _data_content(cell.dataset_spec), cell.max_prompt,
        cell.eval.test_questions, cell.holdout, tuple(p.digest for p in cell.plugin_specs),
    )  # fmt: skip

    def made() -> Questions:
        read = load_questions(cell.dataset_spec, cell.plugin_specs)
        return prepare(read, cell, policy.tokenizer)

    found = _once("questions", content, made)
    check_batch(cell, len(found.train))
    check_solutions(cell, found.train)
    return found


def engine(cell: Cell, policy: Policy) -> Engine:
    """The engine that the cell asks for, serving the policy.

    One of vLLM's is kept, and serves the next cell that needs the like: it gets that one's weights
    before each call, and keeps nothing of an earlier call's.

    Raises `EngineError` where it cannot start.
    """
    if cell.engine == "transformers":
        return TransformersEngine(policy, cell)
    from workers.vllm_engine import VllmEngine

    if "engine" in _kept and _kept["engine"][1].is_dead:
        close_engine()
    made = _once("engine", _engine_content(cell), lambda: VllmEngine(policy, cell))
    made.serve(policy)
    return made


def close_engine() -> None:
    """End the engine that is kept, where there is one."""
    if "engine" in _kept:
        _kept.pop("engine")[1].close()
        _settle.cache_clear()  # the collector looks at everything again


def _is_served(cell: Cell) -> bool:
    """Whether the engine that is kept is one for the cell."""
    kept = _kept["engine"][0]
    same_model = cell.engine == "vllm" and kept[0] == _model_content(cell.model_spec)
    return same_model and kept == _engine_content(cell)


def _engine_content(cell: Cell) -> Any:
    if cell.engine == "transformers":
        return None
    from workers.vllm_start import needs

    return _model_content(cell.model_spec), needs(cell)


def forget() -> None:
    """Keep nothing, as after a cell that failed."""
    close_engine()
    _kept.clear()
    give_back()


def give_back() -> None:
    """Return to the system, and to the GPU's other users, what nobody holds any more. To be called
    between cells."""
    if "engine" in _kept:
        _kept["engine"][1].rest()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def leaked(cell: Cell) -> bool:
    """Whether this process holds more memory than after its first cell of the same model and
    engine, by more than chance explains. To be asked between cells; gives back what is free."""
    give_back()
    now = Held(memory.rss_bytes(), _gpu_bytes())
    content = _model_content(cell.model_spec), _engine_content(cell)
    first = _after_first.setdefault(content, now)
    return _grew(first.rss, now.rss) or _grew(first.gpu, now.gpu)


def _grew(before: int, now: int) -> bool:
    return now - before > max(LEAK_BYTES, LEAK_SHARE * before)


def _gpu_bytes() -> int:
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_allocated()) if torch and torch.cuda.is_initialized() else 0


def _once(kind: str, content: Any, make: Callable[[], T]) -> T:
    """What is kept of this kind, made anew where its content is another."""
    if kind not in _kept or _kept[kind][0] != content:
        _kept.pop(kind, None)  # before the next is made: the two need not fit together
        _kept[kind] = (content, make())
    made: T = _kept[kind][1]
    return made


def _model_content(spec: ModelSpec) -> Any:
    return spec.hub, spec.path, spec.revision, _files(spec)


def _data_content(spec: DatasetSpec) -> Any:
    return json.dumps(spec.model_dump(mode="json"), sort_keys=True), _files(spec)


def _files(spec: ModelSpec | DatasetSpec) -> Any:
    """What tells that the files of a local copy are still the same."""
    return stamp(Path(spec.path)) if spec.path else None


def _is_large(base: Policy) -> bool:
    """Too large to be there twice."""
    import torch

    size = sum(p.numel() * p.element_size() for p in base.model.parameters())
    return size > (KEPT_BESIDE_GPU if torch.cuda.is_available() else KEPT_ON_CPU)


@lru_cache(maxsize=1)
def _settle() -> None:
    """Once: what the imports made stays, so the collector need not look at it again. TRL collects
    at every training's start, and going through all modules takes longer than a small round."""
    gc.collect()
    gc.freeze()
