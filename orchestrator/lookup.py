"""The cell that a person means: by its key, the beginning of it, or its label.

Leaves out where a cell stands (`ledger.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from grids.errors import InputError, listed, nearest
from grids.paths import CellPaths, Store
from orchestrator.ledger import planned, studies

SHOWN = 5  # cells that a message names where several are meant


@dataclass(frozen=True)
class Found:
    """A cell of a store."""

    study: str
    key: str
    label: str  # its key, where nothing tells its label
    paths: CellPaths

    def __str__(self) -> str:
        return f"{self.label} ({self.key})"


def cells(store: Store, names: Iterable[str]) -> Iterator[Found]:
    """Every cell that was planned, or has a folder, in some studies."""
    for name in names:
        study = store.study(name)
        labels = {
            key: str(cell["label"])
            for grid in planned(study).values()
            for key, cell in grid.items()
        }
        folders = study.cells.iterdir() if study.cells.is_dir() else ()
        for key in [*labels, *sorted({f.name for f in folders} - labels.keys())]:
            yield Found(name, key, labels.get(key, key), study.cell(key))


def cell(store: Store, what: str, names: Iterable[str]) -> Found:
    """The one cell of some studies that is meant; `STUDY/` before it says of which.

    Raises `InputError` where there is none, or several.
    """
    names = list(names)
    study, _, rest = what.partition("/")
    if rest and study in names:
        names, what = [study], rest
    found = list(cells(store, names))
    exact = [one for one in found if what in (one.key, one.label)]
    meant = exact or [one for one in found if what and one.key.startswith(what)]
    if len(meant) == 1:
        return meant[0]
    if not meant:
        known = [one.label for one in found]
        raise InputError(
            f"no cell {what!r} in {_where(store, names)}; allowed: a key, the beginning of one, or "
            f"a label, as `banditgrid status` shows them{nearest(what, known)}"
        )
    told = "; ".join(f"{one.study}/{one.key} {one.label}" for one in meant[:SHOWN])
    more = f"; and {len(meant) - SHOWN} more" if len(meant) > SHOWN else ""
    raise InputError(f"{what!r} means {len(meant)} cells: {told}{more}; name one by its key")


def study(store: Store, name: str | None) -> str:
    """A study of the store; the only one where none is named. Raises `InputError` for another."""
    known = studies(store)
    if name is None and len(known) == 1:
        return known[0]
    if name in known:
        return str(name)
    if not known:
        raise InputError(
            f"no study in the store {store.root}; name the right store with --store, or its "
            "cluster with --address"
        )
    wrong = "name a study" if name is None else f"no study {name!r}"
    near = "" if name is None else nearest(name, known)
    raise InputError(f"{wrong} of the store {store.root}; allowed: {listed(known)}{near}")


def _where(store: Store, names: list[str]) -> str:
    told = f"study {names[0]}" if len(names) == 1 else "any study"
    return f"{told} of the store {store.root}"
