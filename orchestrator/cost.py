"""What is left of studies, priced: tokens, GPU-hours, the makespan; each with its interval.

Seconds are of a model that is fitted to each study's own finished runs (`cost_fit.py`), or assumed
where it has none. Without a GPU a slot, one cell at a time, stands for one. Leaves out cells that a
search has yet to suggest, failures, and what happens to speed when more cells share a machine than
did in the finished runs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from grids.paths import Store
from orchestrator.cost_fit import Errors, Estimate
from orchestrator.cost_known import Known, Source
from orchestrator.cost_place import Place, this_machine
from orchestrator.cost_schedule import Schedule, schedule
from orchestrator.cost_sizes import USED, Sized, Stretch, answers, generated, sized
from orchestrator.plan import Plan, Work

# Of a run beside its cells, measured on two cores: until its first worker begins, with its end;
# and from one cell's end to the next one's begin.
START_SECONDS: Final = 12.0
HAND_OUT_SECONDS: Final = 0.2
START_FACTOR: Final = 2.0  # either way


class Todo(NamedTuple):
    """What is left of a cell; `share` of a GPU, None: as runs of its model had."""

    study: str
    size: Sized
    stretch: Stretch
    share: float | None = None


class Tokens(NamedTuple):
    """Of responses alone; those `of_evaluations` are among those to generate."""

    to_generate: Estimate
    of_evaluations: Estimate
    to_train: Estimate


@dataclass(frozen=True)
class Price:
    """What is left to do, and what it takes.

    Attributes:
        hours: a GPU's, or a slot's where `on_gpus` is false.
        makespan: seconds; None where it was not told where cells are to run.
        at_once: most cells at a time.
    """

    tokens: Tokens
    hours: Estimate
    makespan: Estimate | None
    at_once: int
    on_gpus: bool
    place: Place
    sources: tuple[Source, ...]

    @property
    def rented(self) -> float:
        """GPUs, or slots, that are paid for until the end."""
        return self.place.gpus or self.place.slots or 0


def of_plan(plan: Plan, store: Store, place: Place | None = None) -> Price:
    """What is left of a plan, in its order, at a place; None: this machine."""
    place = place or this_machine()
    shares = place.shares(work.cell for work in plan.todo)
    bases: set[Any] = set()
    todos = []
    for work in plan.todo:
        size, rounds = sized(work.cell), work.cell.rounds
        bare = not work.begun and _takes_base(work, size, bases, store)
        stretch = Stretch(
            work.round, rounds, size.filled > 0 and not work.begun, bare, rounds=rounds
        )
        todos.append(Todo(work.study, size, stretch, shares.get(work.cell.key)))
    return price(todos, store, place)


def _takes_base(work: Work, size: Sized, taken: set[Any], store: Store) -> bool:
    """Whether the cell is the first of those to come that needs its base model evaluated."""
    base = (work.study, size.base)
    if base in taken:
        return False
    taken.add(base)
    return not (store.study(work.study).shared / work.cell.base_key / "metrics.json").exists()


def price(todos: Sequence[Todo], store: Store, place: Place, started: bool = False) -> Price:
    """What cells take that are handed out in this order; `started`: their workers run already."""
    studies = dict.fromkeys(todo.study for todo in todos)
    known = {study: Known.of(store, study, place.kind) for study in studies}
    shares = [_share(todo, known[todo.study], place) for todo in todos]
    seconds = _seconds(todos, known)
    made, room = Schedule(0.0, (), 0), place.room
    if room is not None:
        takes = shares if place.gpus else [float(_cores(todo.size)) for todo in todos]
        made = schedule([s + HAND_OUT_SECONDS for s in seconds], takes, room)
    new = [0.0 if started else known[t.study].new_process(t.size) for t in todos[: made.most]]
    hours = _sum(todos, known, [s * share for s, share in zip(seconds, shares, strict=True)])
    starts = sum(n * share for n, share in zip(new, shares, strict=False))
    begin = START_SECONDS + max(new) if new and not started else 0.0
    return Price(
        tokens=_tokens(todos, known),
        hours=_plus(hours, starts).times(1 / 3600),
        makespan=None if room is None else _makespan(todos, known, seconds, made, begin),
        at_once=made.most,
        on_gpus=bool(place.kind or any(one.on_gpus for one in known.values())),
        place=place,
        sources=tuple(one.source for one in known.values()),
    )


def _share(todo: Todo, known: Known, place: Place) -> float:
    """Of a GPU; without one a cell takes a whole slot, whatever its grid asks of GPUs."""
    if todo.share is not None:
        return todo.share
    on_gpus = known.on_gpus if place.kind is None else place.kind
    return known.share(todo.size) if on_gpus else 1.0


def _cores(size: Sized) -> int:
    """Slots of a cell where there is no GPU: of each of its processes one."""
    return max(1, int(size.gpus or 1))


def _seconds(todos: Sequence[Todo], known: Mapping[str, Known]) -> list[float]:
    """Of each cell; equal ones are predicted once."""
    alike = {todo: known[todo.study].seconds(todo.size, todo.stretch) for todo in set(todos)}
    return [alike[todo] for todo in todos]


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
    parts: dict[str, dict[Any, float]] = defaultdict(lambda: defaultdict(float))
    for todo, value in zip(todos, values, strict=True):
        parts[todo.study][part(todo.size)] += value
    found = [errors(known[study]).interval(own) for study, own in parts.items()]
    n = 0 if any(one.n == 0 for one in found) else sum(one.n for one in found)
    value, low, high = (math.fsum(one[i] for one in found) for i in range(3))
    return Estimate(value, low, high, n)


def _tokens(todos: Sequence[Todo], known: Mapping[str, Known]) -> Tokens:
    seen = [known[todo.study].seen(todo.size) for todo in todos]
    both = list(zip(todos, seen, strict=True))
    given = [answers(todo.size, todo.stretch) * s.tokens for todo, s in both]
    drawn = [generated(todo.size, todo.stretch) * s.tokens for todo, s in both]
    trained = [
        (todo.stretch.end - todo.stretch.start) * todo.size.trained * s.share * s.tokens
        for todo, s in both
    ]

    def total(values: Sequence[float], errors: Callable[[Known], Errors]) -> Estimate:
        found = _sum(todos, known, values, errors, lambda size: size.pair)
        # An assumed length is a share of the longest, which none exceeds.
        return found if found.n else found._replace(high=min(found.high, found.value / USED))

    all_drawn = [a + b for a, b in zip(given, drawn, strict=True)]
    return Tokens(
        total(all_drawn, lambda one: one.lengths), total(given, lambda one: one.lengths),
        total(trained, lambda one: one.trained),
    )  # fmt: skip
