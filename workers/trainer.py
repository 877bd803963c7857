"""BanditTrainer: what a round of TRL's GRPOTrainer trains on, one rollout a query allowed.

Ours, each through a documented seam and by editing what `super()` returns:

- sampling (`rollout_func`), so that a rollout depends on its own random numbers alone;
- the rows of each update (`_generate_and_score_completions`): advantages by the cell's estimator
  over fresh and replayed rewards, replayed rows in train mode, no rows without a gradient.

Left out: how an update is computed (`pass_trainer.py`), evaluation, checkpoints and the journal
(`run.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from grids import outcome
from grids.cell import Cell
from workers import ranks
from workers.advantages import Context
from workers.data import Question
from workers.engine import Engine, Response
from workers.groups import Groups, RunningBaselines
from workers.models import Policy
from workers.pass_trainer import TRLS_LOSS, PassTrainer
from workers.passes import Row, token_weights
from workers.plugins import function
from workers.replay import ReplayBuffer, Rollout
from workers.round import Round, second_moments
from workers.sampling import numbered, prompt_stream, uniforms
from workers.scoring import Scored, score
from workers.settings import trainer_settings
from workers.trl_alone import GRPOTrainer

# Rollouts by which the engine is held against the trainer in a round that makes no pass.
COMPARED = 2


class BanditTrainer(PassTrainer):
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
        engine: Engine,
        train: Sequence[Question],
        start: int,
        output_dir: str,
    ) -> None:
        self.cell, self.engine, self.questions = cell, engine, train
        replays = cell.replay_mode == "train"
        self.replay = ReplayBuffer(cell.replay, cell.replay_max_age, tokens=replays)
        self.baselines = RunningBaselines(cell.ema_decay if cell.advantage == "ema" else None)
        self.round = Round(start, cell)
        super().__init__(
            cell,
            policy,
            args=trainer_settings(cell, start, output_dir),
            reward_funcs=self._reward,
            train_dataset=self._prompts(start),
            rollout_func=self._rollout,
        )

    def _prompts(self, start: int) -> Dataset:
        """The rest of the prompt stream, by index; the questions' text is looked up, not stored."""
        cell = self.cell
        count = (cell.rounds - start) * cell.batch
        revision = cell.dataset_spec.revision
        stream = prompt_stream(revision, cell.seed, len(self.questions), start * cell.batch, count)
        # datasets makes a fingerprint of all that the transform holds: the texts, not the model.
        looked_up = partial(_with_text, [question.text for question in self.questions])
        return Dataset.from_dict({"question": stream}).with_transform(looked_up)

    def memory(self) -> dict[str, Any]:
        """What later rounds need of earlier ones beside the weights, for a checkpoint."""
        return {"replay": self.replay.state(), "baselines": self.baselines.state()}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take a checkpoint's memory in place of one's own."""
        self.replay.load(memory["replay"])
        self.baselines.load(memory["baselines"])

    # ---- rollouts

    def _rollout(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`: responses to the questions of `self._asked`."""
        with self.round.timed("generate"):
            self._responses = self._drawn("train", self.round.number, self._asked)
        prompt_ids = [list(q.prompt_ids) for q in self._asked]
        completions = [response.ids for response in self._responses]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    def _drawn(self, purpose: str, round: int, asked: Sequence[Question]) -> list[Response]:
        cell = self.cell
        names = numbered([q.id for q in asked])
        numbers = uniforms(cell.seed, purpose, round, names, cell.max_response)
        prompts = [q.prompt_ids for q in asked]
        return self.engine.generate(prompts, cell.max_response, numbers, cell.temperature)

    def _reward(self, completions: list[str], **_: Any) -> list[float]:
        """TRL's reward function. What TRL makes of rewards is not read, so an unscored answer gets
        a number here, of which TRL would otherwise complain; ours stays NaN."""
        asked, cell, round = self._asked, self.cell, self.round.number
        self._scored: Scored = ranks.told(lambda: score(completions, asked, cell, round))
        return [0.0 if math.isnan(reward) else reward for reward in self._scored.rewards]

    def fill_replay(self) -> dict[str, float]:
        """Fill replay with rollouts of the policy as it is, which must be the base, for every
        train question; returns what that cost, as metrics of round 0."""
        cell, tokens, count = self.cell, 0, max(1, 4096 // self.cell.replay)
        for start in range(0, len(self.questions), count):
            part = self.questions[start : start + count]
            asked = [question for question in part for _ in range(cell.replay)]
            responses = self._drawn("replay fill", 0, asked)
            texts = self.policy.tokenizer.batch_decode(
                [response.ids for response in responses], skip_special_tokens=True
            )
            scored = ranks.told(partial(score, texts, asked, cell, 0))
            rollouts = self._fresh(0, asked, responses, scored)
            self.replay.add(rollouts)
            tokens += sum(rollout.length for rollout in rollouts)
        return {outcome.GENERATED_TOKENS: float(tokens)}

    def _fresh(
        self, round: int, asked: Sequence[Question], responses: Sequence[Response], scored: Scored
    ) -> list[Rollout]:
        """Responses as rollouts; in train mode with their log-probabilities, for later rounds."""
        ids = [torch.tensor(response.ids) for response in responses]
        rows = [Row(q.prompt_ids, ids_T) for q, ids_T in zip(asked, ids, strict=True)]
        none: list[Tensor | None] = [None] * len(rows)
        kept = self.replay.tokens
        log_p = self._log_probabilities(self.model, rows, "behaviour") if kept else none
        with_ref = kept and self.ref_model is not None
        log_ref = self._log_probabilities(self.ref_model, rows, "reference") if with_ref else none
        return [
            Rollout(q.id, round, reward, len(ids_T), ids_T, p, ref, response.log_p_T)
            for q, reward, ids_T, p, ref, response in zip(
                asked, scored.rewards, ids, log_p, log_ref, responses, strict=True
            )
        ]

    # ---- what a round trains on

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        cell = self.cell
        self.round = Round(self.round.number + 1, cell)
        self._metrics["train"].clear()
        self._asked = [self.questions[row["question"]] for row in inputs]
        super()._generate_and_score_completions(inputs)
        fresh = self._fresh(self.round.number, self._asked, self._responses, self._scored)
        groups = Groups.of(fresh, self.replay, self.round.number, cell)
        advantages_P_G = self._advantages(groups)
        updates = self._update_rows(groups, advantages_P_G)
        self.updates = iter(updates)
        self.round.note_rollouts(self._asked, self._responses, self._scored)
        self.round.note_groups(groups, advantages_P_G)
        if self.round.evaluated:
            self._look_closer(groups)
        if not any(updates):
            self._compare_engine()
        self.replay.add(fresh)
        self.baselines.add(groups, cell.rollouts)
        # TRL shuffles and hands out as many parts as there are updates: ours are taken in order.
        return {"update": torch.arange(cell.updates_per_round)}

    def _advantages(self, groups: Groups) -> Tensor:
        """Advantages of shape (P, n + m), 0 where a group has no sample or an unscored one."""
        context = Context(
            singleton=self.cell.singleton,
            fresh_P_G=groups.fresh_P_G,
            ages_P_G=groups.ages_P_G,
            lengths_P_G=groups.lengths_P_G,
            questions_P=groups.questions_P,
            history_P=self.baselines.of(groups),
        )
        estimator = function(self.cell, "ADVANTAGES", self.cell.advantage)
        return estimator(groups.rewards_P_G, groups.mask_P_G, context=context)

    def _update_rows(self, groups: Groups, advantages_P_G: Tensor) -> list[list[Row]]:
        """The rows of each update: whole groups, a query's fresh rollouts before its replayed."""
        cell, made = self.cell, []
        prompts = [q.prompt_ids for q in self._asked[:: cell.rollouts]]
        advantages = advantages_P_G.tolist()
        per_update = cell.batch // cell.updates_per_round
        for start in range(0, cell.batch, per_update):
            members = groups.members(range(start, start + per_update))
            weights = token_weights([member.rollout.length for member in members], cell)
            rows = [
                Row(
                    prompts[p], ids_T, advantages[p][g], weights_T,
                    rollout.log_p_T, rollout.log_ref_T, rollout.log_engine_T, g >= cell.rollouts,
                )
                for (p, g, rollout, ids_T), weights_T in zip(members, weights, strict=True)
            ]  # fmt: skip
            made.append(self._completed([row for row in rows if self._counts(row)], start > 0))
        return made

    def _counts(self, row: Row) -> bool:
        """Whether a row has any gradient; without, it takes no pass, but keeps its place in the
        denominators. What a plug-in's loss makes of an advantage of zero is not known."""
        kl_everywhere = self.cell.kl > 0 and not self.cell.kl_on_signal_only
        return kl_everywhere or row.advantage != 0.0 or self.cell.loss != TRLS_LOSS

    def _compare_engine(self) -> None:
        """Of a round in which no row takes a pass: hold the log-probabilities of the engine that
        drew against the trainer's, over a few rollouts."""
        drawn = list(zip(self._asked, self._responses, strict=True))[:COMPARED]
        log_engine = [response.log_p_T for _, response in drawn if response.log_p_T is not None]
        if log_engine:
            rows = [Row(q.prompt_ids, torch.tensor(response.ids)) for q, response in drawn]
            log_p_M = torch.cat(self._log_probabilities(self.model, rows, "behaviour"))
            self.round.note_engine(log_p_M, torch.cat(log_engine), torch.ones_like(log_p_M))

    def _look_closer(self, groups: Groups) -> None:
        """What only evaluated rounds tell, under the policy that wrote: entropy, and what a group
        baseline does to the gradient."""
        rows = [
            Row(q.prompt_ids, torch.tensor(made.ids))
            for q, made in zip(self._asked, self._responses, strict=True)
        ]
        entropies_M = torch.cat(self._entropies(rows)).double()  # M tokens in all
        self.round.metrics[outcome.ENTROPY] = entropies_M.mean().item()
        n = self.cell.rollouts
        grouped = [rows[start : start + n] for start in range(0, len(rows), n)]
        with self.round.timed("look closer"):
            self.round.metrics |= second_moments(groups, grouped, self._score_norm)


def _with_text(texts: Sequence[str], rows: dict[str, list[int]]) -> dict[str, list[Any]]:
    """Rows of question numbers with the questions' texts."""
    return {**rows, "prompt": [texts[i] for i in rows["question"]]}
