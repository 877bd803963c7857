"""What a round trains on: rollouts, groups, replay, updates, and the hooks into TRL."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer

from grids.errors import InputError
from grids.paths import read_lines
from tests.trainers import build_trainer
from workers.engine import TransformersEngine
from workers.grading import GRADERS
from workers.models import load_policy
from workers.passes import Row
from workers.rewards import REWARDS
from workers.sampling import numbered
from workers.settings import OneRolloutConfig, trainer_settings
from workers.trainer import BanditTrainer


@pytest.fixture
def trainer_of(tiny, tmp_path) -> Callable[..., BanditTrainer]:
    return lambda **settings: build_trainer(tiny(**settings), tmp_path)


def spied(trainer: BanditTrainer) -> list[list[Row]]:
    """The rows of each update, as they are taken."""
    seen: list[list[Row]] = []
    kept = trainer._update_rows

    def spy(*args: Any) -> Any:
        updates = list(kept(*args))
        seen.extend(updates)
        return updates

    trainer._update_rows = spy
    return seen


def test_rows_per_pass_changes_memory_and_not_the_update(tiny, tmp_path):
    """The weights after two rounds, with all rows in one pass and with two rows in each."""
    from safetensors.torch import load_file

    from workers.run import run_cell

    made, norms = [], []
    for rows in (16, 2):
        cell = tiny(batch=16, rounds=2, micro_batch=4, rows_per_pass=rows, lr=1e-3)
        run_cell(cell, tmp_path / str(rows), lambda progress: None, tmp_path / "shared")
        line = read_lines(tmp_path / str(rows) / "journal.jsonl")[1]
        norms.append(line["update/grad_norm"])
        made.append(load_file(tmp_path / str(rows) / "checkpoint" / "000002" / "model.safetensors"))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)  # Adam would hide a constant factor
    for name, weights in made[0].items():
        torch.testing.assert_close(weights, made[1][name], atol=5e-5, rtol=1e-4)


def test_the_first_of_two_updates_is_that_of_half_the_batch(trainer_of):
    """Both see the same eight questions, rollouts and weights: so the same gradient."""
    norms: dict[int, list[float]] = {}
    for updates, batch in ((1, 8), (2, 16)):
        trainer = trainer_of(batch=batch, updates_per_round=updates, rounds=1, micro_batch=4)
        told = norms.setdefault(updates, [])
        kept = trainer._get_grad_norm

        def spy(model: Any, grad_norm: Any = None, kept: Any = kept, told: Any = told) -> Any:
            told.append(float(grad_norm))
            return kept(model, grad_norm=grad_norm)

        trainer._get_grad_norm = spy
        trainer.train()
    assert len(norms[1]) == 1 and len(norms[2]) == 2
    assert norms[2][0] == pytest.approx(norms[1][0], rel=1e-4)
    assert norms[2][1] != norms[2][0]


class PlainTRL(GRPOTrainer):
    """TRL's own trainer, only told its gradient norm."""

    norm = float("nan")

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self.norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        return self.norm


def trained_by_trl(ours: BanditTrainer, scratch: Any) -> PlainTRL:
    """The same round in a trainer that is TRL's own: it asks and grades as ours did."""
    half = copy.copy(ours)
    half.policy = load_policy(ours.cell)
    half.engine = TransformersEngine(half.policy, ours.cell)
    args = trainer_settings(ours.cell, 0, str(scratch))
    args.beta = ours.cell.kl
    plain = PlainTRL(
        model=half.policy.model,
        args=args,
        reward_funcs=half._reward,
        train_dataset=ours.train_dataset,
        processing_class=half.policy.tokenizer,
        rollout_func=half._rollout,
    )
    plain.train()
    return plain


def test_a_group_of_one_has_no_gradient_in_trl_and_the_raw_rewards_in_ours(trainer_of, tmp_path):
    ours = trainer_of(kl="off", rounds=1)
    ours.train()
    plain = trained_by_trl(ours, tmp_path)
    assert 0 < ours.round.metrics["train/reward"] < 1, "the round must hold right and wrong answers"
    assert ours.round.metrics["update/grad_norm"] > 0
    assert plain.norm == 0


def test_ours_and_plain_trl_agree_where_both_compute_the_same(trainer_of, tmp_path):
    """Groups centred but not scaled, tokens averaged over the batch: the same gradient norm."""
    settings = {"batch": 4, "rollouts": 4, "advantage": "mean_centered", "kl": 0.05}
    ours = trainer_of(**settings, aggregation="token_mean", rounds=1)
    ours.train()
    plain = trained_by_trl(ours, tmp_path)
    assert ours.round.metrics["update/grad_norm"] > 0
    assert ours.round.metrics["update/grad_norm"] == pytest.approx(plain.norm, rel=1e-4)


def test_a_config_for_one_rollout():
    config = OneRolloutConfig(
        output_dir="unused", num_generations=1, generation_batch_size=6,
        per_device_train_batch_size=3, use_cpu=True, bf16=False,
    )  # fmt: skip
    assert config.num_generations == 1 and config.steps_per_generation == 2


def test_verls_settings_under_trls_names(tiny):
    made = trainer_settings(tiny(lr=1e-6, micro_batch=4), 0, "unused")
    assert (made.beta, made.delta, made.epsilon, made.epsilon_high) == (0.0, 3.0, 0.2, 0.2)
    assert (made.learning_rate, made.weight_decay, made.adam_beta2) == (1e-6, 0.01, 0.999)
    assert made.lr_scheduler_type == "constant" and made.warmup_steps == 0
    assert made.max_grad_norm == 1.0 and made.temperature == 1.0
    assert not made.vllm_importance_sampling_correction and not made.mask_truncated_completions
    assert not made.use_bias_correction_kl and made.num_iterations == 1


def test_micro_batches_are_of_neighbours_in_the_order_asked(trainer_of):
    """verl's order: so a row's weight is one over its own micro-batch's tokens."""
    trainer = trainer_of(batch=8, micro_batch=2, rounds=1)
    seen = spied(trainer)
    trainer.train()
    (rows,) = seen
    assert [row.ids_T.tolist() for row in rows] == [r.ids for r in trainer._responses]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        expected = 1 / (len(first.ids_T) + len(second.ids_T)) / 4
        for weight in (*first.weights_T.tolist(), *second.weights_T.tolist()):
            assert weight == pytest.approx(expected)


def test_replayed_rewards_join_the_group_in_baseline_mode(trainer_of):
    """tiny-sums has 512 questions: with 256 a round, round 3 asks those of round 1 again."""
    trainer = trainer_of(batch=256, replay=2, advantage="grpo", rounds=3, replay_max_age=None)
    told: list[Tensor] = []
    kept = trainer._advantages
    trainer._advantages = lambda groups: told.append((groups, made := kept(groups))) or made
    seen = spied(trainer)
    trainer.train()
    assert [len(rows) for rows in seen] == [256] * 3, "fresh rollouts alone take gradient"
    groups, advantages_P_G = told[2]
    assert groups.mask_P_G.sum(1).tolist() == [2] * 256
    first = [(r.reward, r.round) for r in groups.rollouts_P[0]]
    assert [at for _, at in first] == [3, first[1][1]] and first[1][1] in (1, 2)
    rewards = np.array([reward for reward, _ in first])
    expected = (rewards[0] - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    assert advantages_P_G[0, 0].item() == pytest.approx(expected, abs=1e-6)
    metrics = trainer.round.metrics
    assert metrics["groups/effective_size"] == 2 and metrics["groups/singletons"] == 0
    assert 1 <= metrics["replay/age_mean"] <= metrics["replay/age_max"] == 2
    assert groups.rollouts_P[0][1].ids_T is None, "baseline mode keeps no tokens"


@pytest.mark.parametrize("updates", [1, 2])
def test_replayed_rollouts_take_gradient_in_train_mode(trainer_of, updates):
    trainer = trainer_of(
        batch=256, replay=1, advantage="rloo", rounds=3, replay_mode="train", lr=1e-3,
        updates_per_round=updates,
    )  # fmt: skip
    seen = spied(trainer)
    trainer.train()
    assert len(seen[0]) == 256 // updates, "nothing is there to replay yet"
    last = [row for rows in seen[-updates:] for row in rows]
    assert len(last) == 512 and sum(row.replayed for row in last) == 256
    assert all(row.log_old_T is not None and row.log_ref_T is not None for row in last)
    order = [row.replayed for row in last]
    assert order == [False, True] * 256, "a query's fresh rollouts, then its replayed"
    metrics = trainer.round.metrics
    assert metrics["replay/ratio_mean"] == pytest.approx(1, abs=0.3)
    assert metrics["replay/ratio_sd"] > 0.01, "the policy has moved since they were written"
    assert 0 < metrics["replay/clip_share"] < 1


def test_the_denominator_is_the_policy_that_wrote(trainer_of):
    """Round 1's rollouts, replayed in round 3, carry the base's log-probabilities."""
    trainer = trainer_of(
        batch=256, replay=1, advantage="rloo", rounds=3, replay_mode="train", lr=1e-3
    )
    seen = spied(trainer)
    trainer.train()
    base = build_trainer(trainer.cell, trainer.args.output_dir)
    first = {tuple(row.ids_T.tolist()): row for row in seen[0]}
    again = [row for row in seen[-1] if row.replayed and tuple(row.ids_T.tolist()) in first]
    assert len(again) > 50
    written = base._log_probabilities(base.model, again[:20], "behaviour")
    matching = [
        torch.allclose(row.log_old_T, log_p_T, atol=1e-4)
        for row, log_p_T in zip(again[:20], written, strict=True)
    ]
    # round 1 wrote as the base; some of these questions may have been asked in round 2 as well
    assert sum(matching) >= 5
    moved = trainer._log_probabilities(trainer.model, again[:20], "behaviour")
    assert not any(
        torch.allclose(row.log_old_T, log_p_T, atol=1e-4)
        for row, log_p_T in zip(again[:20], moved, strict=True)
    )


def test_a_limit_on_age(trainer_of):
    settings = {"batch": 256, "replay": 1, "advantage": "grpo", "rounds": 3}
    sizes = []
    for limit in (None, 1):
        trainer = trainer_of(**settings, replay_max_age=limit)
        trainer.train()
        sizes.append(trainer.round.metrics["groups/effective_size"])
    assert sizes[0] == 2 and 1 <= sizes[1] < 2


@pytest.mark.parametrize("mode", ["baseline", "train"])
def test_replay_filled_from_the_base(trainer_of, mode):
    trainer = trainer_of(replay=2, advantage="rloo", rounds=1, replay_mode=mode, replay_fill="base")
    cost = trainer.fill_replay()
    held = [trainer.replay.recent(q.id, 1) for q in trainer.questions]
    assert [len(rollouts) for rollouts in held] == [2] * 512
    assert cost["train/generated_tokens"] == sum(r.length for rollouts in held for r in rollouts)
    seen = spied(trainer)
    trainer.train()
    metrics = trainer.round.metrics
    assert metrics["groups/effective_size"] == 3 and metrics["replay/age_mean"] == 1
    if mode == "train":
        assert len(seen[0]) == 24
        assert metrics["replay/ratio_mean"] == pytest.approx(1, abs=1e-4), "the base wrote them"
        assert metrics["replay/clip_share"] == 0


def test_the_old_policy_is_asked_only_where_an_update_leaves_it(trainer_of):
    trainer = trainer_of(rounds=1)
    trainer.train()
    assert "behaviour" not in trainer.round.seconds
    trainer = trainer_of(rounds=1, updates_per_round=4, lr=1e-3)
    seen = spied(trainer)
    trainer.train()
    assert [rows[0].log_old_T is None for rows in seen] == [True, False, False, False]
    assert "behaviour" in trainer.round.seconds


def test_the_running_baseline_of_a_question(trainer_of):
    trainer = trainer_of(batch=256, rollouts=2, advantage="ema", ema_decay=0.75, rounds=4)
    told: list[Any] = []
    kept = trainer._advantages
    trainer._advantages = lambda groups: told.append((groups, made := kept(groups))) or made
    trainer.train()
    means: dict[str, float] = {}
    for groups, advantages_P_G in told:
        for p, question in enumerate(groups.questions_P):
            rewards = [r.reward for r in groups.rollouts_P[p]]
            baseline = means.get(question, sum(rewards) / 2)
            expected = [reward - baseline for reward in rewards]
            assert advantages_P_G[p].tolist() == pytest.approx(expected)
            old = means.get(question)
            mean = sum(rewards) / 2
            means[question] = mean if old is None else 0.75 * old + 0.25 * mean
    assert trainer.baselines.state() == pytest.approx(means)


def test_a_question_drawn_twice_in_a_round_gets_rollouts_of_its_own():
    assert numbered(["a", "b", "a", "a"]) == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]


def test_evaluated_rounds_tell_entropy_and_the_second_moments_of_the_gradient(trainer_of):
    trainer = trainer_of(batch=4, rollouts=4, advantage="grpo", rounds=2, eval={"every": 2})
    lines = []
    kept = trainer._generate_and_score_completions

    def spy(inputs: Any) -> Any:
        made = kept(inputs)
        lines.append(dict(trainer.round.metrics))
        return made

    trainer._generate_and_score_completions = spy
    trainer.train()
    closer = {"train/entropy", "gradient/second_moment_raw", "gradient/second_moment_group"}
    assert not closer & lines[0].keys()
    assert closer <= lines[1].keys()
    assert lines[1]["gradient/rollouts"] == 16
    assert all(lines[1][name] > 0 for name in closer)


# ---- graders and rewards that fail


def test_an_answer_whose_grader_fails_is_unscored_and_not_wrong(trainer_of, monkeypatch, caplog):
    strict = GRADERS["gsm8k"]
    calls = iter(range(10**6))

    def sometimes(completion: str, gold: str) -> Any:
        if next(calls) == 2:
            raise RuntimeError("out of paper")
        return strict(completion, gold)

    monkeypatch.setitem(GRADERS, "gsm8k", sometimes)
    trainer = trainer_of(rounds=1, kl="off", advantage="batch_mean", batch=8)
    told: list[Any] = []
    kept = trainer._advantages
    trainer._advantages = lambda groups: told.append((groups, made := kept(groups))) or made
    trainer.train()
    groups, advantages_P_G = told[0]
    assert "out of paper" in caplog.text
    assert groups.mask_P_G[:, 0].tolist() == [True, True, False] + [True] * 5
    assert advantages_P_G[2, 0] == 0
    assert trainer.round.metrics["train/unscored"] == 1 / 8
    scored = groups.rewards_P_G[groups.mask_P_G]
    assert trainer.round.metrics["train/reward"] == pytest.approx(scored.mean().item())


def test_a_grader_that_keeps_failing_stops_the_run(trainer_of, monkeypatch):
    def broken(completion: str, gold: str) -> Any:
        raise RuntimeError("out of paper")

    trainer = trainer_of(rounds=1)
    monkeypatch.setitem(GRADERS, "gsm8k", broken)
    with pytest.raises(InputError, match="grader 'gsm8k' failed on 8 of 8 answers .* max_unscored"):
        trainer.train()


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf")])
def test_a_reward_that_is_no_number_in_0_to_1_is_refused(trainer_of, monkeypatch, value):
    trainer = trainer_of(rounds=1)
    monkeypatch.setitem(REWARDS, "correct", lambda grade, context: value)
    with pytest.raises(InputError, match=r"reward 'correct' gave .* a number in \[0, 1\]"):
        trainer.train()
