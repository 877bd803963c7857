"""Checkpoints of a cell: weights, optimiser state, replay, round; written whole or not at all.

A checkpoint is a folder named by its round, made under another name and renamed when complete. The
weights are an ordinary model folder that others can load; the optimiser's state is read without
unpickling code (`weights_only`). The last two are kept. Leaves out the prompt order and sampling,
which need no state (`sampling.py`), and the reference model, which is the base.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from grids.paths import read_json, write_json

logger = logging.getLogger(__name__)

STATE = "state.json"
KEPT = 2


# What reading a damaged checkpoint raises. A store that cannot be read just now raises OSError,
# which is none of these: passing over a whole checkpoint would throw its rounds away.
DAMAGE = (
    FileNotFoundError, EOFError, ValueError, KeyError, RuntimeError, SafetensorError,
    UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, read."""

    folder: Path
    round: int
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    state: dict[str, Any]


def latest(directory: Path, key: str) -> Checkpoint | None:
    """The newest checkpoint of the cell `key` that can be read whole; None where there is none.

    A damaged one is named in a warning and passed over for the one before it. Raises `ValueError`
    where all are damaged: training from the start again must be asked for.
    """
    folders = _complete(directory)
    for folder in folders[::-1]:
        try:
            return _read(folder, key)
        except DAMAGE as error:
            logger.warning("%s is damaged (%s); the one before it is taken", folder, error)
    if folders:
        raise ValueError(f"no checkpoint in {directory} can be read; delete it to start again")
    return None


def _read(folder: Path, key: str) -> Checkpoint:
    saved = read_json(folder / STATE) or {}
    if saved["key"] != key:
        raise ValueError(f"it is of another cell, {saved['key']}")
    weights: dict[str, Any] = {}
    for part in sorted(folder.glob("*.safetensors")):
        weights |= load_file(part)
    optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    return Checkpoint(folder, int(saved["round"]), weights, optimizer, saved["state"])


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
    prune(directory, KEPT)


def prune(directory: Path, kept: int, after: int | None = None) -> None:
    """Take away all but the newest `kept`, and all of rounds later than `after`."""
    folders = _complete(directory)
    late = [f for f in folders if after is not None and int(f.name) > after]
    early = [f for f in folders if f not in late]
    for folder in [*late, *early[: max(0, len(early) - kept)]]:
        shutil.rmtree(folder, ignore_errors=True)


def restore(checkpoint: Checkpoint, model: Any, optimizer: Any) -> None:
    """Put a checkpoint into a model of the same class and an optimiser over its parameters."""
    missing = set(model.load_state_dict(checkpoint.weights, strict=False).missing_keys)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if missing - tied:
        raise ValueError(f"{checkpoint.folder} lacks weights: {sorted(missing - tied)[:3]}")
    optimizer.load_state_dict(checkpoint.optimizer)


def _complete(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first: what is being written has a hidden name."""
    return sorted(p for p in directory.glob("[0-9]*") if (p / STATE).is_file())
