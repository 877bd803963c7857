"""Generation depends on its own numbers, sets every sampling field, stops at every stop token."""

import json
import shutil

import numpy as np
import pytest
import torch

from workers.data import load_questions, prepare
from workers.engine import Inversion, TransformersEngine
from workers.models import load_policy
from workers.sampling import uniforms


@pytest.fixture
def engine_and_prompts(tiny):
    cell = tiny()
    policy = load_policy(cell)
    questions = prepare(load_questions(cell.dataset_spec), cell, policy.tokenizer)
    return TransformersEngine(policy, cell), questions.test


def test_inversion_picks_the_token_whose_interval_holds_the_number():
    scores = torch.tensor([[0.2, 0.3, 0.5]]).log().repeat(5, 1)
    numbers = torch.tensor([[0.0], [0.19], [0.21], [0.49], [0.999999]], dtype=torch.float64)
    made = Inversion(numbers, 1.0, prompt_length=4)(torch.zeros(5, 4), scores)
    assert made.argmax(1).tolist() == [0, 0, 1, 1, 2]


def test_inversion_never_picks_a_token_without_probability():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    numbers = torch.tensor([[0.0], [1 - 1e-16]], dtype=torch.float64)
    assert Inversion(numbers, 1.0, 0)(torch.zeros(2, 0), scores).argmax(1).tolist() == [1, 1]


def test_inversion_samples_the_distribution():
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    count = 4000
    numbers = torch.from_numpy(uniforms(0, "t", 0, [(str(i), 0) for i in range(count)], 1))
    picked = Inversion(numbers, 1.0, 0)(torch.zeros(count, 0), probabilities.log().repeat(count, 1))
    shares = picked.argmax(1).bincount() / count
    torch.testing.assert_close(shares, probabilities, atol=0.03, rtol=0)


def test_a_response_does_not_depend_on_the_batch_that_it_is_made_in(engine_and_prompts):
    engine, questions = engine_and_prompts
    prompts = [q.prompt_ids for q in questions]
    numbers = uniforms(0, "train", 1, [(q.id, 0) for q in questions], 32)
    together = engine.generate(prompts, 32, numbers)
    engine.width = 3
    assert engine.generate(prompts, 32, numbers) == together
    assert engine.generate(prompts[5:6], 32, numbers[5:6]) == together[5:6]


def test_greedy_is_the_argmax(engine_and_prompts):
    engine, questions = engine_and_prompts
    prompt = list(questions[0].prompt_ids)
    (response,) = engine.generate([prompt], 32)
    for token in response.ids:
        logits = engine.policy.model(torch.tensor([prompt])).logits[0, -1]
        assert token == logits.argmax().item()
        prompt.append(token)
    assert response.ids[-1] in engine.policy.stop_ids and not response.truncated


def test_sampling_at_a_low_temperature_is_greedy(engine_and_prompts):
    engine, questions = engine_and_prompts
    prompts = [q.prompt_ids for q in questions[:8]]
    numbers = np.full((8, 32), 0.5)
    assert engine.generate(prompts, 32, numbers, temperature=1e-4) == engine.generate(prompts, 32)


def test_a_response_that_does_not_end_is_truncated(engine_and_prompts):
    engine, questions = engine_and_prompts
    (response,) = engine.generate([questions[0].prompt_ids], 2)
    assert response.truncated and len(response.ids) == 2


def test_the_training_mode_is_left_as_it_was(engine_and_prompts):
    engine, questions = engine_and_prompts
    for training in (True, False):
        engine.policy.model.train(training)
        engine.generate([questions[0].prompt_ids], 4)
        assert engine.policy.model.training is training


def test_a_models_own_generation_config_changes_nothing(tiny, tmp_path):
    """transformers fills what a call leaves unset: Qwen2.5 ships a repetition penalty."""
    cell = tiny()
    folder = tmp_path / "model"
    shutil.copytree(str(cell.model_spec.path), folder)
    written = json.loads((folder / "generation_config.json").read_text())
    odd = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True, "top_k": 2}
    odd |= {"temperature": 0.1, "top_p": 0.1, "num_beams": 2, "min_new_tokens": 30}
    (folder / "generation_config.json").write_text(json.dumps(written | odd))
    spec = cell.model_spec.model_copy(update={"path": str(folder)})
    twin = cell.model_copy(update={"model_spec": spec})
    answers = []
    for made in (cell, twin):
        policy = load_policy(made)
        questions = prepare(load_questions(made.dataset_spec), made, policy.tokenizer)
        prompts = [q.prompt_ids for q in questions.test]
        numbers = uniforms(0, "train", 1, [(q.id, 0) for q in questions.test], 32)
        engine = TransformersEngine(policy, made)
        answers.append((engine.generate(prompts, 32), engine.generate(prompts, 32, numbers)))
    assert answers[0] == answers[1]


def test_all_of_a_models_stop_tokens_end_a_response(tiny, tmp_path):
    cell = tiny()
    folder = tmp_path / "model"
    shutil.copytree(str(cell.model_spec.path), folder)
    engine = TransformersEngine(load_policy(cell), cell)
    questions = prepare(load_questions(cell.dataset_spec), cell, engine.policy.tokenizer)
    (response,) = engine.generate([questions.test[0].prompt_ids], 32)
    extra = response.ids[3]
    written = json.loads((folder / "generation_config.json").read_text())
    eos = (
        written["eos_token_id"]
        if isinstance(written["eos_token_id"], list)
        else [written["eos_token_id"]]
    )
    (folder / "generation_config.json").write_text(
        json.dumps(written | {"eos_token_id": [*eos, extra]})
    )
    twin = cell.model_copy(
        update={"model_spec": cell.model_spec.model_copy(update={"path": str(folder)})}
    )
    policy = load_policy(twin)
    assert set(policy.stop_ids) == {*eos, extra}
    (cut,) = TransformersEngine(policy, twin).generate([questions.test[0].prompt_ids], 32)
    assert cut.ids == response.ids[: response.ids.index(extra) + 1] and not cut.truncated
