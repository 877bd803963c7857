"""Real SIGKILLs of real processes that run one cell, and what must be equal afterwards.

Each attempt at a cell is a process of its own, forked from a server that has imported the workers
once (TRL takes ten seconds). An attempt kills itself at a chosen call of a chosen function, or is
killed from outside at a chosen time. Leaves out which cells are killed where (the tests).
"""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from grids import outcome
from grids.catalog import DATASETS, DatasetSpec, pinned
from grids.cell import Cell
from grids.outcome import Progress
from grids.paths import CellPaths, read_lines

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    [
        "workers.run", "transformers.models.qwen2.modeling_qwen2",
        "transformers.models.llama.modeling_llama", "transformers.models.olmo2.modeling_olmo2",
    ]
)  # fmt: skip
# Longest wait for a child, seconds: only a hang reaches it.
PATIENCE = 300.0


@dataclass(frozen=True)
class Inside:
    """The process kills itself at a call of a function.

    Attributes:
        point: `module:name.of.function`, as the code that calls it finds it.
        when: before the call, after it, or half: what it writes is cut to half of it.
        call: which of the calls.
        about: only calls with this text in a path or a string among the arguments count.
    """

    point: str
    when: str = "before"
    call: int = 1
    about: str = ""

    def __str__(self) -> str:
        name = self.point.partition(":")[2] + (f" [{self.about}]" if self.about else "")
        return f"{self.when} call {self.call} of {name}"


@dataclass(frozen=True)
class Outside:
    """The process is killed when it has told of some rounds, and a share of a round later; with
    no rounds, that share of a second after it starts."""

    rounds: int
    share: float

    def __str__(self) -> str:
        return f"{self.share:.2f} into what follows {self.rounds} rounds"


Stop = Inside | Outside


def at_random(seed: str, kills: int) -> list[Outside]:
    """Kills from outside, at random times."""
    rng = random.Random(seed)
    return [Outside(rng.randint(0, 2), rng.random()) for _ in range(kills)]


def few_questions(folder: Path, count: int = 24) -> DatasetSpec:
    """The first train questions of tiny-sums as a data set: they come again every other round."""
    whole = DATASETS["tiny-sums"]
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        lines = (Path(str(whole.path)) / f"{split}.jsonl").read_text().splitlines()
        kept = lines[:count] if split == "train" else lines
        (folder / f"{split}.jsonl").write_text("\n".join(kept) + "\n")
    return pinned(whole.model_copy(update={"path": str(folder), "train_rows": count}))


@dataclass(frozen=True)
class Attempt:
    """What one process does.

    Attributes:
        runs: cells and their directories, one after the other.
        stop: where it is killed; None: it runs to its end.
        often: write a checkpoint every round and not only when one is due.
        largest: bytes beyond which no file can grow, as on a full disk; None: no limit.
    """

    runs: Sequence[tuple[Cell, Path]]
    stop: Stop | None = None
    often: bool = False
    largest: int | None = None


@dataclass
class Child:
    """A running attempt: `told` are the rounds that it reported."""

    process: ForkServerProcess
    pipe: Connection
    told: list[int] = field(default_factory=list)
    error: BaseException | None = None

    def hear(self) -> bool:
        """Take in one more message; False where there will be none."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            return False
        if isinstance(message, BaseException):
            self.error = message
        else:
            self.told.append(message)
        return True

    def end(self) -> int:
        """Wait for the process; its exit code, negative for a signal."""
        while self.hear():
            pass
        self.process.join(PATIENCE)
        code = self.process.exitcode
        assert code is not None, "the child hangs"
        return code


def start(attempt: Attempt) -> Child:
    """Start an attempt and do not wait for it."""
    hears, tells = CHILDREN.Pipe(duplex=False)
    process = CHILDREN.Process(target=_work, args=(attempt, tells), daemon=True)
    process.start()
    tells.close()  # the child's own end is then the only one, and its death closes the pipe
    return Child(process, hears)


def finish(cell: Cell, directory: Path) -> Child:
    """Run a cell to its end in a process of its own."""
    child = start(Attempt([(cell, directory)]))
    if child.end():
        raise child.error or AssertionError(f"{directory}: ended with {child.process.exitcode}")
    return child


def kill(cell: Cell, directory: Path, stop: Stop, often: bool = False) -> Child:
    """One attempt at a cell that ends in a SIGKILL; that it does is checked."""
    child = start(Attempt([(cell, directory)], stop, often))
    if isinstance(stop, Outside):
        _kill_from_outside(child, stop, cell.rounds - 2)
    code = child.end()
    assert code == -signal.SIGKILL, f"{stop}: ended with {code} and not with a kill: {child.error}"
    return child


def _kill_from_outside(child: Child, stop: Outside, last: int) -> None:
    """Kill as `stop` says, and at the round `last` in any case: a cell that ends is not killed."""
    before, gap = time.monotonic(), 1.0
    until = math.inf if stop.rounds else before + stop.share * gap
    while child.pipe.poll(max(0.0, min(until - time.monotonic(), PATIENCE))) and child.hear():
        now = time.monotonic()
        gap, before = min(now - before, 0.2), now  # the first includes the start of the process
        if len(child.told) == stop.rounds:
            until = now + stop.share * gap
        if child.told and child.told[-1] >= last:
            break
    child.process.kill()


# ---- in the child


def _work(attempt: Attempt, tells: Connection) -> None:
    from workers import run

    gc.freeze()  # what the server imported is never garbage: half a second less at each collection
    if attempt.largest is not None:
        # Python ignores SIGXFSZ, so that a write beyond the limit fails with EFBIG.
        resource.setrlimit(resource.RLIMIT_FSIZE, (attempt.largest, attempt.largest))
    if attempt.often:
        run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE = 0.0, math.inf
    if isinstance(attempt.stop, Inside):
        arm(attempt.stop)

    def report(progress: Progress) -> None:
        tells.send(progress.round)

    try:
        for cell, directory in attempt.runs:
            run.run_cell(cell, directory, report)
    except Exception as error:  # whoever started the child says whether it was expected
        error.add_note(traceback.format_exc())
        tells.send(error)
        sys.exit(1)


def arm(stop: Inside) -> None:
    """Wrap the function of `stop`, so that the chosen call kills this process."""
    module, _, names = stop.point.partition(":")
    *path, name = names.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    whole, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(whole)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        texts = [str(a) for a in args if isinstance(a, str | Path)]
        chosen = not stop.about or any(stop.about in text for text in texts)
        if not chosen or next(calls) != stop.call:
            return whole(*args, **kwargs)
        _WAYS[stop.when](whole, args, kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, wrapped)


def _before(whole: Callable[..., Any], args: Any, kwargs: Any) -> None:
    pass


def _after(whole: Callable[..., Any], args: Any, kwargs: Any) -> None:
    whole(*args, **kwargs)


def _half(whole: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """What a write leaves in its file when it is killed half way."""
    (path,) = (Path(a) for a in args if isinstance(a, str | Path))
    before = path.stat().st_size if path.exists() else 0
    whole(*args, **kwargs)
    os.truncate(path, (before + path.stat().st_size) // 2)


_WAYS: dict[str, Callable[..., None]] = {"before": _before, "half": _half, "after": _after}


# ---- what must be equal


def assert_equal(killed: Path, whole: Path) -> None:
    """Two finished cells are the same: journal, samples, outcomes, done.json, weights, optimiser
    and memory; and the first has timed each round once."""
    import pandas as pd

    one, other = CellPaths(killed), CellPaths(whole)
    for path in (one.journal, one.samples, one.done):
        assert path.read_bytes() == (whole / path.name).read_bytes(), path
    frames = [pd.read_parquet(paths.outcomes) for paths in (one, other)]
    pd.testing.assert_frame_equal(*frames)
    newest = [max(paths.checkpoint.glob("[0-9]*")) for paths in (one, other)]
    assert_same_checkpoint(*newest)
    rounds = [line["round"] for line in read_lines(one.timings)]
    trained = [line["round"] for line in read_lines(one.journal) if outcome.LOSS in line]
    assert rounds == trained, "each round is timed once"


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Two checkpoints of one round hold the same weights, optimiser state and memory."""
    import torch

    assert one.name == other.name
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    assert weights[0] == weights[1], "weights differ"
    for name in ("optimizer.pt", "memory.pt"):
        states = [torch.load(folder / name, weights_only=True) for folder in (one, other)]
        assert same(*states), f"{name} differs"


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, tensors and NaN included."""
    import torch

    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
