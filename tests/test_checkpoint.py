"""Checkpoints: a damaged one is passed over, another cell's is refused, a full disk loses nothing.

Cells run in processes of their own (`kills.py`), so that a limit on the size of files binds them
alone.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from grids.catalog import MODELS
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import CellPaths
from tests.kills import Attempt, Child, Inside, assert_equal, finish, kill, same, start
from workers import checkpoint, lease
from workers.groups import RunningBaselines
from workers.replay import ReplayBuffer, Rollout

pytestmark = pytest.mark.timeout(300)

SETTINGS = {
    "model": "tiny-qwen2", "dataset": "tiny-sums", "batch": 8, "rounds": 6,
    "advantage": "grpo", "replay": 2, "replay_mode": "train", "replay_fill": "base",
    "eval": {"every": 2, "test_questions": 16, "train_questions": 8},
}  # fmt: skip
FILES = ("model.safetensors", "optimizer.pt", "memory.pt", "state.json")
LATER = Inside("workers.lease:Lease.append", "after", call=6, about="journal.jsonl")


@pytest.fixture(scope="module")
def cell() -> Cell:
    return Cell(**SETTINGS)


@pytest.fixture(scope="module")
def whole(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    finish(cell, folder)
    return folder


@pytest.fixture(scope="module")
def stopped(cell: Cell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in round 5, with the checkpoints of rounds 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped")
    kill(cell, folder, LATER)
    assert names(folder) == ["000002", "000004"]
    return folder


@pytest.fixture
def left(stopped: Path, tmp_path: Path) -> Path:
    """A copy of what it left."""
    return Path(shutil.copytree(stopped, tmp_path / "left"))


def names(directory: Path) -> list[str]:
    """What the folder of checkpoints holds, hidden names included."""
    return sorted(path.name for path in CellPaths(directory).checkpoint.iterdir())


def content(directory: Path) -> dict[str, bytes]:
    """Every file of the journal and the checkpoints."""
    paths = [CellPaths(directory).journal, *CellPaths(directory).checkpoint.rglob("*.*")]
    return {str(path): path.read_bytes() for path in paths}


def damage(path: Path, kept: float | None) -> None:
    """Keep a share of a file, all but its last byte for a share of one; None: take it away."""
    size = path.stat().st_size
    if kept is None:
        path.unlink()
    else:
        os.truncate(path, size - 2 if kept == 1 else int(size * kept))


@pytest.mark.parametrize("kept", [None, 0.0, 0.5, 1.0], ids=["missing", "empty", "half", "a bit"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(left, cell, caplog, name, kept):
    folder = CellPaths(left).checkpoint
    damage(folder / "000004" / name, kept)
    found = checkpoint.latest(folder, cell.key)
    assert found is not None and found.round == 2
    complete = name != "state.json" or kept is not None  # without it, it is not a checkpoint yet
    assert (f"{folder / '000004'} is damaged" in caplog.text) is complete


@pytest.mark.parametrize("name", FILES)
def test_a_run_goes_on_from_before_a_damaged_checkpoint(left, cell, whole, name):
    damage(CellPaths(left).checkpoint / "000004" / name, 0.5)
    assert finish(cell, left).told == [3, 4, 5, 6]
    assert_equal(left, whole)


def test_a_checkpoint_of_another_cell_is_refused_and_nothing_is_lost(left, cell, whole, tmp_path):
    other = Cell(**SETTINGS | {"seed": 1})
    kill(other, tmp_path / "other", LATER)
    foreign = CellPaths(left).checkpoint / "000005"
    shutil.copytree(CellPaths(tmp_path / "other").checkpoint / "000004", foreign)
    before = content(left)
    child = start(Attempt([(cell, left)]))
    assert child.end() == 1 and isinstance(child.error, InputError)
    assert str(child.error).startswith(
        f"{foreign} is a checkpoint of another cell, {other.key}, not of {cell.key}"
    )
    assert content(left) == before
    foreign.rename(tmp_path / "moved back")
    assert finish(cell, left).told == [5, 6]
    assert_equal(left, whole)


# ---- a full disk


def assert_not_written(child: Child, folder: Path, last: str) -> None:
    """An attempt ended because a checkpoint could not be written, and left nothing of it."""
    assert child.end() == 1 and type(child.error) is OSError, child.error
    told = str(child.error)
    assert told.startswith(f"cannot write the checkpoint {folder}: ")
    assert told.endswith(f"; {last}. Free space, or mend the folder, and run again")


# Bytes beyond which no file grows: the weights have 992 thousand, the optimiser's state 2 million.
@pytest.mark.parametrize("largest", [100_000, 1_500_000], ids=["weights", "optimizer"])
def test_a_file_that_cannot_grow_loses_no_checkpoint(left, cell, whole, largest):
    folder = CellPaths(left).checkpoint
    child = start(Attempt([(cell, left)], largest=largest))
    assert_not_written(child, folder / "000006", f"the last is {folder / '000004'}")
    assert names(left) == ["000002", "000004"]
    found = checkpoint.latest(folder, cell.key)
    assert found is not None and found.round == 4
    assert finish(cell, left).told == [5, 6]
    assert_equal(left, whole)


def test_the_first_checkpoint_that_cannot_be_written_says_that_there_is_none(cell, tmp_path):
    child = start(Attempt([(cell, tmp_path)], largest=100_000))
    folder = CellPaths(tmp_path).checkpoint
    assert_not_written(child, folder / "000000", "there is none before it")
    assert not CellPaths(tmp_path).checkpoint.exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    made = subprocess.run(words, capture_output=True, text=True) if shutil.which("mount") else None
    if made is None or made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("fits", [(), FILES[:1], FILES[:2]], ids=["none", "weights", "optimizer"])
def test_a_full_disk_loses_no_checkpoint(disk, stopped, cell, whole, fits):
    """It is full after some of a checkpoint's files, and half of the next."""
    left = Path(shutil.copytree(stopped, disk / "left"))
    folder = CellPaths(left).checkpoint
    sizes = [(folder / "000004" / name).stat().st_size for name in FILES]
    room = sum(sizes[: len(fits)]) + sizes[len(fits)] // 2 + 50_000  # and the journal
    state = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(state.f_bavail * state.f_frsize - room))
    child = start(Attempt([(cell, left)]))
    assert_not_written(child, folder / "000006", f"the last is {folder / '000004'}")
    assert names(left) == ["000002", "000004"]
    (disk / "ballast").unlink()
    assert finish(cell, left).told == [5, 6]
    assert_equal(left, whole)


# ---- what a checkpoint holds


def rollout(question: str, round: int, length: int, reference: bool) -> Rollout:
    ids_T = torch.arange(length) + round
    log_p_T = -torch.rand(length, generator=torch.Generator().manual_seed(round))
    return Rollout(question, round, 0.5, length, ids_T, log_p_T, log_p_T / 3 if reference else None)


@pytest.mark.parametrize("tokens", [False, True], ids=["rewards", "tokens"])
@pytest.mark.parametrize("reference", [False, True], ids=["no kl", "kl"])
def test_replay_baselines_and_optimiser_survive_a_checkpoint(tmp_path, tokens, reference):
    buffer, again = ReplayBuffer(2, 5, tokens), ReplayBuffer(2, 5, tokens)
    buffer.add(rollout(q, r, 3 + r, reference) for r in range(3) for q in "ab")
    baselines, means = RunningBaselines(0.9), {"a": 0.25, "b": 1 / 3}
    baselines.load(means)
    models = [AutoModelForCausalLM.from_pretrained(MODELS["tiny-qwen2"].path) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in models]
    models[0](torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    optimizers[0].step()
    memory = {"replay": buffer.state(), "baselines": baselines.state()}
    held = lease.acquire(CellPaths(tmp_path), "a cell")
    checkpoint.save(held, 7, "a cell", models[0], optimizers[0], memory)
    held.release()

    found = checkpoint.latest(held.paths.checkpoint, "a cell")
    assert found is not None and found.round == 7
    checkpoint.restore(found, models[1], optimizers[1])
    again.load(found.memory["replay"])
    assert same(models[0].state_dict(), models[1].state_dict())
    assert same(optimizers[0].state_dict(), optimizers[1].state_dict())
    assert same(again.state(), buffer.state()) and found.memory["baselines"] == means
    for each in (buffer, again):  # a third a question makes the oldest leave
        each.add([rollout("a", 6, 4, reference)])
    kept = [each.recent("a", 7) for each in (buffer, again)]
    assert [r.round for r in kept[1]] == [6, 2]
    assert all(same(vars(one), vars(two)) for one, two in zip(*kept, strict=True))
