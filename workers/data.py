"""Questions with checkable answers: from a folder, the hub or a source, as prompts of a model.

A local folder holds `train.jsonl` and `test.jsonl`. A row without an answer is dropped and counted;
test questions are never filtered by length (an overlong one is scored wrong), train questions that
are too long are, and counted. A question is identified by a hash of its text. Questions that a cell
holds out from training are treated as test questions are. Imports no torch, so
that a driver can check the data before anything starts. Leaves out order (`sampling.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from grids.catalog import DatasetSpec
from grids.cell import Cell
from grids.errors import InputError
from grids.plugin import SOURCES, PluginSpec, provider
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
    solution: str = ""  # worked, as the data set has it; empty where it has none


@dataclass(frozen=True)
class Questions:
    """A data set's two splits and what had to be left out."""

    train: tuple[Question, ...]
    test: tuple[Question, ...]
    notes: tuple[str, ...] = field(default=())
    val: tuple[Question, ...] = ()  # of the train split, held out from training


def load_questions(spec: DatasetSpec, plugins: Sequence[PluginSpec] = ()) -> Questions:
    """Both splits, unfiltered by length.

    Args:
        spec: the data set.
        plugins: those that may have its source.

    Raises `InputError` for wrong columns, an empty split, a hub that cannot be reached, or a
    source that makes no rows.
    """
    notes: list[str] = []
    splits = {name: _read_split(spec, name, notes, plugins) for name in ("train", "test")}
    for name, questions in splits.items():
        if not questions:
            raise InputError(f"{spec.name}: the {name} split has no question with an answer")
    return Questions(splits["train"], splits["test"], tuple(notes))


def prepare(questions: Questions, cell: Cell, tokenizer: Any) -> Questions:
    """The questions as a model's prompts: templated, tokenised, train questions filtered.

    Raises `InputError` where fewer train questions are left than a batch takes.
    """
    parts = split_off(questions.train, cell.holdout)
    val = tuple(_prompted(q, cell, tokenizer) for q in parts.val)
    train = [_prompted(q, cell, tokenizer) for q in parts.train]
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
    return Questions(short, test, tuple(notes), val)


class Parts(NamedTuple):
    """Train questions, parted into those that are trained on and those that are held out."""

    train: tuple[Question, ...]
    val: tuple[Question, ...]


def split_off(train: Sequence[Question], holdout: int) -> Parts:
    """Part the `holdout` questions with the lowest hashes from the others.

    The choice is of the questions alone, before any is found too long for a model: equal for all
    models, arms and seeds, and the smaller choice lies within the larger. A question with the text
    of a held-out one is not trained on either.
    """
    if not holdout:
        return Parts(tuple(train), ())
    ranks = {q.id: hashlib.sha256(f"holdout\0{q.id}".encode()).digest() for q in train}
    chosen = set(sorted(ranks, key=ranks.__getitem__)[:holdout])
    val = tuple(q for q in train if q.id in chosen)
    texts = {q.text for q in val}
    return Parts(tuple(q for q in train if q.text not in texts), val)


def check_batch(cell: Cell, train_rows: int) -> None:
    """Raise `InputError` where a batch is larger than the train set."""
    if cell.batch > train_rows:
        raise InputError(
            f"cell {cell.label}: batch {cell.batch} is larger than the train set: {cell.dataset} "
            f"has {train_rows} usable questions, so at most {train_rows} is allowed"
        )


def _read_split(
    spec: DatasetSpec, split: str, notes: list[str], plugins: Sequence[PluginSpec]
) -> tuple[Question, ...]:
    questions: dict[str, Question] = {}
    empty = total = 0
    for total, row in enumerate(_rows(spec, split, plugins), start=1):
        read = _read_row(spec, split, total, row)
        if not read.gold or not read.text.strip():
            empty += 1
            continue
        identity = _identity(read.text, questions)
        questions[identity] = Question(identity, read.text, read.gold, solution=read.solution)
    if empty:
        notes.append(f"{spec.name}: {empty} of {total} {split} rows without an answer dropped")
    return tuple(questions.values())


def _rows(spec: DatasetSpec, split: str, plugins: Sequence[PluginSpec]) -> Iterable[dict[str, Any]]:
    if spec.source is not None:
        return _source_rows(spec, split, plugins)
    return _local_rows(spec, split) if spec.path else _hub_rows(spec, split)


def _source_rows(
    spec: DatasetSpec, split: str, plugins: Sequence[PluginSpec]
) -> Iterable[dict[str, Any]]:
    """Rows that a function makes: reasoning-gym's, or a plug-in's `rows(split, **options)`."""
    plugin = provider(plugins, SOURCES, spec.source)
    if plugin is None:
        from workers.reasoning import rows

        yield from rows(spec, split)
        return
    from workers.plugins import function_of

    number = 0
    try:
        made = function_of(plugin, SOURCES, str(spec.source))(split, **spec.options)
        for number, row in enumerate(made, start=1):
            if not isinstance(row, dict):
                raise TypeError(f"row {number} is not a dict but {type(row).__name__}")
            yield row
    except InputError:
        raise
    except Exception as error:  # anybody's code
        raise InputError(
            f"{spec.name}: plug-in {plugin.name} ({plugin.path}): {SOURCES}[{spec.source!r}] made "
            f"no {split} row after {number}: {type(error).__name__}: {error}; it is called as "
            "(split, **options), with the data set's `options:`, and returns dicts of columns"
        ) from error


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


class _Read(NamedTuple):
    """What a row holds; a text is empty where the row has none."""

    text: str
    gold: str
    solution: str


def _read_row(spec: DatasetSpec, split: str, number: int, row: dict[str, Any]) -> _Read:
    column = next((name for name in spec.answer if name in row), None)
    if column is None or spec.question not in row:
        wanted = f"{spec.question!r} and one of {', '.join(map(repr, spec.answer))}"
        raise InputError(
            f"{spec.name}: wrong columns in row {number} of {split}: "
            f"got {', '.join(row) or 'none'}; expected {wanted}; "
            "name them with `question:` and `answer:` of the data set"
        )
    answer = _text(row[column])
    gold = _gold(spec, column, answer)
    # Without a column of its own, the solution is what comes before the answer.
    worked = _text(row.get("solution")) or (answer if answer.strip() != gold else "")
    return _Read(_text(row[spec.question]), gold, worked)


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
    return replace(question, prompt_ids=tuple(ids), too_long=len(ids) > cell.max_prompt)


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
