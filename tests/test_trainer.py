"""The learning step against formulas written apart in float64, and the hooks into TRL."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer

from grids.paths import read_lines
from workers.data import load_questions, prepare
from workers.engine import TransformersEngine
from workers.models import load_policy
from workers.settings import OneRolloutConfig, rows_per_pass, trainer_settings
from workers.trainer import BanditTrainer

PROMPT, RESPONSE = 5, 7


@pytest.fixture
def trainer_of(tiny, tmp_path) -> Callable[..., BanditTrainer]:
    def build(**settings: Any) -> BanditTrainer:
        cell = tiny(**settings)
        policy = load_policy(cell)
        questions = prepare(load_questions(cell.dataset_spec), cell, policy.tokenizer)
        engine = TransformersEngine(policy, cell)
        return BanditTrainer(cell, policy, engine, questions.train, 0, str(tmp_path))

    return build


def hand_made(trainer: BanditTrainer, advantages: list[float], off_policy: bool) -> dict[str, Any]:
    """A micro-batch with ragged prompts and responses, as TRL's loss takes it."""
    rows = len(advantages)
    generator = torch.Generator().manual_seed(1)
    vocabulary = trainer.policy.model.config.vocab_size
    lengths = torch.tensor([RESPONSE, 3, 1, 5][:rows])
    prompts = torch.tensor([PROMPT, 2, 4, 3][:rows])
    completion_mask = (torch.arange(RESPONSE) < lengths[:, None]).long()
    batch: dict[str, Any] = {
        "prompt_ids": torch.randint(4, vocabulary, (rows, PROMPT), generator=generator),
        "prompt_mask": (torch.arange(PROMPT) >= PROMPT - prompts[:, None]).long(),
        "completion_ids": torch.randint(4, vocabulary, (rows, RESPONSE), generator=generator),
        "completion_mask": completion_mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(1.0),
        "tool_mask": trainer._token_weights(completion_mask.float()),
    }
    if off_policy:
        noise = torch.randn(rows, RESPONSE, generator=generator)
        batch["old_per_token_logps"] = (
            log_probabilities(trainer.policy.model, batch).float().detach()
        )
        batch["old_per_token_logps"] += noise
    return batch


def log_probabilities(model: Any, batch: dict[str, Any]) -> Tensor:
    """log p of each response token, shape (N, T), from plain logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits_N_L_V = model(input_ids=ids, attention_mask=mask).logits
    log_p_N_L_V = logits_N_L_V.log_softmax(-1)[:, -RESPONSE - 1 : -1]
    return log_p_N_L_V.gather(2, batch["completion_ids"][:, :, None])[:, :, 0]


def reference_loss(model: Any, base: Any, batch: dict[str, Any], cell: Any) -> Tensor:
    """verl's policy loss and k3 KL, token mean per micro-batch, written from the formulas."""
    log_p = log_probabilities(model, batch)
    old = batch.get("old_per_token_logps", log_p.detach())
    total, parts = torch.zeros((), dtype=torch.float64), 0
    for start in range(0, len(log_p), cell.micro_batch):
        numerator, tokens = torch.zeros((), dtype=torch.float64), 0
        for i in range(start, min(start + cell.micro_batch, len(log_p))):
            advantage = batch["advantages"][i].double()
            for t in range(int(batch["completion_mask"][i].sum())):
                ratio = (log_p[i, t] - old[i, t].double()).exp()
                clipped = ratio.clamp(1 - cell.clip, 1 + cell.clip)
                loss = torch.max(-advantage * ratio, -advantage * clipped)
                if advantage < 0:
                    loss = torch.min(loss, -advantage * cell.dual_clip)
                if cell.kl:
                    with torch.no_grad():
                        log_ref = base[i, t]
                    gap = log_ref - log_p[i, t]
                    loss = loss + cell.kl * (gap.exp() - gap - 1)
                numerator, tokens = numerator + loss, tokens + 1
        total, parts = total + numerator / tokens, parts + 1
    return total / parts


CASES = [
    (advantages, kl, off_policy, micro_batch)
    for advantages in ([1.0, 0.0, 1.0, 0.0], [0.5, -1.5, 0.5, 0.5])
    for kl in (0.0, 0.3)
    for off_policy in (False, True)
    for micro_batch in (2, 3, 4)
]


@pytest.mark.parametrize(("advantages", "kl", "off_policy", "micro_batch"), CASES)
def test_loss_and_gradient_equal_a_float64_computation(
    trainer_of, advantages, kl, off_policy, micro_batch
):
    trainer = trainer_of(batch=4, kl=kl, micro_batch=micro_batch)
    model = trainer.policy.model
    with torch.no_grad():  # away from the reference, so that the KL and its gradient are not zero
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(2)
            )
    batch = hand_made(trainer, advantages, off_policy)
    twin = copy.deepcopy(model)
    twin.__dict__.pop("forward", None)
    twin = twin.double()
    base = None
    if kl:
        base = log_probabilities(trainer.ref_model, batch).double().detach()
        batch["ref_per_token_logps"] = base.float()
    model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    loss = trainer._compute_loss(model, batch)
    loss.backward()
    expected = reference_loss(twin, base, batch, trainer.cell)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-5, abs=1e-6)
    ours = torch.cat([p.grad.flatten().double() for p in model.parameters()])
    theirs = torch.cat([p.grad.flatten() for p in twin.parameters()])
    assert theirs.norm() > 0
    assert (ours - theirs).norm() / theirs.norm() < 1e-4


def test_rows_per_pass_changes_memory_and_not_the_update(tiny, tmp_path):
    """The weights after two rounds, with all rows in one pass and with two rows in each."""
    from workers.run import run_cell

    made, norms = [], []
    for rows in (16, 2):
        cell = tiny(batch=16, rounds=2, micro_batch=4, rows_per_pass=rows, lr=1e-3)
        run_cell(cell, tmp_path / str(rows), lambda progress: None, tmp_path / "shared")
        from safetensors.torch import load_file

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


def test_a_group_of_one_has_no_gradient_in_trl_and_the_raw_rewards_in_ours(
    trainer_of, tiny, tmp_path
):
    ours = trainer_of(kl=0.0, rounds=1)
    ours.train()
    cell = ours.cell
    policy = load_policy(cell)
    half = copy.copy(ours)
    half.policy, half.engine = policy, TransformersEngine(policy, cell)
    half._rows = [int(i) for i in ours._rows]
    plain = PlainTRL(
        model=policy.model,
        args=trainer_settings(cell, 0, str(tmp_path)),
        reward_funcs=half._reward,
        train_dataset=ours.train_dataset,
        processing_class=policy.tokenizer,
        rollout_func=half._rollout,
    )
    plain.train()
    assert 0 < ours.round.metrics["train/reward"] < 1, "the round must hold right and wrong answers"
    assert ours.round.metrics["update/grad_norm"] > 0
    assert plain.norm == 0


def test_a_config_for_one_rollout():
    config = OneRolloutConfig(
        output_dir="unused", num_generations=1, generation_batch_size=6,
        per_device_train_batch_size=3, use_cpu=True, bf16=False,
    )  # fmt: skip
    assert config.num_generations == 1 and config.steps_per_generation == 2


def test_verls_settings_under_trls_names(tiny):
    made = trainer_settings(tiny(lr=1e-6, micro_batch=4), 0, "unused")
    assert (made.beta, made.delta, made.epsilon, made.epsilon_high) == (0.001, 3.0, 0.2, 0.2)
    assert (made.learning_rate, made.weight_decay, made.adam_beta2) == (1e-6, 0.01, 0.999)
    assert made.lr_scheduler_type == "constant" and made.warmup_steps == 0
    assert made.max_grad_norm == 1.0 and made.temperature == 1.0
    assert not made.vllm_importance_sampling_correction and not made.mask_truncated_completions
    assert not made.use_bias_correction_kl and made.num_iterations == 1


def test_rows_stay_in_order_so_that_micro_batches_are_verls(trainer_of):
    trainer = trainer_of(batch=8, rows_per_pass=8, rounds=1)
    seen: list[list[int]] = []
    kept = trainer._compute_loss

    def spy(model: Any, inputs: dict[str, Any]) -> Tensor:
        seen.extend(
            row[mask.bool()].tolist()
            for row, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
        )
        return kept(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    assert seen == [response.ids for response in trainer._responses]


def test_replayed_rewards_join_the_group(trainer_of):
    trainer = trainer_of(batch=2, replay=2, advantage="grpo")
    trainer.round.number = 5
    trainer._rows = [0, 1]
    first = trainer.questions[0].id
    trainer.replay.add(first, 1, [0.0])
    trainer.replay.add(first, 3, [1.0])
    made = trainer._advantages(torch.tensor([[1.0], [1.0]]))
    group = np.array([1.0, 1.0, 0.0])
    assert made[0].item() == pytest.approx((1 - group.mean()) / group.std(ddof=1), rel=1e-5)
    assert made[1].item() == 1  # a group of one: the singleton rule
    assert trainer.round.metrics["groups/effective_size"] == 2
    assert trainer.round.metrics["groups/singletons"] == 0.5
    assert trainer.replay.recent(first, 6)[0].round == 5


def test_a_question_drawn_twice_in_a_round_gets_rollouts_of_its_own():
    from workers.trainer import _samples

    assert _samples(["a", "b", "a", "a"]) == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("rows", "bound", "expected"), [(32, 5, 4), (32, 64, 32), (7, 3, 1), (12, 8, 6)]
)
def test_rows_per_pass_divides_an_update(tiny, rows, bound, expected):
    assert rows_per_pass(tiny(batch=rows, rows_per_pass=bound)) == expected


def test_the_reference_is_the_base_and_not_the_policy(trainer_of):
    trainer = trainer_of()
    assert trainer.ref_model is not trainer.model
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1.0)
    again = load_policy(trainer.cell).model
    for ours, base in zip(trainer.ref_model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, base)


def test_without_kl_there_is_no_reference(trainer_of):
    assert trainer_of(kl="off").ref_model is None
