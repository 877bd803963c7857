"""One process of a cell that several train: `python -m workers.crew_member TASK RANK DESCRIPTOR`.

It tells the process that started it, by that descriptor, what the cell tells after each round, how
it ended, or why it failed; answers come by its standard input, and it ends when that does. Leaves
out who starts it and why (`crew.py`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Final

from grids.cell import Cell
from grids.errors import InputError
from grids.outcome import Progress
from grids.paths import CellPaths
from workers import memory
from workers.engine_check import EngineError, NoRoomError
from workers.writing import Lost

# Errors that keep their kind on their way; any other is a RuntimeError, or of memory.
KINDS: Final = (NoRoomError, InputError, EngineError, Lost)


class _Line:
    """What a process says to the one that started it, and hears from it."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        self._answers: queue.Queue[bool] = queue.Queue()
        self._peak = memory.Peak()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for answer in sys.stdin:
            self._answers.put(answer.strip() == "leave")
        os._exit(1)  # nobody is there any more

    def say(self, **told: Any) -> None:
        self._file.write(json.dumps(told) + "\n")
        self._file.flush()

    def report(self, progress: Progress) -> bool:
        """`run_cell`'s report, in the first process."""
        self.say(round=progress, gpu_bytes=self._peak.read()["peak_gpu_bytes"])
        return self._answers.get()


def main() -> None:
    """One process of a cell."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)  # who started us decides
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rank, line = int(sys.argv[2]), _Line(int(sys.argv[3]))
    try:
        done = _work(task, rank, line)
    except BaseException as error:
        line.say(
            failed=time.time(), kind=kind_of(error), text=_text(error),
            traceback=traceback.format_exc(),
        )  # fmt: skip
        _end(1)
    line.say(done=done)
    _end(0)


def _end(code: int) -> None:
    """At an ordinary end libraries may wait for processes that are gone, and for this one's thread
    that reads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _work(task: dict[str, Any], rank: int, line: _Line) -> dict[str, Any] | None:
    from workers import ranks
    from workers.run import attempt

    cell = Cell.model_validate_json(task["cell"])
    ranks.join(rank, task["count"], Path(task["meeting"]))
    lent = ranks.Lent(CellPaths(Path(task["directory"])), task["epoch"])
    return attempt(cell, lent, line.report, Path(task["shared"]))


def kind_of(error: BaseException) -> str:
    """The name by which an error goes on its way."""
    known = next((kind for kind in KINDS if isinstance(error, kind)), None)
    if known is not None:
        return known.__name__
    return MemoryError.__name__ if memory.is_out_of_memory(error) else RuntimeError.__name__


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, KINDS) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
