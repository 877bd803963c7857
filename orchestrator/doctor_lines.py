"""What `banditgrid doctor` says: lines with a grade and a remedy, from checks that always end.

A check is a function that gives lines. Each runs beside the others and within a time of its own: a
host that is silent, or a check that breaks, is a line and neither a wait nor a traceback. Leaves
out what is checked (`doctor.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from grids.errors import InputError
from orchestrator.marks import redacted

READY: Final = "ready"
NOTE: Final = "note"  # not needed by these grids, or could be better
FAULT: Final = "fault"
UNCHECKED: Final = "not checked"  # for a fault that another line tells
REMEDIES: Final = {  # of messages that tell none
    "grids": "correct the file",
    "data": "mend the file, or copy it again",
    "plug-ins": "mend the package",
    "ray": "correct --address",
    "mlflow": "correct --tracking-uri",
}


class Line(NamedTuple):
    """One finding. All but those that are ready end with what to do."""

    check: str
    grade: str
    told: str
    remedy: str = ""

    def row(self) -> dict[str, str]:
        """For programs."""
        return self._asdict()


class Check(NamedTuple):
    """Something to look at; `seconds` is what it may take."""

    name: str
    look: Callable[[], Iterable[Line]]
    seconds: float


def ready(check: str, told: str) -> Line:
    return Line(check, READY, redacted(told))


def note(check: str, told: str, remedy: str) -> Line:
    return Line(check, NOTE, redacted(told), remedy)


def fault(check: str, told: str, remedy: str) -> Line:
    return Line(check, FAULT, redacted(told), remedy)


def unchecked(check: str, because: str) -> Line:
    return Line(check, UNCHECKED, because)


def of_error(check: str, error: InputError, grade: str = FAULT) -> Line:
    """The line of a message for people: what is wrong, a semicolon, what to do. A message without
    a semicolon says what is wrong alone: what to do is the check's."""
    told, _, remedy = redacted(error).partition("; ")
    return Line(check, grade, told, remedy or REMEDIES.get(check, "correct it"))


def lines_of(rows: Iterable[Any]) -> list[Line]:
    """Lines that came as JSON, from another machine."""
    return [Line(**row) for row in rows]


def broken(lines: Iterable[Line]) -> bool:
    return any(line.grade == FAULT for line in lines)


def gather(checks: Sequence[Check]) -> tuple[list[Line], bool]:
    """The lines of all checks, in their order; and whether one of them is still at it.

    Whoever gets True should end the process without waiting for its threads.
    """
    found: dict[int, list[Line]] = {}
    began = time.monotonic()
    threads = [
        threading.Thread(target=_look, args=(check, found, place), daemon=True)
        for place, check in enumerate(checks)
    ]
    for thread in threads:
        thread.start()
    lines, late = [], False
    for place, (check, thread) in enumerate(zip(checks, threads, strict=True)):
        thread.join(max(0.0, began + check.seconds - time.monotonic()))
        if place not in found:
            late = True
            lines.append(_late(check))
        lines += found.get(place, [])
    return lines, late


def _look(check: Check, found: dict[int, list[Line]], place: int) -> None:
    try:
        made = list(check.look())
    except InputError as error:
        made = [of_error(check.name, error)]
    except ModuleNotFoundError as error:  # the line of the packages names it
        made = [unchecked(check.name, f"the package {error.name} is not installed")]
    except Exception as error:  # a check must not take the others with it
        told = f"this check broke: {type(error).__name__}: {_first(error)}"
        made = [fault(check.name, told, "report it with this line; the other lines hold")]
    found[place] = made


def _first(error: Exception) -> str:
    return (redacted(error).strip().splitlines() or ["no more is told"])[0][:300]


def _late(check: Check) -> Line:
    told = f"did not end within {check.seconds:.0f} s: a host, or a file system, is silent"
    return fault(check.name, told, "look whether it answers at all, or give --timeout more seconds")
