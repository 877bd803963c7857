"""What is left of studies, priced: tokens, GPU-hours, the makespan, money; each with its interval.

Seconds are of a model that is fitted to each study's own finished runs (`cost_fit.py`), or assumed
where it has none. Without a GPU a slot, one cell at a time, stands for one. Leaves out cells that a
search has yet to suggest, failures, and what happens to speed when more cells share a machine than
did in the finished runs.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from grids.errors import InputError
from grids.paths import Store
from orchestrator import packing
from orchestrator.cost_fit import Errors, Estimate, Fit, fitted
from orchestrator.cost_runs import CPU, Run, Runs, finished_runs
from orchestrator.cost_schedule import Room, Schedule, schedule
from orchestrator.cost_sizes import USED, Seen, Sized, Stretch, answers, generated, sized
from orchestrator.plan import Plan, Work
from workers.footprint import predicted_bytes

# Of a run beside its cells, measured on two cores: until its first worker begins, with its end;
# and from one cell's end to the next one's begin.
START_SECONDS: Final = 18.0
HAND_OUT_SECONDS: Final = 0.3
START_FACTOR: Final = 2.0  # either way


class Place(NamedTuple):
    """Where cells are to run; None: not told."""

    slots: int | None = None
    gpus: int | None = None
    gpu_bytes: int | None = None


class Todo(NamedTuple):
    """What is left of a cell; `share` of a GPU."""

    study: str
    size: Sized
    stretch: Stretch
    share: float = 1.0


class Source(NamedTuple):
    """What a study's cost rests on: `n` finished runs, and the errors of their prediction."""

    study: str
    n: int
    device: str | None
    typical: float  # NaN without runs
    largest: float
    elsewhere: int  # runs on other hardware, left out
    damaged: int  # runs that could not be read, left out


@dataclass(frozen=True)
class Price:
    """What is left to do, and what it takes; `hours` are a GPU's, or a slot's without one."""

    to_generate: Estimate
    of_evaluations: Estimate  # part of those to generate
    to_train: Estimate
    hours: Estimate
    makespan: Estimate | None  # seconds; None where no place was told
    place: Place
    sources: tuple[Source, ...]

    @property
    def on_gpus(self) -> bool:
        return bool(self.place.gpus)


@dataclass(frozen=True)
class Known:
    """One study's finished runs, and the model that fits them."""

    runs: Runs
    fit: Fit

    @classmethod
    def of(cls, store: Store, study: str, on_gpus: bool | None) -> Known:
        runs = finished_runs(store.study(study), on_gpus)
        gpus = on_gpus if runs.device is None else runs.device != CPU
        return cls(runs, fitted(runs.runs, bool(gpus)))


# ---- what is to be done, where


def of_plan(plan: Plan, store: Store, place: Place | None = None) -> Price:
    """What is left of a plan, in its order, at a place; None: this machine."""
    place = place or this_machine()
    shares = _shares(plan.todo, place) if place.gpus else {}
    bases: set[Any] = set()
    todos = []
    for work in plan.todo:
        size = sized(work.cell)
        bare = not work.begun and _takes_base(work, size, bases, store)
        filled = bool(work.samples_left) and not work.begun and size.filled > 0
        rounds = work.cell.rounds
        stretch = Stretch(work.round, rounds, filled, bare, False, rounds)
        todos.append(Todo(work.study, size, stretch, shares.get(work.cell.key, 1.0)))
    return price(todos, store, place)


def _takes_base(work: Work, size: Sized, taken: set[Any], store: Store) -> bool:
    """Whether the cell is the first of those to come that needs its base model evaluated."""
    base = (work.study, size.base)
    if base in taken:
        return False
    taken.add(base)
    return not (store.study(work.study).shared / work.cell.base_key / "metrics.json").exists()


def _shares(works: Iterable[Work], place: Place) -> dict[str, float]:
    """Of a GPU, by key; a whole one where neither the grid nor its memory tells."""
    found: dict[str, float] = {}
    for cell in (work.cell for work in works):
        share = cell.gpus or 1.0
        if cell.gpus is None and place.gpu_bytes is not None:
            try:
                share = packing.share(predicted_bytes(cell).peak, place.gpu_bytes)
            except InputError:  # the model's size is not known here
                pass
        found[cell.key] = share
    return found


def this_machine() -> Place:
    """Its GPUs, as their driver tells without loading anything; else its cores."""
    memory = _gpu_memory()
    if memory:
        return Place(None, len(memory), min(memory))
    from orchestrator.cluster import cores

    return Place(cores())


def _gpu_memory() -> list[int]:
    """Bytes of each GPU that may be used."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [p for p in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)]
    if hidden == "" or not devices or shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    chosen = ["--id=" + hidden] if hidden else []
    try:
        done = subprocess.run(
            [*asked, *chosen], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(word) << 20 for word in done.stdout.split() if word.isdigit()]


# ---- the price


def price(
    todos: Sequence[Todo], store: Store, place: Place, started: bool = False
) -> Price:
    """What cells take that are handed out in this order; `started`: their workers run already."""
    kind = True if place.gpus else False if place.gpus == 0 else None
    studies = {t.study: t for t in todos}
    known = {study: Known.of(store, study, kind) for study in studies}
    seconds = _seconds(todos, known)
    new = [0.0 if started else _new_process(known[t.study].fit) for t in todos]
    room = _room(place)
    made = None if room is None else schedule(
        [s + HAND_OUT_SECONDS for s in seconds], [t.share for t in todos], room
    )  # fmt: skip
    workers = min(len(todos), made.most if made else 0)
    hours = _sum(todos, known, [s * t.share for s, t in zip(seconds, todos, strict=True)])
    starts = sum(n * t.share for n, t in zip(new[:workers], todos[:workers], strict=True))
    tokens = _tokens(todos, known)
    begin = 0.0 if started or not todos else START_SECONDS + max(new)
    return Price(
        *tokens,
        hours=_plus(hours, starts).times(1 / 3600),
        makespan=None if made is None else _makespan(todos, known, seconds, made, begin),
        place=place,
        sources=tuple(_source(study, one) for study, one in known.items()),
    )


def _room(place: Place) -> Room | None:
    if place.gpus:
        return Room(place.gpus, 1.0, place.slots)
    return Room(1, float(place.slots)) if place.slots else None


def _seconds(todos: Sequence[Todo], known: Mapping[str, Known]) -> list[float]:
    """Of each cell; equal ones are predicted once."""
    made: dict[Todo, float] = {}
    for todo in todos:
        if todo not in made:
            one = known[todo.study]
            made[todo] = one.fit.seconds(todo.size, todo.stretch, one.runs.seen(todo.size))
    return [made[todo] for todo in todos]


def _new_process(fit: Fit) -> float:
    return float(fit.coefficients["outside"][2])


def _makespan(
    todos: Sequence[Todo], known: Mapping[str, Known], seconds: Sequence[float], made: Schedule,
    begin: float,
) -> Estimate:  # fmt: skip
    """The cells that follow each other until the end decide how sure it is."""
    chain = [todos[i] for i in made.chain]
    sure = _sum(chain, known, [seconds[i] for i in made.chain])
    return _plus(sure, begin + HAND_OUT_SECONDS * len(chain))


def _plus(sure: Estimate, start: float) -> Estimate:
    """With a start that is known to a factor."""
    low, high = start / START_FACTOR, start * START_FACTOR
    return Estimate(sure.value + start, sure.low + low, sure.high + high, sure.n)


def _sum(
    todos: Sequence[Todo], known: Mapping[str, Known], values: Sequence[float],
    errors: Callable[[Known], Errors] = lambda one: one.fit.errors,
    part: Callable[[Sized], Any] = lambda size: size,
) -> Estimate:  # fmt: skip
    """Study by study with its interval; the cells of one part of it share their error."""
    parts: dict[str, dict[Any, float]] = {study: defaultdict(float) for study in known}
    for todo, value in zip(todos, values, strict=True):
        parts[todo.study][part(todo.size)] += value
    found = [errors(one).interval(parts[study]) for study, one in known.items()]
    n = 0 if any(one.n == 0 for one in found) else sum(one.n for one in found)
    return Estimate(*(math.fsum(one[i] for one in found) for i in range(3)), n)


def _tokens(todos: Sequence[Todo], known: Mapping[str, Known]) -> tuple[Estimate, ...]:
    """To generate, of them for evaluations, and to train on; responses' alone."""
    seen = [_seen(todo, known) for todo in todos]
    given = [answers(t.size, t.stretch) * s.tokens for t, s in zip(todos, seen, strict=True)]
    drawn = [generated(t.size, t.stretch) * s.tokens for t, s in zip(todos, seen, strict=True)]
    trained = [
        (t.stretch.end - t.stretch.start) * t.size.trained * s.share * s.tokens
        for t, s in zip(todos, seen, strict=True)
    ]
    both = [a + b for a, b in zip(given, drawn, strict=True)]
    lengths = {study: token_errors(one.runs, lambda seen: seen.tokens) for study, one in
               known.items()}  # fmt: skip
    rows = {study: token_errors(one.runs, lambda seen: seen.tokens * seen.share) for study, one in
            known.items()}  # fmt: skip
    by = {id(one): study for study, one in known.items()}

    def total(values: Sequence[float], errors: Mapping[str, Errors]) -> Estimate:
        found = _sum(
            todos, known, values, lambda one: errors[by[id(one)]], lambda size: size.pair
        )
        # An assumed length is a share of the longest, which none exceeds.
        return found if found.n else found._replace(high=min(found.high, found.value / USED))

    return total(both, lengths), total(given, lengths), total(trained, rows)


def _seen(todo: Todo, known: Mapping[str, Known]) -> Seen:
    return known[todo.study].runs.seen(todo.size)


def token_errors(runs: Runs, what: Callable[[Seen], float]) -> Errors:
    """How far each run's tokens are from what the others tell, by model and data set."""
    by_pair: dict[Any, list[float]] = defaultdict(list)
    for i, run in enumerate(runs.runs):
        others = Runs(runs.runs[:i] + runs.runs[i + 1 :])
        told, expected = what(run.seen), what(others.seen(run.size))
        if others.runs and told > 0 and expected > 0:
            by_pair[run.size.pair].append(math.log(told / expected))
    return Errors(tuple(map(tuple, by_pair.values())), 0.0)


def _source(study: str, one: Known) -> Source:
    errors, runs = one.fit.errors, one.runs
    return Source(
        study, len(runs.runs), runs.device, errors.typical, errors.largest, runs.elsewhere,
        runs.damaged,
    )  # fmt: skip


__all__ = ["Place", "Price", "Run", "Source", "Todo", "of_plan", "price", "this_machine"]
