"""The process that makes reasoning-gym's questions and scores answers to them, line by line.

One JSON object a line comes in and one goes out. It is a process of its own, because a scorer may
run for ever, may evaluate what a model wrote, and may draw from generators that others use. It ends
itself when it has computed for too long, whatever it is in the midst of, and when its input ends.
Run by its path (`python -P`), so that it imports nothing of banditgrid. Leaves out what becomes of
an answer that it does not give (`reasoning.py`).
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

# A deadline is in seconds of its own computing, so that a busy machine takes none away; where it
# does not compute but hangs, so many more are left by the clock.
STUCK = 60.0
PREPARE_SECONDS = 300.0  # for the import, a part of the questions, or the item of an answer
MEMORY_BYTES = 8 << 30
# Length of every data set, because the items of some depend on it; some allow no larger one.
SIZE = 20_000


def main() -> None:
    """Answer requests until there are none."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a scorer's prints are no replies
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for name in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(name, signal.SIG_DFL)  # which ends the process
    for line in sys.stdin:
        request = json.loads(line)
        _allow(PREPARE_SECONDS)
        try:
            reply = _rows(request) if "count" in request else _scored(request)
        except Exception as error:  # told to whoever asked
            reply = {"error": f"{type(error).__name__}: {error}"}
        _allow(0.0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _allow(seconds: float) -> None:
    """From now on, so many seconds; 0: as many as it takes."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds + STUCK if seconds else 0.0)


def _rows(request: dict[str, Any]) -> dict[str, Any]:
    """Questions and answers of `count` items from `first` on; an answer may be None."""
    first = request["first"]
    stop = min(first + request["count"], SIZE)
    made = [_entry(*_named(request), index) for index in range(first, stop)]
    told = [[str(e["question"]), None if e["answer"] is None else str(e["answer"])] for e in made]
    return {"rows": told}


def _scored(request: dict[str, Any]) -> dict[str, Any]:
    """The answer as the package finds it, and its score; None and 0 where there is none."""
    from reasoning_gym.utils import extract_answer

    data, entry = _data(*_named(request)), _entry(*_named(request), request["index"])
    _allow(request["seconds"])
    answer = extract_answer(request["completion"])
    score = 0.0 if answer is None else float(data.score_answer(answer, entry))
    return {"answer": answer, "score": score}


def _named(request: dict[str, Any]) -> tuple[str, str, int]:
    return request["task"], json.dumps(request["config"], sort_keys=True), request["seed"]


@lru_cache(maxsize=8)
def _data(task: str, config: str, seed: int) -> Any:
    from reasoning_gym import create_dataset

    return create_dataset(task, seed=seed, size=SIZE, **json.loads(config))


@lru_cache(maxsize=1024)
def _entry(task: str, config: str, seed: int, index: int) -> Any:
    """An item: the same in every process, whatever was made before it."""
    import numpy

    random.seed(f"{seed} {index}")  # some tasks draw from the global generators
    numpy.random.seed((seed + index) % 2**32)
    return _data(task, config, seed)[index]


if __name__ == "__main__":
    main()
