"""vLLM in the trainer's process, through TRL's colocate mode, on weights pushed before every call.

A call holds all prompts of a round, or whole test sets; vLLM runs as many at once as fit. At its
start an engine proves that pushed weights arrive. Left out: how it is started (`vllm_start.py`),
the choice of tokens (`vllm_sampling.py`), who keeps it for the next cell (`warm.py`), and sleep
mode, which gives memory back between calls and more than once served the initial weights (trl#5312,
vllm#29341): it is never on.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from grids.cell import Cell
from workers import engine_check, memory, vllm_fixes, vllm_start
from workers.engine import Response
from workers.engine_check import EngineError
from workers.models import Policy

# The proof at the start moves some trained weights by SHIFT, and back: log-probabilities of tokens
# that the numbers PROBES pick must move, and come back to within the share RETURN of the way.
SHIFT, RETURN = 1.5, 0.1
PROBES, PROBE_TOKENS = (0.05, 0.5, 0.95, 0.999), 6
NO_KIND = {"weight", "bias", "default", "lora_A", "lora_B"}  # of the parts of a weight's name


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
        vllm_start.imported()
        plan = vllm_start.plan_of(cell)
        with self._deadly(f"at its start ({vllm_start.told(plan)})"):
            with (
                vllm_start.environment(), memory.starting(), engine_check.room(cell, plan),
                vllm_fixes.apart(policy.model),
            ):  # fmt: skip
                vllm_fixes.prepare()
                self._colocated = vllm_start.colocated(policy, cell, Accelerator())
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
            raise EngineError(
                f"the vLLM engine died {when}: {type(error).__name__}: {vllm_start.short(error)}"
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
