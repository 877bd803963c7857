"""Checkpoints of a cell: weights, optimiser state, replay, round; written whole or not at all.

A checkpoint is a folder named by its round, made under another name and renamed when complete. The
weights are an ordinary model folder that others can load; the optimiser's state is read without
unpickling code (`weights_only`). The last two are kept. Leaves out the prompt order and sampling,
which need no state (`sampling.py`), and the reference model, which is the base.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from grids.paths import read_json, write_json

STATE = "state.json"
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    round: int
    key: str
    state: dict[str, Any]


def latest(directory: Path, key: str) -> Checkpoint | None:
    """The newest complete checkpoint of the cell `key`, or None.

    Raises `ValueError` where the directory holds a checkpoint of another cell.
    """
    for folder in _complete(directory)[::-1]:
        saved = read_json(folder / STATE) or {}
        if saved.get("key") != key:
            raise ValueError(f"{folder} is a checkpoint of another cell: {saved.get('key')}")
        return Checkpoint(folder, int(saved["round"]), key, saved["state"])
    return None


def save(
    directory: Path, round: int, key: str, model: Any, optimizer: Any, state: dict[str, Any]
) -> None:
    """Write the checkpoint of a round and take away all but the last two."""
    folder = directory / f"{round:06d}"
    scratch = directory / f".{folder.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    model.save_pretrained(scratch, safe_serialization=True)
    torch.save(optimizer.state_dict(), scratch / "optimizer.pt")
    write_json(scratch / STATE, {"round": round, "key": key, "state": state})
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    for old in _complete(directory)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def restore_weights(checkpoint: Checkpoint, model: Any) -> None:
    """Put a checkpoint's weights into a model of the same class."""
    weights: dict[str, Any] = {}
    for part in sorted(checkpoint.folder.glob("*.safetensors")):
        weights |= load_file(part)
    missing = set(model.load_state_dict(weights, strict=False).missing_keys)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if missing - tied:
        raise ValueError(f"{checkpoint.folder} lacks weights: {sorted(missing - tied)[:3]}")


def restore_optimizer(checkpoint: Checkpoint, optimizer: Any) -> None:
    """Put a checkpoint's optimiser state into an optimiser over the same parameters."""
    path = checkpoint.folder / "optimizer.pt"
    optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _complete(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first: what is being written has a hidden name."""
    return sorted(p for p in directory.glob("[0-9]*") if (p / STATE).is_file())
