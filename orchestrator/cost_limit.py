"""`--max-gpu-hours`: what a run's attempts have taken, and the end of handing out when it is much.

An attempt takes its share of a GPU from its worker's start to its end; without a GPU a slot counts
as one. At the limit every cell is asked to save a checkpoint and leave, as by `banditgrid stop
--cell`, and cells of other drivers are left alone. What attempts take while they leave is over the
limit. Leaves out what earlier runs took.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from grids.outcome import STOPPED
from orchestrator import stopping
from orchestrator.queue import Queue

Where = tuple[str, str]


class Limit:
    """Counts GPU-hours of the attempts of one run."""

    def __init__(
        self,
        hours: float,
        share: Callable[[Where], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hours, self._share, self._clock = hours, share, clock
        self._ended = 0.0  # GPU-seconds
        self._running: dict[Where, float] = {}  # since when

    def started(self, where: Where) -> None:
        self._running.setdefault(where, self._clock())

    def ended(self, where: Where) -> None:
        began = self._running.pop(where, None)
        if began is not None:
            self._ended += (self._clock() - began) * self._share(where)

    @property
    def taken(self) -> float:
        """GPU-hours of finished and of running attempts."""
        now = self._clock()
        running = sum((now - began) * self._share(w) for w, began in self._running.items())
        return (self._ended + running) / 3600

    def look(self, queue: Queue) -> None:
        """Where the limit is reached: nothing more is handed out, and every cell is to leave."""
        if queue.spent is None and self.taken < self.hours:
            return
        queue.spent = self.taken
        for item in queue.given():
            if not item.paths.leave.exists():
                stopping.ask(item.paths, STOPPED)
