"""What a study's finished runs took, by phase, read from the files that their workers left.

Newest first, and at most so many runs and bytes, so that a large study is read in a moment. A run
whose files cannot be read, or contradict each other, is left out and counted; so is one on other
hardware than most. Leaves out what follows from it (`cost_fit.py`).
"""

from __future__ import annotations

import heapq
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

from grids import outcome
from grids.cell import Cell
from grids.paths import CellPaths, StudyPaths, read_lines
from orchestrator.cost_sizes import USED, Seen, Sized, Stretch, generated, sized
from orchestrator.ledger import DONE, cell_keys

MOST_RUNS: Final = 120
MOST_BYTES: Final = 8 << 20
CPU: Final = "cpu"
# Phases of `timings.jsonl`, by what they are told as here; what is left of a round is `other`.
PHASES_OF: Final = {
    "generate": "generate", "update": "update", "reference": "score", "behaviour": "score",
    "look closer": "evaluate",
}  # fmt: skip


class Run(NamedTuple):
    """A finished cell: its settings, and seconds by phase.

    `wall` is of its one attempt, None where it had several or did not tell; `stretch.fresh`
    whether that attempt was the first of its process.
    """

    size: Sized
    stretch: Stretch
    seen: Seen
    seconds: dict[str, float]
    wall: float | None
    device: str
    gpus: float | None


@dataclass(frozen=True)
class Runs:
    """Finished runs of one kind of hardware, newest first."""

    runs: tuple[Run, ...] = ()
    device: str | None = None
    elsewhere: int = 0  # on other hardware, left out
    damaged: int = 0  # could not be read, left out

    def seen(self, size: Sized) -> Seen:
        """Lengths and shares for a cell: of runs like it, else of the study, else assumed.

        Of other models and data sets what is taken is the share of the longest allowed.
        """
        near = [run for run in self.runs if run.size.pair == size.pair] or self.runs
        used = fmean(r.seen.tokens / r.size.response for r in near) if near else USED
        signals = [run for run in self.runs if not run.size.always]
        own = [r for r in signals if (r.size.pair, r.size.advantage) == (size.pair, size.advantage)]
        alike = own or [r for r in signals if r.size.advantage == size.advantage]
        share = fmean(run.seen.share for run in alike) if alike else 1.0
        return Seen(min(1.0, used) * size.response, share)


def finished_runs(study: StudyPaths, on_gpus: bool | None = None) -> Runs:
    """Newest runs of the hardware that most of them had; `on_gpus` asks for one kind of it."""
    read, damaged, left = [], 0, MOST_BYTES
    for paths in _newest(study):
        if left <= 0:
            break
        try:
            left -= paths.timings.stat().st_size
            read.append(_run(paths, study))
            left -= 0 if read[-1].size.always else paths.journal.stat().st_size
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            damaged += 1
    fitting = [run for run in read if on_gpus in (None, run.device != CPU)]
    if not fitting:
        return Runs((), None, len(read), damaged)
    device = Counter(run.device for run in fitting).most_common(1)[0][0]
    kept = tuple(run for run in fitting if run.device == device)
    return Runs(kept, device, len(read) - len(kept), damaged)


def _newest(study: StudyPaths) -> list[CellPaths]:
    times, cells = [], f"{study.cells}/"
    for key in cell_keys(study):
        try:
            times.append((os.stat(f"{cells}{key}/{outcome.DONE_FILE}").st_mtime, key))
        except OSError:
            continue
    return [study.cell(key) for _, key in heapq.nlargest(MOST_RUNS, times)]


def _run(paths: CellPaths, study: StudyPaths) -> Run:
    """Raises `ValueError` and its like where the files do not say what a run took."""
    done = _json(paths.done)
    if done["status"] not in DONE:
        raise ValueError("neither finished nor diverged")
    cell = Cell.model_validate_json(paths.cell.read_text(encoding="utf-8"))
    lines = read_lines(paths.timings)
    rounds = [line["round"] for line in lines]
    last = done["diverged_round"] or done["rounds"]
    if rounds != list(range(1, last + 1)):
        raise ValueError("timings of some rounds are missing")
    size, seconds = sized(cell), _by_phase(lines)
    tries = read_lines(paths.attempts)
    only = tries[0] if len(tries) == 1 and not tries[0].get("from_round") else {}
    made_base = bool(only) and _made_base(study, cell, only)
    fills, fresh = cell.replay_fill == "base", bool(only.get("fresh"))
    stretch = Stretch(0, last, fills, made_base, fresh, done["rounds"])
    tokens = done["generated_tokens"] / generated(size, stretch)
    seen = Seen(_positive(tokens), 1.0 if size.always else _share(paths, size, last, tokens))
    device = str(_json(paths.provenance).get("device", CPU))
    return Run(size, stretch, seen, seconds, _wall(only), device, only.get("gpus"))


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def _by_phase(lines: Iterable[dict[str, Any]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for line in lines:
        seconds = line["seconds"]
        inside = {name: seconds.get(name, 0.0) for name in PHASES_OF}
        for name, value in inside.items():
            total[PHASES_OF[name]] += _told(value)
        total["evaluate"] += _told(seconds.get("evaluate", 0.0))
        total["other"] += max(0.0, _told(seconds["all"]) - sum(inside.values()))
    return dict(total)


def _told(seconds: float) -> float:
    if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
        raise ValueError(f"{seconds!r} is no number of seconds")
    return seconds


def _positive(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no mean length")
    return value


def _share(paths: CellPaths, size: Sized, rounds: int, tokens: float) -> float:
    """Of the rows that could take gradient, those that did, by their tokens."""
    lines = read_lines(paths.journal)[1:]
    trained = sum(line.get(outcome.TRAINED_TOKENS, 0.0) for line in lines)
    return float(min(1.0, trained / (size.trained * rounds * tokens)))


def _wall(only: dict[str, Any]) -> float | None:
    """Of the only attempt; older attempts told it to the second alone, and not what they began."""
    return _told(only["seconds"]) if "fresh" in only else None


def _time(attempt: dict[str, Any], name: str) -> float:
    return datetime.fromisoformat(attempt[name]).timestamp()


def _made_base(study: StudyPaths, cell: Cell, attempt: dict[str, Any]) -> bool:
    """Whether the base's shared evaluation was written during the attempt: by it, or beside it."""
    try:
        made = (study.shared / cell.base_key / "metrics.json").stat().st_mtime
    except OSError:
        return False
    return _time(attempt, "began") <= made <= _time(attempt, "ended") + 1
