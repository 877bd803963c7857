"""When cells that are handed out in an order are done, on slots or on GPUs that they share.

Each cell starts as soon as there is room for it, and none overtakes the one before it, as in
`queue.py`. Leaves out how long cells take (`cost_fit.py`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

ENOUGH = 1e-9  # shares are sums of fractions


class Room(NamedTuple):
    """Where cells run: `machines` with `each` of room, and at most so many cells at once."""

    machines: int
    each: float = 1.0
    at_once: int | None = None


class Schedule(NamedTuple):
    """Seconds until the last cell is done, and the cells that followed each other until then."""

    seconds: float
    chain: tuple[int, ...]
    most: int  # cells at once


def schedule(seconds: Sequence[float], shares: Sequence[float], room: Room) -> Schedule:
    """The end of all cells, in the order given; a share above a machine's room takes several."""
    free, now, freed = [room.each] * room.machines, 0.0, None
    running: list[tuple[float, int, list[int], float]] = []
    ends, before, most = [0.0] * len(seconds), [-1] * len(seconds), 0
    for i, (lasts, share) in enumerate(zip(seconds, shares, strict=True)):
        count = min(room.machines, max(1, math.ceil(share / room.each - ENOUGH)))
        share = min(share, room.each)
        while (where := _place(free, share, count)) is None or len(running) == room.at_once:
            now, freed, machines, given = heapq.heappop(running)
            for machine in machines:
                free[machine] += given
        for machine in where:
            free[machine] -= share
        ends[i], before[i] = now + lasts, -1 if freed is None else freed
        heapq.heappush(running, (ends[i], i, where, share))
        most = max(most, len(running))
    if not ends:
        return Schedule(0.0, (), 0)
    chain = [max(range(len(ends)), key=ends.__getitem__)]
    while before[chain[-1]] >= 0:
        chain.append(before[chain[-1]])
    return Schedule(max(ends), tuple(reversed(chain)), most)


def _place(free: Sequence[float], share: float, count: int) -> list[int] | None:
    """So many machines with room for a share each."""
    found = [i for i, left in enumerate(free) if left >= share - ENOUGH][:count]
    return found if len(found) == count else None
