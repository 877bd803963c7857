"""vLLM in the trainer's process, through TRL's colocate mode, on weights pushed before every call.

TRL starts it and pushes weights (gathering shards); ours are merged adapters, the settings of the
engine, which TRL takes from the training batch, the sampling (`vllm_sampling.py`) and a proof at
the start that pushed weights arrive. A call holds all prompts of a round, or a whole test set; vLLM
runs as many at once as fit. One engine is kept for the next cell of equal needs.

Left out: sleep mode, which gives memory back between calls and more than once served the initial
weights (trl#5312, vllm#29341): it is never on. More than one GPU to an engine.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator

from grids.cell import Cell
from grids.errors import InputError
from workers import adapters, engine_check, memory, vllm_fixes
from workers.engine import Response
from workers.engine_check import EngineError
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
TOLD = 400  # letters of an error that a message shows
# What TRL sets for vLLM, and accelerate would take for a run of many processes.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The proof at the start moves some trained weights by SHIFT, and back: log-probabilities of tokens
# that the numbers PROBES pick must move, and come back to within the share RETURN of the way.
SHIFT, RETURN = 1.5, 0.1
PROBES, PROBE_TOKENS = (0.05, 0.5, 0.95, 0.999), 6
NO_KIND = {"weight", "bias", "default", "lora_A", "lora_B"}  # of the parts of a weight's name


def _is_news(record: logging.LogRecord) -> bool:
    """transformers wonders at every trainer about the process group that vLLM has made."""
    return "process group is initialized" not in record.getMessage()


logging.getLogger("transformers.training_args").addFilter(_is_news)


class VllmEngine:
    """Generates with a copy of the policy's weights, made anew before every call.

    Args:
        policy: whose weights are served, until `serve` exchanges it.
        cell: whose model, lengths, precision and width count.

    Raises `EngineError` where the engine cannot start, or does not follow the weights.
    """

    policy: Policy

    def __init__(self, policy: Policy, cell: Cell) -> None:
        self.is_dead = False
        engine_check.check(on_gpu=policy.model.device.type != "cpu")
        _import()
        with self._deadly(f"at its start ({_told(_plan(cell))})"):
            with (
                _environment(), memory.starting(), engine_check.room(cell, _plan(cell)),
                vllm_fixes.apart(policy.model),
            ):  # fmt: skip
                vllm_fixes.prepare()
                self._colocated = _colocated(policy, cell, Accelerator())
            self.serve(policy)
            self._prove()
        gc.unfreeze()  # vLLM has frozen all there is, the policy too, which would never be freed

    def serve(self, policy: Policy) -> None:
        """From now on answer with this policy, of the same model.

        The last one's keys and values are wiped out: where they were not finite, as of a policy
        that broke down, the unused places of a block would make later answers so too.
        """
        self.policy = policy
        self._colocated.model, self._colocated.processing_class = policy.model, policy.tokenizer
        worker = self._colocated.llm.llm_engine.model_executor.driver_worker
        for keys_and_values in worker.model_runner.kv_caches:
            keys_and_values.zero_()

    def rest(self) -> None:
        """Hold no policy until the next is to be served."""
        self._colocated.model = None
        self.__dict__.pop("policy", None)

    def close(self) -> None:
        """Give back what the engine holds; it is of no more use."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.is_dead = True
        self.rest()
        del self._colocated
        cleanup_dist_env_and_memory()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        uniforms_R_T: np.ndarray | None = None,
        temperature: float = 1.0,
    ) -> list[Response]:
        """See `Engine.generate`; all prompts are one call.

        Raises `EngineError` where the engine died; it is of no more use then.
        """
        if not prompts:
            return []
        with self._deadly(f"while it answered {len(prompts)} prompts"):
            self._push()
            return self._answers(prompts, max_tokens, uniforms_R_T, temperature)

    @contextlib.contextmanager
    def _deadly(self, when: str) -> Iterator[None]:
        """Within it any error is the engine's death."""
        try:
            yield
        except BaseException as error:
            self.is_dead = True  # after Ctrl-C too: it may still hold requests
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            told = " ".join(str(error).split())[:TOLD]
            raise EngineError(
                f"the vLLM engine died {when}: {type(error).__name__}: {told}"
            ) from error

    def _push(self) -> None:
        """The policy's weights into the engine, and what was computed with others out of it."""
        with torch.no_grad():
            self._colocated.sync_weights()

    def _answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, uniforms_R_T: np.ndarray | None,
        temperature: float,
    ) -> list[Response]:  # fmt: skip
        from vllm import SamplingParams

        from workers.vllm_sampling import ROW, Draw, Inversion

        draw = None if uniforms_R_T is None else Draw(uniforms_R_T, temperature)
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        params = [
            SamplingParams(
                temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False,
                stop_token_ids=list(self.policy.stop_ids), extra_args={ROW: row},
            )
            for row in range(len(prompts))
        ]  # fmt: skip
        Inversion.draw = draw
        try:
            made = self._colocated.llm.generate(asked, params, use_tqdm=False)
        finally:
            Inversion.draw = None
        ids = [list(answer.outputs[0].token_ids) for answer in made]
        log_p_R_T = None if draw is None else draw.log_p_R_T()
        return [
            Response(
                row, row[-1] not in self.policy.stop_ids,
                None if log_p_R_T is None else log_p_R_T[i, : len(row)].clone(),
            )
            for i, row in enumerate(ids)
        ]  # fmt: skip

    def _prove(self) -> None:
        """Raise `EngineError` where other weights do not give other log-probabilities, or the old
        weights not the old ones: an engine that is not served what is trained must not start."""
        before_P = self._probe()
        for name, weights in self._one_of_each_kind().items():
            kept = weights.clone()
            weights.mul_(SHIFT).add_(SHIFT / 10)  # of adapters it is zero, and one for all
            try:
                moved = (self._probe() - before_P).abs().max()
            finally:
                weights.copy_(kept)
            back = (self._probe() - before_P).abs().max()
            if not moved > 0 or back > moved * RETURN:
                raise EngineError(
                    f"the vLLM engine does not follow the weights that are pushed to it ({name}): "
                    "training with it would be wrong; take `engine: transformers`, or the "
                    "versions of vLLM and TRL that constraints.txt names"
                )

    def _one_of_each_kind(self) -> dict[str, torch.Tensor]:
        """Trained weights by name: the first of every kind of layer; of adapters their outer part,
        which is zero, as without it the other does nothing."""
        trained = {n: p for n, p in self.policy.model.named_parameters() if p.requires_grad}
        outer = {n: p for n, p in trained.items() if "lora_B" in n}
        kinds: dict[str, str] = {}
        for name in outer or trained:
            kind = [part for part in name.split(".") if part not in NO_KIND][-1]
            kinds.setdefault(kind, name)
        return {name: trained[name].data for name in kinds.values()}

    def _probe(self) -> torch.Tensor:
        """Log-probabilities under the weights as they are: of likely and unlikely tokens after a
        prompt of several, so that attention counts."""
        self._push()
        vocabulary = self.policy.model.config.vocab_size
        prompt = [(self.policy.stop_ids[0] + 37 * i) % vocabulary for i in range(PROBE_TOKENS)]
        made = self._answers([prompt] * len(PROBES), 1, np.array(PROBES)[:, None], 1.0)
        return torch.cat([answer.log_p_T for answer in made if answer.log_p_T is not None])


def _import() -> None:
    """vLLM, with its settings; raises `InputError` where it is broken."""
    os.environ.update(REQUIRED | {k: v for k, v in SETTINGS.items() if k not in os.environ})
    try:
        import vllm  # noqa: F401
    except Exception as error:
        told = " ".join(str(error).split())[:TOLD]
        raise InputError(
            f"engine: vllm: vLLM is installed but cannot be imported ({type(error).__name__}: "
            f"{told}); {engine_check.FIX}"
        ) from error


def _colocated(policy: Policy, cell: Cell, accelerator: Any) -> Any:
    """TRL's engine, with the settings that the work asks for in place of those that TRL chooses."""
    from trl.generation import vllm_generation
    from vllm import LLM

    plan = _plan(cell)
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
    return cell.precision, longest(cell), _plan(cell)


def _plan(cell: Cell) -> EnginePlan:
    return engine_plan(cell, on_gpu=torch.cuda.is_available())


def _told(plan: EnginePlan) -> str:
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
def _environment() -> Iterator[None]:
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
