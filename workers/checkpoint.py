"""Checkpoints of a cell: weights, optimiser state, replay, round; written whole or not at all.

A checkpoint is a folder named by its round, made under another name and renamed when complete. The
weights are an ordinary model folder that others can load, with LoRA peft's folder of the adapters
alone; the optimiser's state and the replay are read without unpickling code (`weights_only`). The
last two are kept. Leaves out the prompt order and sampling, which need no state (`sampling.py`),
and the reference model, which is the base.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from grids.errors import InputError
from grids.paths import read_json, write_json
from workers import adapters, ranks, sharding
from workers.lease import Lease

logger = logging.getLogger(__name__)

MARK, MEMORY, OPTIMIZER = "state.json", "memory.pt", "optimizer.pt"
KEPT = 2


# What reading a damaged checkpoint raises. A store that cannot be read just now raises OSError,
# which is none of these: passing over a whole checkpoint would throw its rounds away.
DAMAGE = (
    FileNotFoundError, EOFError, ValueError, KeyError, RuntimeError, SafetensorError,
    UnpicklingError,
)  # fmt: skip


# What a failed write raises.
WRITING = (OSError, RuntimeError, SafetensorError)


class Weights(NamedTuple):
    """A policy alone."""

    folder: Path
    round: int
    weights: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, read; `memory` is what the trainer remembers of earlier rounds."""

    folder: Path
    round: int
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    memory: dict[str, Any]


def latest(directory: Path, key: str) -> Checkpoint | None:
    """The newest checkpoint of the cell `key` that can be read whole; None where there is none.

    A damaged one is named in a warning and passed over for the one before it. Raises `ValueError`
    where all are damaged: training from the start again must be asked for. Raises `InputError` for
    a checkpoint of another cell: somebody put it there.
    """
    folders = _complete(directory)
    for folder in folders[::-1]:
        try:
            return _read(folder, key)
        except InputError:  # a ValueError, but no damage
            raise
        except DAMAGE as error:
            logger.warning("%s is damaged (%s); the one before it is taken", folder, error)
    if folders:
        raise ValueError(f"no checkpoint in {directory} can be read; delete it to start again")
    return None


def agreed(directory: Path, key: str) -> Checkpoint | None:
    """`latest`, the same in all processes of a cell: the first finds it; each of the others reads
    that one, and fails where it cannot, for an older one would be another policy."""
    found: list[Checkpoint | None] = []

    def name() -> str | None:
        found.append(latest(directory, key))
        return found[0].folder.name if found[0] else None

    folder = ranks.told(name)
    if not found:
        found.append(_read(directory / folder, key) if folder else None)
    starts = ranks.gathered(found[0].round if found[0] else 0)
    if len(set(starts)) > 1:
        raise RuntimeError(f"the processes would go on from different rounds: {starts}")
    return found[0]


def newest_weights(directory: Path, key: str) -> Weights:
    """The weights alone of the newest checkpoint of the cell `key`.

    Raises `InputError` where there is none, where it cannot be read (an older one would be another
    policy), and where it is another cell's.
    """
    folders = _complete(directory)
    if not folders:
        raise InputError(f"{directory} holds no weights; delete its cell to train it again")
    try:
        return _weights(folders[-1], key)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"the weights in {folders[-1]} cannot be read ({error}); put them back from a copy, or "
            f"delete {directory.parent} to train its cell again"
        ) from None


def _read(folder: Path, key: str) -> Checkpoint:
    _, round, weights = _weights(folder, key)
    optimizer, memory = (
        torch.load(folder / name, map_location="cpu", weights_only=True)
        for name in (OPTIMIZER, MEMORY)
    )
    return Checkpoint(folder, round, weights, optimizer, memory)


def _weights(folder: Path, key: str) -> Weights:
    mark = read_json(folder / MARK) or {}
    if mark["key"] != key:
        raise InputError(
            f"{folder} is a checkpoint of another cell, {mark['key']}, not of {key}; move it back "
            "to its own cell's folder"
        )
    index = read_json(folder / "model.safetensors.index.json") or {}
    own = adapters.WEIGHTS if (folder / adapters.WEIGHTS).is_file() else "model.safetensors"
    parts = set(index.get("weight_map", {"": own}).values())
    weights: dict[str, Any] = {}
    for part in sorted(parts):
        weights |= load_file(folder / part)
    return Weights(folder, int(mark["round"]), weights)


def save(
    lease: Lease | ranks.Lent, round: int, key: str, model: Any, optimizer: Any,
    memory: dict[str, Any],
) -> None:  # fmt: skip
    """Write the checkpoint of a round, under the cell's lease, and take away all but the last two.

    Raises `OSError`, naming the folder and what is still there, where it cannot be written (a full
    disk): nothing is left of it, and the checkpoints before it are as they were.
    """
    folder = lease.paths.checkpoint / f"{round:06d}"
    gathered = sharding.gathered_weights(model)
    optimized = sharding.full(optimizer.state_dict())

    def attempt() -> None:
        made = lease.scratch(folder.name)
        _write(made, folder, round, key, model, gathered, optimized, memory)
        folder.parent.mkdir(exist_ok=True)
        lease.discard(folder)
        lease.put(made, folder)

    lease.patiently(attempt, folder)
    prune(lease, KEPT)


def _write(
    scratch: Path, folder: Path, round: int, key: str, model: Any,
    weights: dict[str, Any] | None, optimizer: dict[str, Any], memory: dict[str, Any],
) -> None:  # fmt: skip
    """All files of what will be `folder`, on the disk itself; `weights`: where not the model's."""
    try:
        scratch.mkdir()
        if adapters.is_adapted(model):
            adapters.save(model, scratch, weights)
        else:
            model.save_pretrained(scratch, safe_serialization=True, state_dict=weights)
        torch.save(optimizer, scratch / OPTIMIZER)
        torch.save(memory, scratch / MEMORY)
        write_json(scratch / MARK, {"round": round, "key": key})
        _sync(scratch)
    except WRITING as error:  # torch and safetensors have exceptions of their own for a full disk
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, FileNotFoundError):
            raise  # the lease is gone, not space
        raise OSError(_not_written(folder, error)) from error


def _sync(folder: Path) -> None:
    """All of a folder's files on the disk itself, before its name says that it is whole."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _not_written(folder: Path, error: Exception) -> str:
    kept = _complete(folder.parent)
    last = f"the last is {kept[-1]}" if kept else "there is none before it"
    return (
        f"cannot write the checkpoint {folder}: {error}; {last}. "
        "Free space, or mend the folder, and run again"
    )


def prune(lease: Lease | ranks.Lent, kept: int, after: int | None = None) -> None:
    """Take away all but the newest `kept`, and all of rounds later than `after`."""
    folders = _complete(lease.paths.checkpoint)
    late = [f for f in folders if after is not None and int(f.name) > after]
    early = [f for f in folders if f not in late]
    for folder in [*late, *early[: max(0, len(early) - kept)]]:
        lease.discard(folder)


def count(directory: Path) -> int:
    """How many complete checkpoints there are."""
    return len(_complete(directory))


def sweep(lease: Lease) -> None:
    """Take away what is no complete checkpoint, such as a copy that somebody broke off."""
    whole = set(_complete(lease.paths.checkpoint))
    for folder in lease.paths.checkpoint.glob("*"):
        if folder not in whole:
            lease.discard(folder)


def restore(checkpoint: Checkpoint, model: Any, optimizer: Any) -> None:
    """Put a checkpoint into a model of the same class and an optimiser over its parameters."""
    restore_weights(checkpoint, model)
    sharding.load_optimizer(optimizer, checkpoint.optimizer)


def restore_weights(kept: Checkpoint | Weights, model: Any) -> None:
    """Put weights alone into a model of the same class."""
    if adapters.is_adapted(model):
        adapters.load(model, kept.weights, kept.folder)
        return
    missing = set(sharding.load_weights(model, kept.weights).missing_keys)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if missing - tied:
        raise ValueError(f"{kept.folder} lacks weights: {sorted(missing - tied)[:3]}")


def _complete(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first: what is being written has a hidden name."""
    return sorted(p for p in directory.glob("[0-9]*") if (p / MARK).is_file())
