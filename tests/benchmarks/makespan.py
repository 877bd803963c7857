"""The makespan that `plan` predicts, beside the one that is measured: five cells first, then the
others.

`python -m tests.benchmarks.makespan [CELLS]`, some minutes on two cores. A mini grid is run in a
fresh store on two slots until five cells are finished (or CELLS), and is stopped as by Ctrl-C;
`plan` predicts what is left, and the same command trains it. Load of others between the two is in
the difference. Leaves out prices on GPUs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.told import COMMAND, ONE_CORE, ROOT, load, told

SLOTS, FIRST = 2, 5
GRID: dict[str, Any] = {
    "name": "makespan",
    "study": "makespan",
    "base": {"rounds": 30, "eval": {"every": 15, "samples": 4, "train_questions": 200}},
    "axes": {
        "model": ["tiny-qwen2", "tiny-llama", "tiny-olmo2"],
        "dataset": ["tiny-sums", "tiny-boxed"],
        "batch": [8, 32],
        "rollouts": [1, 4],
        "advantage": ["raw"],
    },
    "seeds": [0],
}
ENDED = "  finished"  # what `run` prints after a cell's label


def main(first: int = FIRST) -> None:
    """Measure once and print."""
    with tempfile.TemporaryDirectory() as scratch:
        grid = Path(scratch) / "makespan.yaml"
        grid.write_text(yaml.safe_dump(GRID), encoding="utf-8")
        store = ["--store", str(Path(scratch) / "store"), "--slots", str(SLOTS)]
        before = predicted(grid, store)
        print(f"\nMakespan on {SLOTS} slots; {load()}", flush=True)
        until_finished(["run", str(grid), *store], first)
        cost = predicted(grid, store)
        span = cost["makespan_seconds"]
        print(f"  {first} cells are finished; then: {load()}", flush=True)
        began = time.monotonic()
        code = subprocess.run(
            [COMMAND, "run", str(grid), *store], cwd=ROOT, env=ONE_CORE, stdout=subprocess.DEVNULL
        ).returncode
        measured = time.monotonic() - began
        if code:
            raise SystemExit(f"the rest of the grid ended with {code}")
        told("predicted without a run, seconds", before["makespan_seconds"]["value"])
        told(f"predicted from n = {span['n']} runs", span["value"])
        told("  low", span["low"])
        told("  high", span["high"])
        told("measured", measured)
        told("predicted over measured", span["value"] / measured, "0.75 to 1.25")
        print(f"  then: {load()}", flush=True)


def predicted(grid: Path, store: list[str]) -> dict[str, Any]:
    """What is left, as `plan --json` prices it."""
    done = subprocess.run(
        [COMMAND, "plan", "--json", str(grid), *store], cwd=ROOT, env=ONE_CORE,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cost: dict[str, Any] = json.loads(done.stdout)["cost"]
    return cost


def until_finished(words: list[str], cells: int) -> None:
    """Run until so many cells are finished, and stop as by Ctrl-C."""
    process = subprocess.Popen(
        [COMMAND, *words], cwd=ROOT, env=ONE_CORE, stdout=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=_interruptible,
    )  # fmt: skip
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += ENDED in line
        if seen == cells:
            process.send_signal(signal.SIGINT)
            cells = -1
    process.wait()


def _interruptible() -> None:
    """What is started in the background ignores SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else FIRST)
