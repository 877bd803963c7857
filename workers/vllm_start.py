"""How vLLM is started in the trainer's process: its settings, through TRL, and nothing left behind.

TRL starts it (its colocate mode) and pushes weights, gathering shards; the settings that TRL takes
from the training batch are ours, and so is the merging of adapters. Leaves out what is asked of the
engine (`vllm_engine.py`) and its memory (`footprint.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from grids.cell import Cell
from grids.errors import InputError
from workers import adapters, engine_check, vllm_fixes
from workers.footprint import EnginePlan, engine_plan, longest
from workers.models import Policy

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
SIZES = {"fp32": 4, "bf16": 2}  # bytes of a weight
# Read when vLLM is imported, or when an engine starts. These must be so,
REQUIRED = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where weights can be pushed
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # it takes no logits processors
}
# and these are, unless somebody has set them. Nothing is told to anybody.
SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # trials side by side would all take the first cores
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
# What TRL sets for vLLM, and accelerate would take for a run of many processes.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ERROR_LETTERS = 400  # that a message shows


def _is_news(record: logging.LogRecord) -> bool:
    """transformers wonders at every trainer about the process group that vLLM has made."""
    return "process group is initialized" not in record.getMessage()


logging.getLogger("transformers.training_args").addFilter(_is_news)


def imported() -> None:
    """vLLM, with its settings; raises `InputError` where it is broken."""
    os.environ.update(REQUIRED | {k: v for k, v in SETTINGS.items() if k not in os.environ})
    try:
        import vllm  # noqa: F401
    except Exception as error:
        raise InputError(
            f"engine: vllm: vLLM is installed but cannot be imported ({type(error).__name__}: "
            f"{short(error)}); {engine_check.FIX}"
        ) from error


def short(error: BaseException) -> str:
    """An error's text in one line that a message can hold."""
    return " ".join(str(error).split())[:ERROR_LETTERS]


def colocated(policy: Policy, cell: Cell, accelerator: Any) -> Any:
    """TRL's engine, with the settings that the work asks for in place of those that TRL chooses."""
    from trl.generation import vllm_generation
    from vllm import LLM

    plan = plan_of(cell)
    given = _settings(policy, cell, plan)
    if accelerator.num_processes == 1:  # alone it needs no port, of which another may have it
        given["distributed_executor_backend"] = "uni"

    def ours(**chosen: Any) -> Any:
        expected = {"model", "max_num_seqs", "max_num_batched_tokens", "seed", "max_model_len"}
        if missing := expected - set(chosen):
            raise RuntimeError(f"TRL's call of vLLM lacks {sorted(missing)}: another TRL")
        return LLM(**chosen | given)

    with (  # TRL has neither where it was imported without vLLM
        patch.object(vllm_generation, "LLM", ours, create=True),
        patch.object(vllm_generation, "is_vllm_available", lambda: True),
    ):
        made = vllm_generation.VLLMGeneration(
            model=policy.model, accelerator=accelerator, processing_class=policy.tokenizer,
            mode="colocate", max_model_length=longest(cell), max_num_seqs=plan.rows,
            enable_sleep_mode=False, logprobs=None, trust_remote_code=False,
        )  # fmt: skip
    plain = made._iter_named_params

    def served() -> Iterator[tuple[str, Any]]:
        """TRL would merge adapters into the base and take them out, which leaves rounding in it."""
        adapted = adapters.is_adapted(made.model)
        return adapters.merged(made.model) if adapted else plain()

    made._iter_named_params = served
    return made


def needs(cell: Cell) -> tuple[Any, ...]:
    """What an engine depends on beside its model: cells that agree in it can share one."""
    return cell.precision, longest(cell), plan_of(cell)


def plan_of(cell: Cell) -> EnginePlan:
    return engine_plan(cell, on_gpu=torch.cuda.is_available())


def told(plan: EnginePlan) -> str:
    return f"{plan.rows} rows at once, {plan.cache_bytes / 1e9:.1f} GB of keys and values"


def _settings(policy: Policy, cell: Cell, plan: EnginePlan) -> dict[str, Any]:
    from workers.vllm_sampling import Inversion

    on_cpu = policy.model.device.type == "cpu"
    return (vllm_fixes.CPU_SETTINGS if on_cpu else {}) | {
        "model": str(policy.folder),
        "dtype": DTYPES[cell.precision],
        "max_num_batched_tokens": plan.batched_tokens,
        "kv_cache_memory_bytes": plan.cache_bytes,
        "gpu_memory_utilization": _fraction(policy, cell, plan),
        "enable_prefix_caching": True,
        "async_scheduling": False,  # tokens are chosen here, so each step waits for the last
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # not the model's own: a repetition penalty among it
        "logits_processors": [Inversion],
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def _fraction(policy: Policy, cell: Cell, plan: EnginePlan) -> float:
    """Of the memory, what must be free at the start, or vLLM refuses; it bounds nothing later."""
    if policy.model.device.type == "cpu":
        return 0.01
    weights = sum(p.numel() for p in policy.model.parameters()) * SIZES[cell.precision]
    total = torch.cuda.get_device_properties(0).total_memory
    return min(0.95, (weights + plan.cache_bytes) / total)


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """vLLM's settings; and after its start what it left behind is taken away."""
    before = {name: os.environ.get(name) for name in LAUNCHED}
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch about vLLM
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
