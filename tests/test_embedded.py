"""What ships inside: files, sizes, and that every word of the tasks is known to every model."""

import pytest

from grids.catalog import DATASETS, EMBEDDED, MODELS
from workers.data import load_questions
from workers.grading import GRADERS
from workers.models import load_tokenizer, model_folder

TINY_MODELS = [name for name, spec in MODELS.items() if spec.embedded]
TINY_DATA = [name for name, spec in DATASETS.items() if spec.embedded]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_model_has_one_small_weight_file(name):
    folder = EMBEDDED / "models" / name
    assert [p.name for p in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert sum(p.stat().st_size for p in folder.iterdir()) < 2e6


@pytest.mark.parametrize("name", TINY_DATA)
def test_a_task_has_512_train_and_500_test_questions_that_are_disjoint(name):
    questions = load_questions(DATASETS[name])
    assert (len(questions.train), len(questions.test)) == (512, 500)
    assert questions.notes == ()
    assert len({q.id for q in (*questions.train, *questions.test)}) == 1012


@pytest.mark.parametrize("model", TINY_MODELS)
@pytest.mark.parametrize("data", TINY_DATA)
def test_every_word_of_a_task_is_known_to_every_model(model, data):
    """transformers takes some model types for byte-level BPE, whatever the files say."""
    tokenizer = load_tokenizer(model_folder(MODELS[model]))
    questions = load_questions(DATASETS[data])
    grader = GRADERS[DATASETS[data].grader]
    answers = {"gsm8k": "#### {}", "math": "\\boxed{{{}}}"}
    for question in (*questions.train, *questions.test):
        assert tokenizer.unk_token_id not in tokenizer(question.text)["input_ids"]
        answer = answers[DATASETS[data].grader].format(question.gold)
        told = tokenizer.decode(tokenizer(answer)["input_ids"], skip_special_tokens=True)
        assert grader(told, question.gold).correct


def test_the_script_makes_the_shipped_tasks(tmp_path):
    from workers.embedded import make

    make.write_tasks(tmp_path)
    for path in sorted((EMBEDDED / "tasks").rglob("*.jsonl")):
        made = tmp_path / path.relative_to(EMBEDDED)
        assert made.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_script_makes_the_shipped_tokenizers(name, tmp_path):
    from workers.embedded import make

    make.make_tokenizer(name).save_pretrained(tmp_path)
    shipped = EMBEDDED / "models" / name / "tokenizer.json"
    assert (tmp_path / "tokenizer.json").read_bytes() == shipped.read_bytes()
