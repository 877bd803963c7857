"""Reading questions, rendering prompts, and what is told about data that will not do."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grids.catalog import DATASETS, GSM8K_PROMPT, MATH_PROMPT, DatasetSpec, pinned
from grids.errors import InputError
from tests.conftest import ROOT
from workers.data import load_questions, prepare, render
from workers.models import load_tokenizer
from workers.preflight import check

REAL = Path(os.environ.get("BANDITGRID_TEST_DATA", ROOT.parent / "shared" / "data"))
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no copy of GSM8K and MATH at {REAL}")


@pytest.fixture
def data(tmp_path) -> Callable[..., DatasetSpec]:
    """A local data set of the given train rows; the test split is two good rows."""

    def build(rows: list[Any], **spec: Any) -> DatasetSpec:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        good = [{"question": f"{i} + 1", "answer": f"#### {i + 1}"} for i in range(2)]
        for split, content in (("train", rows), ("test", spec.pop("test", good))):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in content]
            (folder / f"{split}.jsonl").write_text("\n".join(lines))
        return DatasetSpec(name="mine", path=str(folder), answer_after="####", **spec)

    return build


def row(i: int) -> dict[str, str]:
    return {"question": f"what is {i}?", "answer": f"it is\n#### {i}"}


@real
def test_gsm8k_is_read_whole():
    spec = DATASETS["gsm8k"].model_copy(update={"path": str(REAL / "gsm8k")})
    questions = load_questions(spec)
    assert (len(questions.train), len(questions.test)) == (7473, 1319)
    assert questions.train[0].gold == "72"
    assert not any("," in q.gold for q in questions.train)
    assert len({q.id for q in questions.train}) == 7473
    assert questions.notes == ()


@real
def test_maths_rows_without_an_answer_are_dropped_and_counted():
    spec = DATASETS["math"].model_copy(update={"path": str(REAL / "math")})
    questions = load_questions(spec)
    assert (len(questions.train), len(questions.test)) == (7498, 5000)
    assert questions.notes == ("math: 2 of 7500 train rows without an answer dropped",)


def test_math_on_the_hub_has_solutions_in_place_of_answers(data):
    rows = [{"problem": "p", "solution": "so \\boxed{\\frac{1}{2}} it is"}]
    spec = data(rows, question="problem", answer=("answer", "solution"), test=rows)
    spec = spec.model_copy(update={"answer_after": None})
    assert load_questions(spec).train[0].gold == "\\frac{1}{2}"


def test_gsm8k_golds_lose_their_commas(data):
    assert (
        load_questions(data([{"question": "q", "answer": "x #### 1,234"}])).train[0].gold == "1234"
    )


def test_rows_without_an_answer_are_dropped_counted_and_said(data):
    rows = [row(1), {"question": "q", "answer": "no marker"}, {"question": "r", "answer": None}]
    questions = load_questions(data(rows))
    assert len(questions.train) == 1
    assert questions.notes == ("mine: 2 of 3 train rows without an answer dropped",)


def test_an_answer_of_zero_is_an_answer(data):
    rows = [{"question": 0, "answer": 0}, {"question": "q", "answer": None}]
    spec = data(rows, test=[row(1)]).model_copy(update={"answer_after": None})
    assert [(q.text, q.gold) for q in load_questions(spec).train] == [("0", "0")]


def test_lines_end_at_newlines_alone_and_blank_ones_are_skipped(data):
    text = {"question": "a\u2028b", "answer": "#### 1"}
    questions = load_questions(data([json.dumps(text, ensure_ascii=False), "", json.dumps(row(2))]))
    assert [q.text for q in questions.train] == ["a\u2028b", "what is 2?"]


def test_hidden_files_do_not_change_a_fingerprint(tmp_path):
    from grids.catalog import fingerprint

    (tmp_path / "train.jsonl").write_text("x")
    before = fingerprint(tmp_path)
    (tmp_path / ".cache" / "hub").mkdir(parents=True)
    (tmp_path / ".cache" / "hub" / "file").write_text("y")
    assert fingerprint(tmp_path) == before
    (tmp_path / "test.jsonl").write_text("z")
    assert fingerprint(tmp_path) != before


def test_a_repeated_question_is_kept_with_an_id_of_its_own(data):
    questions = load_questions(data([row(1), row(1)]))
    assert len({q.id for q in questions.train}) == 2


BAD = {
    "wrong columns": (
        [{"prompt": "q", "completion": "a"}],
        "wrong columns in row 1 of train: got prompt, completion; expected 'question' and one of",
    ),
    "not JSON": (["{"], "train.jsonl:1: not a JSON object"),
    "not an object": (["[1]"], "train.jsonl:1: not a JSON object but list"),
    "nothing": ([], "the train split has no question with an answer"),
    "no answers": ([{"question": "q", "answer": ""}], "no question with an answer"),
}


@pytest.mark.parametrize(("rows", "told"), BAD.values(), ids=BAD.keys())
def test_bad_data_is_told(data, rows, told):
    with pytest.raises(InputError, match=told):
        load_questions(data(rows))


def test_a_folder_without_files(tmp_path):
    with pytest.raises(InputError, match="cannot read .*train.jsonl"):
        load_questions(DatasetSpec(name="mine", path=str(tmp_path)))


def test_an_unreachable_hub_without_a_local_copy():
    with pytest.raises(InputError, match="cannot get the data set openai/gsm8k from the hub"):
        load_questions(DATASETS["gsm8k"])


def test_preflight_finds_a_model_that_is_not_to_be_had(tiny):
    from grids.cell import Cell

    cell = Cell(model="qwen2.5-0.5b-instruct", dataset="tiny-sums", max_prompt=32, max_response=32)
    with pytest.raises(InputError, match=r"put a local copy at \./models/qwen2.5-0.5b-instruct"):
        check([tiny(), cell])


def test_preflight_finds_a_batch_larger_than_the_train_set(data, tiny):
    spec = pinned(data([row(i) for i in range(5)]))
    cell = tiny().model_copy(update={"dataset_spec": spec, "dataset": "mine"})
    with pytest.raises(InputError, match="batch 8 is larger than the train set: mine has 5"):
        check([cell])


def test_preflight_finds_a_context_that_is_too_short(tiny):
    cell = tiny().model_copy(update={"max_response": 4000})
    with pytest.raises(InputError, match="exceed the context of tiny-qwen2"):
        check([cell])


def test_preflight_tells_what_was_dropped(data, tiny):
    spec = pinned(data([row(i) for i in range(9)] + [{"question": "q", "answer": ""}]))
    cell = tiny().model_copy(update={"dataset_spec": spec})
    assert check([cell, cell]) == ["mine: 1 of 10 train rows without an answer dropped"]


def test_preflight_of_a_folder_that_is_no_model(tiny, tmp_path):
    spec = tiny().model_spec.model_copy(update={"path": str(tmp_path), "revision": "none"})
    with pytest.raises(InputError, match="is not a model's folder"):
        check([tiny().model_copy(update={"model_spec": spec})])


def test_long_train_questions_are_left_out_and_long_test_questions_kept(tiny):
    cell = tiny()
    tokenizer = load_tokenizer(Path(str(cell.model_spec.path)))
    loaded = load_questions(cell.dataset_spec)
    lengths = sorted(len(render(tokenizer, "{question}", q.text)) for q in loaded.train)
    short = cell.model_copy(update={"max_prompt": lengths[len(lengths) // 2] - 1})
    questions = prepare(loaded, short, tokenizer)
    if lengths[0] == lengths[-1]:
        pytest.skip("all questions have one length")
    assert len(questions.train) < len(loaded.train)
    assert len(questions.test) == 16
    assert "left out of 512" in questions.notes[0]


def test_verls_prompts():
    assert GSM8K_PROMPT.replace("{question}", "Q?") == (
        'Q? Let\'s think step by step and output the final answer after "####".'
    )
    assert MATH_PROMPT.replace("{question}", "Q?") == (
        "Q? Let's think step by step and output the final answer within \\boxed{}."
    )


MESSAGE = {"role": "user", "content": "q"}


class Template:
    """A tokenizer with only what `render` uses, to see what it is asked for."""

    bos_token_id = 1

    def __init__(self, template: str | None) -> None:
        self.chat_template = template
        self.asked: dict[str, Any] = {}

    def apply_chat_template(self, messages: Any, **asked: Any) -> str:
        self.asked = asked
        return f"<s>{messages[0]['content']}"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [1] * text.startswith("<s>") + [7]}


def test_todays_date_is_pinned_in_the_prompt():
    """Llama-3.2's template prints today's date unless it is told one."""
    tokenizer = load_tokenizer(
        Path(str(DATASETS["tiny-sums"].path)).parents[1] / "models" / "tiny-llama"
    )
    tokenizer.chat_template = (
        "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
    )
    asked = Template("x")
    render(asked, "{question}", "q")
    assert asked.asked["date_string"] == "26 Jul 2024"
    assert (
        tokenizer.apply_chat_template([MESSAGE], tokenize=False, date_string="26 Jul 2024")
        == "26 Jul 2024"
    )


@pytest.mark.parametrize("template", [None, "x"])
def test_at_most_one_bos(template):
    assert render(Template(template), "<s>{question}", "q").count(1) == 1


# ---- sources of plug-ins

SOURCE = """
def sums(split, *, count, broken=None):
    for i in range(count):
        if i == broken:
            yield "a word"
        worked = f"{i} + 1 = {i + 1}"
        yield {"question": f"{split} {i} + 1?", "answer": str(i + 1), "solution": worked}


SOURCES = {"sums": sums}
"""


def test_rows_of_a_plug_ins_source_are_questions_and_its_errors_are_told(tmp_path):
    from grids.plugin import read

    (tmp_path / "making.py").write_text(SOURCE)
    plugins = (read(tmp_path / "making.py").spec,)
    spec = DatasetSpec(name="made", source="sums", revision="1", options={"count": 3})
    questions = load_questions(spec, plugins)
    assert [q.text for q in questions.test] == ["test 0 + 1?", "test 1 + 1?", "test 2 + 1?"]
    assert (questions.train[2].gold, questions.train[2].solution) == ("3", "2 + 1 = 3")
    for options, told in (
        ({"count": 3, "broken": 1}, "made no train row after 2: TypeError: row 2 is not a dict"),
        ({}, "made no train row after 0: TypeError: .*count.*called as"),
    ):
        with pytest.raises(InputError, match=f"made: plug-in making .*'sums'.*{told}"):
            load_questions(spec.model_copy(update={"options": options}), plugins)
