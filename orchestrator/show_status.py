"""Where every cell of a store stands: rows for programs, tables for people.

A study of many cells is told in a terminal by what needs eyes, and by counts. Leaves out where the
numbers come from (`ledger.py`, `holding.py`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from grids.outcome import DAMAGED, FAILED, RUNNING
from grids.paths import Store
from orchestrator.attempts import failures
from orchestrator.holding import Worker, asked_to_leave, seconds_left, worker_of
from orchestrator.ledger import DONE, STATES, Standing, cell_keys, planned, standing, studies
from orchestrator.plan import Plan
from orchestrator.show import bytes_for_people, counted, duration, table
from workers.lease import Watch

Row = dict[str, Any]

MANY: Final = 60  # cells of a study, above which a terminal is shown what needs eyes
MOST_ROWS: Final = 50  # of those
WORTH_A_ROW: Final = (RUNNING, FAILED, DAMAGED)


# ---- for programs


def status_rows(store: Store, names: Iterable[str] | None = None) -> list[Row]:
    """Every cell that the store knows of, of all its studies or of those named."""
    rows = []
    for name in studies(store) if names is None else names:
        study, looks = store.study(name), _Looks(store)
        known: dict[str, list[tuple[str, Row]]] = defaultdict(list)
        for grid, cells in planned(study).items():
            for key, cell in cells.items():
                known[key].append((grid, cell))
        for key in [*known, *(key for key in cell_keys(study) if key not in known)]:
            wanted = [cell for _, cell in known.get(key, ())]
            row = {
                "study": name, "key": key, "label": wanted[0]["label"] if wanted else key,
                "grids": [grid for grid, _ in known.get(key, ())],
                "rounds": max((cell["rounds"] for cell in wanted), default=None),
            }  # fmt: skip
            rows.append(looks.complete(row, wanted[0]["eval_key"] if wanted else None))
    return rows


def plan_rows(plan: Plan, store: Store) -> list[Row]:
    """The cells of grids that were named."""
    looks = _Looks(store)
    rows = []
    for work in plan.works:
        cell = work.cell
        row = {
            "study": work.study, "key": cell.key, "label": cell.label, "grids": list(work.grids),
            "rounds": cell.rounds,
        }  # fmt: skip
        rows.append(looks.complete(row, cell.eval_key))
    return rows


class _Looks:
    """One look at a store."""

    def __init__(self, store: Store) -> None:
        self._store, self._watch = store, Watch()
        self._leaving: dict[str, str | None] = {}  # study -> why all of its cells are to be left

    def complete(self, row: Row, eval_key: str | None) -> Row:
        """A row with where its cell stands, who has it, and what became of it before.

        `failed_attempts` counts those that failed or fell silent; `leaving` says why its worker
        was asked to leave.
        """
        paths = self._store.study(row["study"]).cell(row["key"])
        found, worker = standing(paths, row["rounds"], eval_key), None
        leaving, failed = None, 0
        if found.state not in DONE:
            try:
                worker = worker_of(paths, self._watch)
            except OSError:
                pass  # the standing says that the cell cannot be read
            failed = failures(paths)
            leaving = asked_to_leave(paths) or self._study_leaving(row["study"])
        found = _with_worker(found, worker)
        running = worker if found.state == RUNNING else None
        left = seconds_left(paths, found.round, row["rounds"]) if running else None
        told = asdict(found) | _of_worker(running) | {"seconds_left": left}
        told |= {"failed_attempts": failed, "leaving": leaving if running else None}
        return row | {name: _finite(value) for name, value in told.items()}

    def _study_leaving(self, study: str) -> str | None:
        if study not in self._leaving:
            self._leaving[study] = asked_to_leave(self._store.study(study))
        return self._leaving[study]


def _with_worker(found: Standing, worker: Worker | None) -> Standing:
    """Running, where a worker is at it; its silence is a reason."""
    if worker is None or found.state == DAMAGED:
        return found
    about = asdict(found)
    if worker.alive:
        return Standing(**about | {"state": RUNNING, "reason": None})
    if found.state == FAILED:
        return found
    silent = worker.silent_seconds
    told = "" if silent is None else f" for {duration(silent)}"
    return Standing(**about | {"reason": f"no sign of life from {worker.host or '?'}{told}"})


def _of_worker(worker: Worker | None) -> Row:
    names = ("host", "pid", "gpus", "rows_per_pass", "peak_rss_bytes", "peak_gpu_bytes")
    told: Row = {name: getattr(worker, name, None) for name in names}
    return told | {"beat_seconds_ago": worker.silent_seconds if worker else None}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


# ---- for people


def show_status(
    rows: Sequence[Row], out: Console, everything: bool = False,
    left: Mapping[str, Row] | None = None,
) -> None:  # fmt: skip
    """Study by study the count of each state, what is left, and a line a cell.

    In a terminal a study of more than `MANY` cells has lines for those that run, failed or are
    damaged, and counts of the others by arm, unless `everything` is asked for.
    """
    for study in dict.fromkeys(row["study"] for row in rows):
        here = [row for row in rows if row["study"] == study]
        out.print(Text(f"study {study}: {counted(len(here), 'cell')}, {_counts(here)}", "bold"))
        for line in (left or {}).get(study, {}).get("told", ()):
            out.print(Text(line), soft_wrap=True)
        if everything or not out.is_terminal or len(here) <= MANY:
            _show_cells(here, out)
        else:
            _show_many(here, out)


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row["state"] for row in rows)
    return ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])


def _show_many(rows: Sequence[Row], out: Console) -> None:
    eyes = [row for state in WORTH_A_ROW for row in rows if row["state"] == state]
    if eyes:
        _show_cells(eyes[:MOST_ROWS], out)
        out.print()
    arms: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        arms[row["label"].rsplit(" s", 1)[0]].append(row)
    states = [state for state in STATES if any(row["state"] == state for row in rows)]
    made = table("arm", "#cells", *(f"#{state}" for state in states))
    for arm, own in arms.items():
        counts = Counter(row["state"] for row in own)
        told = [f"{counts[state]:,}" if counts[state] else "" for state in states]
        made.add_row(Text(arm), f"{len(own):,}", *told)
    out.print(made)
    more = f"{len(eyes) - MOST_ROWS} more need eyes; " if len(eyes) > MOST_ROWS else ""
    out.print(Text(f"{more}--all lists every cell"))


def _show_cells(rows: Sequence[Row], out: Console) -> None:
    """One line a cell; columns of workers only where there is one."""
    running = any(row["state"] == RUNNING for row in rows)
    workers = ("#left", "host", "#GPU", "#memory") if running else ()
    columns = ("cell", "state", "#round", "#Pass@1", *workers, "grids", "reason")
    lines = [_line(row, running) for row in rows]
    if len(rows) > MANY:
        _print_aligned(columns, lines, out)
    else:
        made = table(*columns)
        for line in lines:
            made.add_row(*map(Text, line))
        out.print(made)
    for row in rows:
        if row["state"] == DAMAGED:
            out.print(Text(f"{row['label']}: {row['reason']}", "red"), soft_wrap=True)


def _line(row: Row, running: bool) -> list[str]:
    at = "" if row["round"] is None else f"{row['round']}/{row['rounds'] or '?'}"
    scored = "" if row["test_pass"] is None else f"{row['test_pass']:.3f}"
    workers = _worker(row) if running else ()
    return [row["label"], row["state"], at, scored, *workers, ", ".join(row["grids"]), _reason(row)]


def _print_aligned(columns: Sequence[str], lines: Sequence[list[str]], out: Console) -> None:
    """As a table, which would take seconds for thousands of rows."""
    head = [column.lstrip("#") for column in columns]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    right = [column.startswith("#") for column in columns]
    texts = []
    for line in (head, *lines):
        cells = zip(line, widths, right, strict=True)
        text = "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells)
        texts.append(text.rstrip())
    out.out("\n".join(texts), highlight=False)


def _worker(row: Row) -> list[str]:
    left, peak = row["seconds_left"], row["peak_gpu_bytes"] or row["peak_rss_bytes"]
    return [
        "" if left is None else duration(left),
        row["host"] or "",
        "" if row["gpus"] is None else f"{row['gpus']:g}",
        "" if peak is None else bytes_for_people(peak),
    ]


def _reason(row: Row) -> str:
    """What a person should know of a cell, in one line."""
    told = ["see below"] if row["state"] == DAMAGED else []
    if row["reason"] and row["state"] != DAMAGED:
        told.append(row["reason"].split("\n")[0][:60])
    if row["leaving"]:
        told.append(f"asked to leave: {row['leaving']}")
    if row["rows_per_pass"]:
        told.append(f"{row['rows_per_pass']} rows a pass")
    if row["failed_attempts"] and row["state"] not in DONE:
        told.append(counted(row["failed_attempts"], "failed attempt"))
    return "; ".join(told)
