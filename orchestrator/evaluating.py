"""`banditgrid evaluate`: kept weights of finished cells under a new evaluation, placed by Ray.

What is to be done is told before anything starts: cells whose weights are gone, a name that means
something else already. A few workers score the cells one after the other; of those that share a
base, one goes first and leaves its base's scores to the others. Leaves out scoring itself
(`workers.rescore`) and what Ray is told (`scorers.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_of
from typing import Any

from rich.console import Console

from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Grid
from grids.outcome import FINISHED, TEST_PASS
from grids.paths import CellPaths, Store
from orchestrator import keeping, prepare
from orchestrator.attempts import checkpoint_round
from orchestrator.change import Change, cells_of, named_few
from orchestrator.driver import INTERRUPTED, Settings, termination_as_interrupt
from orchestrator.ledger import DONE, state_of
from workers import named

SCORED = "scored"


@dataclass(frozen=True)
class Target:
    """A cell whose weights are to be scored.

    Attributes:
        cell: as it was trained.
        asked: as it is to be scored.
    """

    study: str
    cell: Cell
    asked: Cell
    paths: CellPaths


@dataclass
class Chosen:
    """What becomes of the cells that grids name; lists hold labels."""

    todo: list[Target] = field(default_factory=list)
    there: list[str] = field(default_factory=list)  # scored so already
    unfinished: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)  # their weights
    other: list[str] = field(default_factory=list)  # the name stands for something else


@dataclass(frozen=True)
class Ended:
    """What became of one target: scored, held, or failed with a reason."""

    target: Target
    how: str
    told: str = ""
    record: dict[str, Any] = field(default_factory=dict)


def evaluate(
    grids: Sequence[Grid], store: Store, change: Change, name: str, settings: Settings,
    out: Console, *, skip_gone: bool = False, replace: bool = False,
) -> int:  # fmt: skip
    """Score every finished cell of the grids; the exit code.

    Raises `InputError` before anything starts where the input is wrong.
    """
    named.checked_name(name)
    chosen = choose(grids, store, change, name)
    _refuse(chosen, name, store, skip_gone, replace)
    if chosen.todo:
        _preflight(chosen.todo, settings.address is None)
        prepare.identify(store)
        chosen.todo = _with_kept_plugins(chosen.todo, store)
    show_chosen(chosen, name, out)
    ended: list[Ended] = []
    interrupted = False
    try:
        with termination_as_interrupt():
            _score(chosen.todo, name, store, settings, out, ended)
    except KeyboardInterrupt:
        interrupted = True
    show_ended(ended, chosen, name, interrupted, out)
    if interrupted:
        return INTERRUPTED
    return int(any(end.how != SCORED for end in ended))


def choose(grids: Iterable[Grid], store: Store, change: Change, name: str) -> Chosen:
    """Look up in the store what is to be done. Raises `InputError` for a change that is none."""
    chosen = Chosen()
    for (study, key), cell in cells_of(grids).items():
        paths, label = store.study(study).cell(key), cell.label
        state, round = state_of(paths, cell.rounds, None), checkpoint_round(paths)
        if state not in DONE:
            chosen.unfinished.append(f"{label} ({state})")
            continue
        asked = change.of(cell)
        form = named.asked_of_weights(asked)
        kept = named.kept(paths, name)
        if kept is not None and named.is_same(kept, form, {"round": round or kept["round"]}):
            chosen.there.append(label)
            continue
        if kept is not None and kept.get("asked") != form:
            chosen.other.append(label)
        if round is None:
            chosen.gone.append(label)
        elif state == FINISHED and round != cell.rounds:
            chosen.gone.append(f"{label} (kept: round {round}; asked: {cell.rounds})")
        else:
            chosen.todo.append(Target(study, cell, asked, paths))
    return chosen


def _refuse(chosen: Chosen, name: str, store: Store, skip_gone: bool, replace: bool) -> None:
    if chosen.other and not replace:
        raise InputError(
            f"evaluation {name!r} is there already, of other settings, in "
            f"{named_few(chosen.other)}; choose another --name, or make it anew with --replace"
        )
    if chosen.gone and not skip_gone:
        raise InputError(
            f"the weights are gone of {named_few(chosen.gone)}; scoring anew needs them: train "
            "these cells again with `keep: weights` (delete their folders in "
            f"{store.root} and run the grid), or score the others with --skip-gone"
        )
    if not (chosen.todo or chosen.there):
        told = named_few([*chosen.unfinished, *chosen.gone]) if chosen.unfinished else "no cell"
        raise InputError(
            f"nothing to score in the store {store.root}: none of the cells is finished ({told}); "
            "`banditgrid run` the grids first, or name the right store with --store"
        )


def _preflight(todo: Sequence[Target], trains_here: bool) -> None:
    """Find models and data, and check lengths, before anything starts."""
    from workers import preflight

    preflight.check((preflight.scorable(target.asked) for target in todo), trains_here)
    keeping.check(target.asked for target in todo)


def _with_kept_plugins(todo: Sequence[Target], store: Store) -> list[Target]:
    """The targets with their plug-ins as their studies keep them, which all hosts see."""
    places = {
        (target.study, spec.path): keeping.keep_one(store.study(target.study), spec)
        for target in todo
        for spec in target.asked.plugin_specs
    }
    kept = keeping.Kept(places)
    return [replace_of(t, asked=kept.cell(t.study, t.asked)) for t in todo]


def _score(
    todo: Sequence[Target], name: str, store: Store, settings: Settings, out: Console,
    ended: list[Ended],
) -> None:  # fmt: skip
    if not todo:
        return
    from orchestrator import scorers

    out.print("starting Ray and its workers: the first scores come in about half a minute")
    for end in scorers.scored(todo, name, store, settings):
        ended.append(end)
        out.print(_line(end, len(ended), len(todo)), markup=False, soft_wrap=True)


def _line(end: Ended, count: int, total: int) -> str:
    told = end.told.splitlines()[0] if end.told else ""
    if end.how == SCORED:
        base, final = (end.record[phase].get(TEST_PASS) for phase in ("base", "final"))
        told = f"test Pass@1 {base:.3f} -> {final:.3f} at round {end.record['round']}"
    return f"[{count}/{total}] {end.target.cell.label}: {end.how}: {told}"


def show_chosen(chosen: Chosen, name: str, out: Console) -> None:
    """What will be done, and which cells are left out."""
    out.print(f"evaluation {name}: {len(chosen.todo)} cells to score", markup=False)
    if chosen.there:
        out.print(f"there already: {len(chosen.there)}")
    for what, labels in (("not finished", chosen.unfinished), ("weights gone", chosen.gone)):
        if labels:
            out.print(f"left out, {what}: {named_few(labels)}", markup=False, soft_wrap=True)


def show_ended(
    ended: Sequence[Ended], chosen: Chosen, name: str, interrupted: bool, out: Console
) -> None:
    """How many were scored; each that was not, with its reason."""
    scored = sum(end.how == SCORED for end in ended)
    out.print(f"{scored} of {len(chosen.todo)} cells scored as {name}", markup=False)
    for end in ended:
        if end.how != SCORED:
            line = f"{end.how}: {end.target.cell.label}: {end.told}"
            out.print(line, style="red", markup=False, soft_wrap=True)
    if interrupted or scored < len(chosen.todo):
        out.print("give the same command again to score what is left")
    elif scored:
        out.print(f"its tables: banditgrid tables GRID --evaluation {name}", markup=False)
