"""Questions with checkable answers: from a local folder or the hub, as prompts of a model.

A local folder holds `train.jsonl` and `test.jsonl`. A row without an answer is dropped and counted;
test questions are never filtered by length (an overlong one is scored wrong), train questions that
are too long are, and counted. A question is identified by a hash of its text. Imports no torch, so
that a driver can check the data before anything starts. Leaves out order (`sampling.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grids.catalog import DatasetSpec
from grids.cell import Cell
from grids.errors import InputError
from workers.math_answers import last_box

# Llama-3.2's chat template prints today's date unless it is told one: this is its own default.
TEMPLATE_DATE = "26 Jul 2024"


@dataclass(frozen=True)
class Question:
    """One question, its answer, and the message that asks it."""

    id: str
    text: str
    gold: str
    prompt_ids: tuple[int, ...] = ()
    too_long: bool = False


@dataclass(frozen=True)
class Questions:
    """A data set's two splits and what had to be left out."""

    train: tuple[Question, ...]
    test: tuple[Question, ...]
    notes: tuple[str, ...] = field(default=())


def load_questions(spec: DatasetSpec) -> Questions:
    """Both splits, unfiltered by length.

    Raises `InputError` for wrong columns, an empty split, or a hub that cannot be reached.
    """
    notes: list[str] = []
    splits = {name: _read_split(spec, name, notes) for name in ("train", "test")}
    for name, questions in splits.items():
        if not questions:
            raise InputError(f"{spec.name}: the {name} split has no question with an answer")
    return Questions(splits["train"], splits["test"], tuple(notes))


def prepare(questions: Questions, cell: Cell, tokenizer: Any) -> Questions:
    """The questions as a model's prompts: templated, tokenised, train questions filtered.

    Raises `InputError` where fewer train questions are left than a batch takes.
    """
    train = [_prompted(q, cell, tokenizer) for q in questions.train]
    short = tuple(q for q in train if not q.too_long)
    chosen = questions.test[: cell.eval.test_questions]
    test = tuple(_prompted(q, cell, tokenizer) for q in chosen)
    notes = list(questions.notes)
    if len(short) < len(train):
        notes.append(
            f"{cell.dataset}: {len(train) - len(short)} train questions longer than "
            f"{cell.max_prompt} tokens left out of {len(train)}"
        )
    if overlong := sum(q.too_long for q in test):
        notes.append(f"{cell.dataset}: {overlong} overlong test questions are scored wrong")
    check_batch(cell, len(short))
    return Questions(short, test, tuple(notes))


def check_batch(cell: Cell, train_rows: int) -> None:
    """Raise `InputError` where a batch is larger than the train set."""
    if cell.batch > train_rows:
        raise InputError(
            f"cell {cell.label}: batch {cell.batch} is larger than the train set: {cell.dataset} "
            f"has {train_rows} usable questions, so at most {train_rows} is allowed"
        )


def _read_split(spec: DatasetSpec, split: str, notes: list[str]) -> tuple[Question, ...]:
    rows = _local_rows(spec, split) if spec.path else _hub_rows(spec, split)
    questions: dict[str, Question] = {}
    empty = total = 0
    for total, row in enumerate(rows, start=1):
        text, gold = _question_and_answer(spec, split, total, row)
        if not gold or not text.strip():
            empty += 1
            continue
        identity = _identity(text, questions)
        questions[identity] = Question(identity, text, gold)
    if empty:
        notes.append(f"{spec.name}: {empty} of {total} {split} rows without an answer dropped")
    return tuple(questions.values())


def _identity(text: str, taken: Container[str]) -> str:
    """A hash of the question's text; a repeated question gets one of its own."""
    form = text.encode("utf-8", "surrogatepass")
    while (identity := hashlib.sha256(form).hexdigest()[:16]) in taken:
        form += b"\0"
    return identity


def _local_rows(spec: DatasetSpec, split: str) -> Iterable[dict[str, Any]]:
    path = Path(str(spec.path)) / f"{split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{spec.name}: cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not a JSON object: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: not a JSON object but {type(row).__name__}")
        yield row


def _hub_rows(spec: DatasetSpec, split: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    quiet_hub()
    try:
        rows = load_dataset(spec.hub, spec.config, split=split, revision=spec.revision or None)
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        raise InputError(not_to_be_had("data set", spec.name, spec.hub, "data", error)) from error
    yield from rows


def quiet_hub() -> None:
    """The hub's clients tell every retry: what becomes of it is told once, by our own message."""
    for name in ("huggingface_hub", "datasets"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def not_to_be_had(
    kind: str, name: str, hub: str | None, folder: str, error: Exception | None
) -> str:
    """The message for a hub that cannot be reached and a local copy that is not there."""
    why = f" ({type(error).__name__}: {str(error).splitlines()[0][:200]})" if error else ""
    return (
        f"{name}: cannot get the {kind} {hub} from the hub{why}; connect to the hub, or put a "
        f"local copy at ./{folder}/{name} (another folder: --{folder} DIR)"
    )


def _question_and_answer(
    spec: DatasetSpec, split: str, number: int, row: dict[str, Any]
) -> tuple[str, str]:
    column = next((name for name in spec.answer if name in row), None)
    if column is None or spec.question not in row:
        wanted = f"{spec.question!r} and one of {', '.join(map(repr, spec.answer))}"
        raise InputError(
            f"{spec.name}: wrong columns in row {number} of {split}: "
            f"got {', '.join(row) or 'none'}; expected {wanted}; "
            "name them with `question:` and `answer:` of the data set"
        )
    return _text(row[spec.question]), _gold(spec, column, _text(row[column]))


def _text(value: Any) -> str:
    """A column's value as text: an answer of 0 is one, an absent answer is none."""
    return "" if value is None else str(value)


def _gold(spec: DatasetSpec, column: str, answer: str) -> str:
    """The answer alone, as graders compare it."""
    if spec.answer_after is not None:
        _, found, answer = answer.rpartition(spec.answer_after)
        return answer.strip().replace(",", "").replace("$", "") if found else ""
    if column == "solution":
        return last_box(answer) or ""
    return answer.strip()


def _prompted(question: Question, cell: Cell, tokenizer: Any) -> Question:
    ids = render(tokenizer, cell.dataset_spec.prompt, question.text)
    too_long = len(ids) > cell.max_prompt
    return Question(question.id, question.text, question.gold, tuple(ids), too_long)


def render(tokenizer: Any, prompt: str, question: str) -> list[int]:
    """A question as the model's prompt: one user message in the chat template, at most one BOS."""
    content = prompt.replace("{question}", question)
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
            date_string=TEMPLATE_DATE,
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(content)["input_ids"]
    return _one_bos(list(ids), tokenizer.bos_token_id)


def _one_bos(ids: list[int], bos: int | None) -> list[int]:
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids
