"""Who is at work on a cell, for people: what its lease and its timings tell.

One look at a lease compares its last beat with the clock of whoever looks, which may be off: good
enough to be shown, and nothing that decides who gets a cell (`workers.lease.Watch` does).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grids.paths import CellPaths, StudyPaths, read_mark
from workers import lease

TAIL_BYTES: Final = 1 << 14  # of timings: some dozen rounds


@dataclass(frozen=True)
class Worker:
    """The worker that has a cell, or that had it and never let go.

    Attributes:
        alive: as far as one look can tell.
        silent_seconds: since its last beat; None before the first.
        gpus: share of a GPU; None where there is none, or before the worker has told.
        rows_per_pass: where it was lowered, as after memory ran out.
    """

    alive: bool
    host: str
    pid: int
    silent_seconds: float | None
    gpus: float | None
    rows_per_pass: int | None
    peak_rss_bytes: int | None
    peak_gpu_bytes: int | None


def worker_of(paths: CellPaths, watch: lease.Watch) -> Worker | None:
    """None where nobody has the cell. Raises `OSError` where the store does not answer."""
    holder = lease.read(paths)
    if holder is None or holder.released:
        return None
    silent = holder.seconds_ago
    heard = silent is None or silent < lease.LEASE_SECONDS
    return Worker(
        heard and not watch.is_free(paths, holder), holder.host, holder.pid, silent, holder.gpus,
        holder.rows_per_pass, holder.peak_rss_bytes, holder.peak_gpu_bytes,
    )  # fmt: skip


def asked_to_leave(place: CellPaths | StudyPaths) -> str | None:
    """Why the cell, or all of the study's, should be left: `stopped`, `preempted`; or None."""
    request = read_mark(place.leave)
    return None if request is None else str(request.get("why", "stopped"))


def seconds_left(paths: CellPaths, round: int | None, rounds: int | None) -> float | None:
    """By the mean time of the newest rounds, evaluations among them; None before the first."""
    took = _round_seconds(paths.timings)
    if round is None or rounds is None or not took:
        return None
    return sum(took) / len(took) * max(0, rounds - round)


def _round_seconds(timings: Path) -> list[float]:
    """Seconds of the newest rounds; what cannot be read is left out."""
    try:
        with timings.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")[(1 if size > TAIL_BYTES else 0) : -1]
    except OSError:
        return []
    seconds = [_seconds(line) for line in lines]
    return [sum(s.get(part, 0.0) for part in ("all", "evaluate")) for s in seconds if "all" in s]


def _seconds(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line)["seconds"])
    except (ValueError, TypeError, KeyError):
        return {}
