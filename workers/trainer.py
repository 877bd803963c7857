"""BanditTrainer: TRL's GRPOTrainer with one rollout a query allowed, and our estimator hooked in.

What is TRL's stays TRL's: the training loop, log-probabilities, ratio, clip, KL and optimiser step.
Ours, each through a documented seam and by editing what `super()` returns:

- sampling (`rollout_func`), so that a rollout depends on its own random numbers alone;
- advantages (`_generate_and_score_completions`), from `ADVANTAGES` over fresh and replayed rewards;
- aggregation: the weights of `AGGREGATIONS` travel as TRL's `tool_mask`, which its `dapo` loss
  multiplies every token loss by, with a normaliser of one;
- row order: TRL shuffles rows before it splits them; verl does not, and micro-batches are part of
  the result, so the shuffle is undone beforehand.

Left out: evaluation, checkpoints and the journal (`run.py`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOTrainer

from grids import outcome
from grids.cell import Cell
from workers.advantages import ADVANTAGES, Context
from workers.data import Question
from workers.engine import Response, TransformersEngine
from workers.grading import GRADERS, Grade
from workers.losses import AGGREGATIONS
from workers.models import Policy
from workers.replay import ReplayBuffer
from workers.rewards import REWARDS
from workers.sampling import generator, prompt_stream, uniforms
from workers.settings import trainer_settings


@dataclass
class Round:
    """What one round leaves for the journal."""

    number: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rollouts: list[dict[str, Any]] = field(default_factory=list)


class BanditTrainer(GRPOTrainer):
    """One cell's learning step.

    Args:
        cell: what to train.
        policy: the base model; it is trained in place.
        engine: what generates with the policy.
        train: the usable train questions.
        start: rounds already done, which are not repeated.
        output_dir: a folder that TRL may want; nothing of use is written there.
    """

    def __init__(
        self,
        cell: Cell,
        policy: Policy,
        engine: TransformersEngine,
        train: Sequence[Question],
        start: int,
        output_dir: str,
    ) -> None:
        self.cell, self.policy, self.engine, self.questions = cell, policy, engine, train
        self.replay = ReplayBuffer(cell.replay, cell.replay_max_age)
        self.round = Round(start)
        # TRL loads the reference from the path that the model's config names: the base.
        policy.model.config._name_or_path = str(policy.folder)
        super().__init__(
            model=policy.model,
            args=trainer_settings(cell, start, output_dir),
            reward_funcs=self._reward,
            train_dataset=self._prompts(start),
            processing_class=policy.tokenizer,
            rollout_func=self._rollout,
        )

    def _prompts(self, start: int) -> Dataset:
        """The rest of the prompt stream, by index; the questions' text is looked up, not stored."""
        cell = self.cell
        count = (cell.rounds - start) * cell.batch
        revision = cell.dataset_spec.revision
        stream = prompt_stream(revision, cell.seed, len(self.questions), start * cell.batch, count)

        def looked_up(rows: dict[str, list[int]]) -> dict[str, list[Any]]:
            return {**rows, "prompt": [self.questions[i].text for i in rows["question"]]}

        return Dataset.from_dict({"question": stream}).with_transform(looked_up)

    # ---- generation

    def _rollout(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`: responses to the questions of `self._rows`."""
        cell, began = self.cell, time.perf_counter()
        asked = [self.questions[i] for i in self._rows]
        names = _samples([q.id for q in asked])
        numbers = uniforms(cell.seed, "train", self.round.number, names, cell.max_response)
        prompt_ids = [list(q.prompt_ids) for q in asked]
        self._responses: list[Response] = self.engine.generate(
            prompt_ids, cell.max_response, numbers, cell.temperature
        )
        self.round.seconds["generate"] += time.perf_counter() - began
        completions = [response.ids for response in self._responses]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    def _reward(self, completions: list[str], question: list[int], **_: Any) -> list[float]:
        """TRL's reward function: grades, kept for the journal, and their rewards."""
        grader, reward = GRADERS[self.cell.grader], REWARDS[self.cell.reward]
        golds = [self.questions[i].gold for i in question]
        self._grades: list[Grade] = [grader(c, g) for c, g in zip(completions, golds, strict=True)]
        self._texts = completions
        return [reward(grade) for grade in self._grades]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards_N_F: Tensor = super()._calculate_rewards(*args, **kwargs)
        self._rewards_N = rewards_N_F[:, 0]
        return rewards_N_F

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.round = Round(self.round.number + 1)
        self._metrics["train"].clear()
        self._rows = [row["question"] for row in inputs]
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rewards_P_n = self._rewards_N.view(-1, self.cell.rollouts)
        batch["advantages"] = self._advantages(rewards_P_n).reshape(-1)
        batch["tool_mask"] = self._token_weights(batch["completion_mask"].float())
        batch["num_items_in_batch"] = torch.tensor(float(self.cell.updates_per_round))
        self._note_rollouts(rewards_P_n, batch["advantages"])
        return _unshuffled(batch, self.cell.seed, self.round.number)

    # ---- advantages and weights

    def _advantages(self, rewards_P_n: Tensor) -> Tensor:
        """Advantages of the fresh rollouts, shape (P, n), from groups that replay has joined."""
        cell = self.cell
        rewards_P_G, mask_P_G, ages_P_G = self._groups(rewards_P_n)
        context = Context(cell.singleton, fresh_P_G=ages_P_G == 0, ages_P_G=ages_P_G)
        advantages_P_G = ADVANTAGES[cell.advantage](rewards_P_G, mask_P_G, context=context)
        self._note_groups(rewards_P_n, mask_P_G)
        for i, rewards in zip(self._queries(), rewards_P_n.tolist(), strict=True):
            self.replay.add(self.questions[i].id, self.round.number, rewards)
        return advantages_P_G[:, : cell.rollouts]

    def _groups(self, rewards_P_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards, mask and ages of shape (P, n + m): fresh columns first, then replayed."""
        count = len(rewards_P_n)
        replayed_P_m = rewards_P_n.new_zeros(count, self.cell.replay)
        ages_P_m = torch.zeros(count, self.cell.replay, dtype=torch.long)
        for row, i in enumerate(self._queries()):
            past = self.replay.recent(self.questions[i].id, self.round.number)
            for column, sample in enumerate(past):
                replayed_P_m[row, column] = sample.reward
                ages_P_m[row, column] = self.round.number - sample.round
        ages_P_m = ages_P_m.to(rewards_P_n.device)
        fresh_P_n = torch.zeros_like(rewards_P_n, dtype=torch.long)
        ages_P_G = torch.cat([fresh_P_n, ages_P_m], dim=1)
        mask_P_G = torch.cat([fresh_P_n == 0, ages_P_m > 0], dim=1)
        return torch.cat([rewards_P_n, replayed_P_m], dim=1), mask_P_G, ages_P_G

    def _queries(self) -> list[int]:
        """Index of each query of the round; its n rollouts are neighbours."""
        return self._rows[:: self.cell.rollouts]

    def _token_weights(self, mask_N_T: Tensor) -> Tensor:
        """Weights of token losses, update by update, so that each update's loss is their sum."""
        cell = self.cell
        aggregate = AGGREGATIONS[cell.aggregation]
        updates = mask_N_T.split(cell.rows_per_update)
        return torch.cat([aggregate(u, cell.micro_batch, cell.max_response) for u in updates])

    # ---- the update: TRL's, on passes trimmed to their own length

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        began = time.perf_counter()
        loss: Tensor = super()._compute_loss(model, _trimmed(inputs))
        self._sum(outcome.LOSS, loss.detach().item())
        if "kl" in (metrics := self._metrics["train"]):
            self._sum(outcome.KL, metrics["kl"][-1])
        self.round.seconds["forward"] += time.perf_counter() - began
        return loss

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        made = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if not torch.is_grad_enabled():
            self.round.seconds["reference"] += time.perf_counter() - began
        return made

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            largest = np.maximum(float(norm), self.round.metrics.get(outcome.GRAD_NORM, 0.0))
            self.round.metrics[outcome.GRAD_NORM] = float(largest)  # NaN stays NaN
        return norm

    def _sum(self, name: str, value: float) -> None:
        """A round's number as the loss weighs it: the sum over passes, the mean over updates."""
        share = value / self.cell.updates_per_round
        self.round.metrics[name] = self.round.metrics.get(name, 0.0) + share

    # ---- what the journal gets

    def _note_rollouts(self, rewards_P_n: Tensor, advantages_N: Tensor) -> None:
        tokens = [len(response.ids) for response in self._responses]
        rows = len(tokens)
        self.round.metrics |= {
            outcome.REWARD: rewards_P_n.mean().item(),
            outcome.REWARD_SD: rewards_P_n.std().item(),
            outcome.ADVANTAGE_MEAN: advantages_N.mean().item(),
            outcome.PARSED: sum(grade.parsed for grade in self._grades) / rows,
            outcome.TRUNCATED: sum(response.truncated for response in self._responses) / rows,
            outcome.RESPONSE_TOKENS: sum(tokens) / rows,
            outcome.GENERATED_TOKENS: float(sum(tokens)),
            outcome.UPDATES: float(self.cell.updates_per_round),
        }
        first = self.questions[self._rows[0]]
        self.round.rollouts = [
            {"question": first.text, "gold": first.gold, "completion": self._texts[0]}
            | {"reward": rewards_P_n.flatten()[0].item()}
        ]

    def _note_groups(self, rewards_P_n: Tensor, mask_P_G: Tensor) -> None:
        wrong, right = (rewards_P_n == 0).all(1), (rewards_P_n == 1).all(1)
        sizes = mask_P_G.sum(1).float()
        self.round.metrics |= {
            outcome.GROUPS_ALL_WRONG: wrong.float().mean().item(),
            outcome.GROUPS_ALL_RIGHT: right.float().mean().item(),
            outcome.GROUPS_MIXED: (~wrong & ~right).float().mean().item(),
            outcome.GROUP_SIZE: sizes.mean().item(),
            outcome.SINGLETONS: (sizes == 1).float().mean().item(),
        }


def _samples(questions: Sequence[str]) -> list[tuple[str, int]]:
    """(question, sample index) of each row; a question drawn twice in a round goes on counting."""
    counted: dict[str, int] = defaultdict(int)
    named = []
    for question in questions:
        named.append((question, counted[question]))
        counted[question] += 1
    return named


def _unshuffled(batch: dict[str, Any], seed: int, round: int) -> dict[str, Any]:
    """Rows ordered so that the `torch.randperm` which TRL draws next puts them back in order."""
    torch_seed = int(generator(seed, "row order", round).integers(2**62))
    rows = len(batch["advantages"])
    torch.manual_seed(torch_seed)
    inverse = torch.randperm(rows).argsort()
    torch.manual_seed(torch_seed)
    return {
        name: value[inverse] if isinstance(value, Tensor) and value.ndim else value
        for name, value in batch.items()
    }


def _trimmed(inputs: dict[str, Any]) -> dict[str, Any]:
    """A pass without the columns that are padding in all of its rows; the loss is the same."""
    prompt = int(inputs["prompt_mask"].any(0).int().argmax())
    response = int(inputs["completion_mask"].sum(1).max())
    cut = dict(inputs)
    for name in ("prompt_ids", "prompt_mask"):
        cut[name] = inputs[name][:, prompt:]
    per_token = ("completion_ids", "completion_mask", "tool_mask")
    for name in (*per_token, "ref_per_token_logps", "old_per_token_logps"):
        if inputs.get(name) is not None:
            cut[name] = inputs[name][:, :response]
    return cut
