"""What the benchmarks share: where they run, and how a figure is printed beside what it should be.

Leaves out every measurement.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMAND = str(Path(sys.executable).parent / "banditgrid")
ONE_CORE = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
# What a round cannot do without, as timings.jsonl calls it.
WORK = ("generate", "reference", "behaviour", "update")


def load() -> str:
    """What else runs on this machine, for beside a figure."""
    return f"load average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"


def told(what: str, value: float, target: str = "") -> None:
    """One figure and, where there is such a thing, what it should be."""
    beside = f"   (should be {target})" if target else ""
    print(f"  {what:42} {value:8.3g}{beside}", flush=True)


def outside_work(rounds: Sequence[dict[str, float]]) -> float:
    """The share of some rounds' seconds, by phase as timings.jsonl has them, that is no `WORK`."""
    work = sum(seconds.get(phase, 0.0) for seconds in rounds for phase in WORK)
    return 1 - work / sum(seconds["all"] for seconds in rounds)


def last_line(module: str, *words: str) -> str:
    """What a module of this package prints last, run in a process of its own with one thread."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *words]
    made = subprocess.run(
        command, env=ONE_CORE, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return made.stdout.splitlines()[-1]
