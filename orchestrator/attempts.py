"""How attempts at a cell ended: one line each in its `attempts.jsonl`, and `failed.json`.

An attempt is known by the epoch of its lease. A worker writes its own line; that of one who fell
silent is written by whoever takes over. Leaves out who gets a cell when (`queue.py`).
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from grids.outcome import ENGINE_DIED, FAILED, LOST, OUT_OF_MEMORY
from grids.paths import CellPaths, DamagedError, read_lines
from workers.lease import Held, Holder, Lease, held, now

# An attempt that ends so is tried again only so often.
FAILURES: Final = (FAILED, OUT_OF_MEMORY, ENGINE_DIED, LOST)

# Ways in which a trial ends without an attempt, or with one that need not be repeated.
HELD: Final = "held"  # another driver's worker has the cell
BLIND: Final = "blind"  # the worker's host does not see the store
MISTAKE: Final = "mistake"  # the cell failed by what a person can mend


class Result(TypedDict):
    """What a trial answers."""

    how: str  # as `Ending.how`, or one of the above
    reason: str


@dataclass(frozen=True)
class Ending:
    """How one attempt ended.

    Attributes:
        how: finished, diverged, failed, out_of_memory, engine_died, preempted, stopped or lost.
        reason: for people, one line first.
        trace: the traceback, for `failed.json`.
        told: what the worker knew beside that, fields of `workers.lease.Holder`.
        final: another try would end the same way.
    """

    how: str
    reason: str = ""
    trace: str = ""
    told: dict[str, Any] | None = None
    final: bool = False


def checkpoint_round(paths: CellPaths) -> int | None:
    """The round of the newest checkpoint; None where there is none."""
    names = (p.name for p in paths.checkpoint.glob("[0-9]*"))
    return max((int(name) for name in names if name.isdigit()), default=None)


def attempts(paths: CellPaths) -> list[dict[str, Any]]:
    """The lines so far, oldest first; a damaged file tells none."""
    try:
        return read_lines(paths.attempts)
    except (DamagedError, OSError):
        return []


def failures(paths: CellPaths) -> int:
    """How many attempts failed, or fell silent."""
    return sum(line.get("how") in FAILURES for line in attempts(paths))


def note(lease: Lease, ending: Ending) -> None:
    """Write the line of the attempt that holds the lease."""
    content = {
        "attempt": lease.epoch, "host": socket.gethostname(), "began": lease.began,
        "ended": now(), "to_round": checkpoint_round(lease.paths), "how": ending.how,
        "reason": ending.reason, **(ending.told or {}), **({"final": True} if ending.final else {}),
    }  # fmt: skip
    lease.append(lease.paths.attempts, [json.dumps(content) + "\n"], durable=True)


def note_lost(lease: Lease) -> None:
    """Write the line of the attempt before, where its worker did not."""
    before = lease.before
    if before is None or before.released or not before.began:
        return
    if any(line.get("attempt") == before.epoch for line in attempts(lease.paths)):
        return
    content = {
        "attempt": before.epoch, "host": before.host, "began": before.began, "ended": now(),
        "from_round": before.from_round, "to_round": checkpoint_round(lease.paths), "how": LOST,
        "reason": _silence(before), "rows_per_pass": before.rows_per_pass, "gpus": before.gpus,
        "peak_rss_bytes": before.peak_rss_bytes, "peak_gpu_bytes": before.peak_gpu_bytes,
    }  # fmt: skip
    lease.append(lease.paths.attempts, [json.dumps(content) + "\n"], durable=True)


def _silence(before: Holder) -> str:
    return (
        f"its worker (host {before.host}, process {before.pid}) fell silent: killed, out of "
        "memory, or its host lost"
    )


def mark_failed(lease: Lease, key: str, ending: Ending) -> None:
    """Leave `failed.json`: the next run tries the cell again."""
    content = {"key": key, "error": ending.reason, "traceback": ending.trace}
    lease.write_json(lease.paths.failed, content | {"attempts": failures(lease.paths)})


def give_up(paths: CellPaths, key: str, label: str, reason: str, stale: int | None) -> bool:
    """Mark a cell as failed whose worker could not do so; False where another has it."""
    try:
        with held(paths, label, stale=stale) as lease:
            note_lost(lease)
            mark_failed(lease, key, Ending(FAILED, reason))
    except Held:
        return False
    return True
