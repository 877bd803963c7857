"""Marks beside a cell's journal that tell how much of it MLflow has.

A mark spares a run with nothing to do from asking MLflow, or loading it, at all. Its `round` says:
of the lines up to it, all was sent that could be, which are evaluations, and means of the windows
that it completes. It is a shortcut and never the truth: without it everything is sent again, which
comes to the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container
from pathlib import Path
from typing import Final

from grids.paths import CellPaths, read_lines, read_mark
from orchestrator.means import last_whole
from orchestrator.plan import Work

MARK_FILE: Final = "tracked.json"
SHOWN: Final = 1  # raised when runs get more to show than numbers, so that old ones are made level


def redacted(text: object) -> str:
    """The text without the user and password of any address in it."""
    return re.sub(r"//[^/@\s]*@", "//***@", str(text))


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite address, or None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def place(uri: str) -> str:
    """Names one tracking store in a mark, without its credentials.

    A SQLite file that was deleted and made anew is another place.
    """
    path = sqlite_path(uri)
    made = path.stat().st_ino if path is not None and path.exists() else ""
    return hashlib.sha256(f"{redacted(uri)} {made}".encode()).hexdigest()[:16]


def mark_path(paths: CellPaths) -> Path:
    return paths.directory / MARK_FILE


def mark_of_done(paths: CellPaths) -> str:
    return hashlib.sha256(paths.done.read_bytes()).hexdigest()[:16]


def behind(paths: CellPaths, uri: str, run_id: str) -> list[dict[str, float]]:
    """Journal lines of which the run may lack something; all where the mark is another run's.

    They begin with a window's first, however much of the window was there when the mark was made:
    its mean is over all of its lines.
    """
    mark = read_mark(mark_path(paths)) or {}
    same = mark.get("place") == place(uri) and mark.get("run_id") == run_id
    sent = last_whole(mark["round"]) if same else -1
    return [line for line in read_lines(paths.journal) if line["round"] > sent]


def marked_run(paths: CellPaths, uri: str) -> str | None:
    """The id of the run that had the cell's journal before; None where the mark is of elsewhere."""
    mark = read_mark(mark_path(paths)) or {}
    return mark["run_id"] if mark.get("place") == place(uri) else None


def is_level(work: Work, paths: CellPaths, uri: str, deleted: Container[str] = frozenset()) -> bool:
    """A done cell's run holds all that the cell's files do, as far as the mark can tell.

    The mark spares a run of a large study from asking MLflow for each cell. Of runs that somebody
    deleted, `deleted` has the ids.
    """
    mark = read_mark(mark_path(paths)) or {}
    return (
        mark.get("place") == place(uri)
        and mark.get("done") == mark_of_done(paths)
        and mark.get("shown") == SHOWN
        and set(work.grids) <= set(mark.get("grids", ()))
        and mark.get("run_id") not in deleted
    )
