"""Tasks of reasoning-gym (arXiv 2505.24760): their questions, and their own scorers for answers.

The package makes questions from a seed. A data set is the stream of one task's items, each question
text once: the first of them are the test set, the next the train set, so that no question is in
both and more train questions change neither. A gold names the item (task, config, seed, index) as
JSON, from which the scorer makes it again; `answer` in it is for people.

Both happen in one child process (`reasoning_child.py`), with a deadline for each answer: one that
is not scored in time raises `NotScored`, and the next starts a new child. Leaves out what a score
is worth (`grading.py`, `rewards.py`).
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from grids.catalog import DatasetSpec
from grids.errors import InputError, listed

INSTALL = "pip install -c constraints.txt -e '.[reasoning-gym]'"
ANSWER_SECONDS = 5.0  # of the child's computing, for one answer
ROWS = 200  # questions that are asked for at a time
# Options of a data set: name -> type, default (None: must be given).
OPTIONS: dict[str, tuple[type, Any]] = {
    "task": (str, None), "train": (int, None), "test": (int, None), "seed": (int, 0),
    "config": (dict, {}),
}  # fmt: skip


class NotScored(RuntimeError):
    """An answer that the child gave no score for: too late, or its scorer raised."""


class Scored(NamedTuple):
    """An answer as its scorer saw it, None where none was found, and its score in [0, 1]."""

    answer: str | None
    score: float


def rows(spec: DatasetSpec, split: str) -> Iterator[dict[str, str]]:
    """A split's questions, and golds for `scored`.

    Raises `InputError` where the package is absent or of another version, an option is wrong, or
    the task has too few different questions.
    """
    check_version(spec)
    options = _options(spec)
    test = options["test"]
    made = _stream(json.dumps(options, sort_keys=True), spec.name)
    chosen = made[:test] if split == "test" else made[test:]
    yield from ({"question": question, "answer": gold} for question, gold in chosen)


def scored(completion: str, gold: str) -> Scored:
    """The score of a completion's answer.

    Raises `NotScored` where there is none.
    """
    told = json.loads(gold)
    item = {key: told[key] for key in ("task", "config", "seed", "index")}
    reply = _child.ask(item | {"completion": completion, "seconds": ANSWER_SECONDS})
    if "error" in reply:
        raise NotScored(f"reasoning-gym's {item['task']}: {reply['error']}")
    return Scored(reply["answer"], reply["score"])


def check_version(spec: DatasetSpec) -> None:
    """Raise `InputError` where the package is absent, or not the one a data set is pinned to."""
    try:
        found = metadata.version("reasoning-gym")
    except metadata.PackageNotFoundError:
        raise InputError(
            f"{spec.name}: its questions are made by reasoning-gym, which is not installed; "
            f"{INSTALL}"
        ) from None
    if found != spec.revision:
        raise InputError(
            f"{spec.name}: pinned to reasoning-gym {spec.revision}; installed is {found}, whose "
            f"questions may be others; {INSTALL} (or write the data set's `revision: {found}`)"
        )


def _options(spec: DatasetSpec) -> dict[str, Any]:
    """The options, checked, with defaults."""
    made = {name: spec.options.get(name, default) for name, (_, default) in OPTIONS.items()}
    wrong = [f"unknown {name!r}" for name in spec.options if name not in OPTIONS]
    for name, (kind, _) in OPTIONS.items():
        if type(made[name]) is not kind or name in ("train", "test") and made[name] < 1:
            wrong.append(f"{name}: got {made[name]!r}")
    wrong += [
        f"config: {name!r} is not a task's" for name in ("seed", "size") if name in _config(made)
    ]
    if wrong:
        raise InputError(
            f"{spec.name}: options: {'; '.join(wrong)}; allowed: {listed(OPTIONS)}: the task's "
            "name, numbers of train and test questions of at least 1, a whole number, and the "
            "task's own settings"
        )
    return made


def _config(options: dict[str, Any]) -> dict[str, Any]:
    config = options["config"]
    return config if isinstance(config, dict) else {}


@lru_cache(maxsize=2)  # the two splits are parts of one stream
def _stream(options: str, name: str) -> list[tuple[str, str]]:
    """Different questions and their golds, as many as are asked for."""
    told = json.loads(options)
    item = {key: told[key] for key in ("task", "config", "seed")}
    wanted, first = told["test"] + told["train"], 0
    made: dict[str, str] = {}
    while len(made) < wanted:
        request = item | {"first": first, "count": ROWS}
        found = _part(request, name)
        for index, (question, answer) in enumerate(found, start=first):
            made.setdefault(question, json.dumps(item | {"index": index, "answer": answer}))
        first += ROWS
        if not found and len(made) < wanted:
            raise InputError(
                f"{name}: {told['task']} makes {len(made)} different questions with this config, "
                f"fewer than test + train = {wanted}; ask for fewer, or widen its `config:`"
            )
    return list(made.items())[:wanted]


def _part(request: dict[str, Any], name: str) -> list[tuple[str, str | None]]:
    try:
        reply = _child.ask(request)
    except NotScored as error:
        raise InputError(f"{name}: {request['task']} made no questions: {error}") from None
    if "error" in reply:
        raise InputError(
            f"{name}: reasoning-gym's {request['task']} with config {request['config']}: "
            f"{reply['error']}; `task:` and `config:` are the package's own"
        )
    return [(question, answer) for question, answer in reply["rows"]]


class _Child:
    """The child process, started where it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request; `NotScored` where the child ended instead."""
        with self._lock:
            process = self._started()
            assert process.stdin is not None and process.stdout is not None
            line = ""
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                pass
            if not line.endswith("\n"):
                self.stop()
                raise NotScored("no reply in time, or the process that makes them ended")
            reply: dict[str, Any] = json.loads(line)
            return reply

    def stop(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            program = Path(__file__).with_name("reasoning_child.py")
            # A set's order, which some tasks follow, must not depend on the process; and threads'
            # reserved memory would count against the child's bound.
            env = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
            env["OPENBLAS_NUM_THREADS"] = "1"
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env=env, start_new_session=True,  # a person's Ctrl-C is not for it
            )  # fmt: skip
        return self._process


_child = _Child()
atexit.register(_child.stop)
