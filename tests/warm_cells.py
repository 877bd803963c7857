"""Cells for tests of warm workers, and all that a cell leaves as digests that must be equal.

`python -m tests.warm_cells FOLDER NAME...` trains cells one after the other in one process, and
prints the digests of each. Leaves out what is compared (`test_warm.py`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from grids.cell import Cell
from grids.paths import CellPaths
from tests.conftest import ROOT

EVAL = {"every": 1, "test_questions": 16, "train_questions": 8, "samples": 1}
BASE: dict[str, Any] = {"model": "tiny-qwen2", "dataset": "tiny-sums", "batch": 8, "rounds": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {
        "seed": 1, "rollouts": 2, "advantage": "grpo", "updates_per_round": 2,
        "gradient_checkpointing": True, "kl": 0, "max_prompt": 30,
    },
    "half": {
        "model": "tiny-llama", "dataset": "tiny-boxed", "precision": "bf16", "rollouts": 2,
        "advantage": "rloo", "replay": 1, "replay_mode": "train", "replay_fill": "base",
    },
    "half again": {"precision": "bf16", "rows_per_pass": 2, "temperature": 0.7},
    "third": {"model": "tiny-olmo2", "advantage": "ema", "rollouts": 2},
}  # fmt: skip
CELLS = {
    name: Cell(**{**BASE, **settings, "eval": EVAL | settings.get("eval", {})})
    for name, settings in SETTINGS.items()
}


def train(name: str, folder: Path) -> dict[str, str]:
    """Train a cell in a new folder; the digests of what it leaves."""
    from workers.run import run_cell

    run_cell(CELLS[name], folder, lambda progress: None)
    return digests(folder)


def digests(folder: Path) -> dict[str, str]:
    """Of the journal, answers, shown samples, weights and the optimiser's state."""
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import load_file

    paths = CellPaths(folder)
    (kept,) = paths.checkpoint.glob("[0-9]*")
    state = torch.load(kept / "optimizer.pt", weights_only=True)["state"]
    moments = {f"{i} {name}": value for i, of in state.items() for name, value in of.items()}
    return {
        "journal": _digest(paths.journal.read_bytes()),
        "answers": _digest(json.dumps(pq.read_table(paths.outcomes).to_pylist()).encode()),
        "samples": _digest(paths.samples.read_bytes()),
        "weights": tensors(load_file(kept / "model.safetensors")),
        "moments": tensors(moments),
    }


def tensors(named: dict[str, Any]) -> str:
    """A digest of tensors by name, to the bit."""
    parts = (f"{name} {value.dtype} {tuple(value.shape)}" for name, value in sorted(named.items()))
    values = (value.detach().contiguous().numpy().tobytes() for _, value in sorted(named.items()))
    return _digest("\n".join(parts).encode() + b"".join(values))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Process:
    """One process of its own that trains some cells, one after the other."""

    def __init__(self, folder: Path, *names: str) -> None:
        command = [sys.executable, "-m", "tests.warm_cells", str(folder), *names]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def digests(self) -> list[dict[str, str]]:
        """Of each cell, when the process has ended."""
        told, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0
        made: list[dict[str, str]] = json.loads(told.splitlines()[-1])
        return made


def main(folder: str, *names: str) -> None:
    made = [train(name, Path(folder) / str(place)) for place, name in enumerate(names)]
    print(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
