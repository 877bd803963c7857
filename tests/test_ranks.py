"""workers.ranks, workers.sharding: two processes train a cell as one does, go on with its files.

Both compute on processors; over NCCL the same code shards the same way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import CellPaths, read_json, read_lines
from tests.conftest import ROOT
from workers import claim, ranks
from workers.adapters import WEIGHTS
from workers.lease import held
from workers.run import run_cell

GROUPS = {"batch": 8, "rollouts": 4, "advantage": "grpo", "kl": 0.5, "rounds": 2, "lr": 1e-4}
REPLAY = {
    "model": "tiny-olmo2", "batch": 8, "rollouts": 1, "replay": 2, "replay_mode": "train",
    "replay_fill": "base", "updates_per_round": 2, "kl": 0.5, "lr": 1e-4, "rounds": 2,
    "eval": {"every": 1},
}  # fmt: skip
CELLS: dict[str, dict[str, Any]] = {
    "groups": {"model": "tiny-llama", **GROUPS, "eval": {"samples": 2}},
    "replay": REPLAY,
    # more processes than rows in some updates, and no row at all in others
    "few": {"model": "tiny-llama", "batch": 2, "rounds": 2, "kl": 0.0, "lr": 1e-3},
    "checkpointed": {**GROUPS, "gradient_checkpointing": True, "rounds": 1},
    "liger": {"model": "tiny-llama", **GROUPS, "kl": 0.0, "liger": True, "rounds": 1},
    "half adapters": {"model": "tiny-llama", **GROUPS, "lora_rank": 4, "precision": "bf16"},
}


@dataclass
class Trained:
    """Where one process and two trained the same cells."""

    folder: Path

    def paths(self, name: str, by: str) -> CellPaths:
        return CellPaths(self.folder / by / name)

    def lines(self, name: str, by: str) -> list[dict[str, Any]]:
        return read_lines(self.paths(name, by).journal)

    def checkpoint(self, name: str, by: str) -> Path:
        return sorted(self.paths(name, by).checkpoint.iterdir())[-1]

    def weights(self, name: str, by: str) -> dict[str, torch.Tensor]:
        folder = self.checkpoint(name, by)
        adapted = (folder / WEIGHTS).exists()
        return load_file(folder / (WEIGHTS if adapted else "model.safetensors"))

    def told(self, name: str) -> list[dict[str, Any]]:
        return [json.loads((self.folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """All cells, trained by one process and by two; some by both in turn."""
    folder = tmp_path_factory.mktemp("ranks")
    cells = {name: _cell(**settings) for name, settings in CELLS.items()}
    short, long = _cell(**REPLAY | {"rounds": 1}), cells["replay"]
    run_cell(short, folder / "two" / "one, then two", _quiet, folder / "shared")
    jobs = [(name, cell, -1) for name, cell in cells.items()]
    jobs += [("one, then two", long, -1), ("two, then one", short, -1)]
    jobs += [("left", long, 1), ("left", long, -1)]
    with _together(folder, jobs):
        for name, cell in cells.items():
            run_cell(cell, folder / "one" / name, _quiet, folder / "shared")
    run_cell(long, folder / "two" / "two, then one", _quiet, folder / "shared")
    yield Trained(folder)


def _cell(**settings: Any) -> Cell:
    small = {"every": 2, "test_questions": 15, "train_questions": 8}
    settings["eval"] = small | settings.get("eval", {})
    fixed = {"model": "tiny-qwen2", "dataset": "tiny-sums", "precision": "fp32"}
    return Cell(**fixed | settings)


def _quiet(progress: Any) -> None:
    pass


@contextmanager
def _together(folder: Path, jobs: list[tuple[str, Cell, int]]) -> Iterator[None]:
    """Train cells in two processes, beside the block. Each is asked to leave after a round."""
    listed = []
    with ExitStack() as stack:
        leases = {}
        for name, cell, leave in jobs:
            directory = folder / "two" / name
            if name not in leases:
                leases[name] = stack.enter_context(held(CellPaths(directory), cell.label))
                claim.take(cell, leases[name])
            listed.append(
                {"name": name, "cell": cell.model_dump_json(), "directory": str(directory),
                 "epoch": leases[name].epoch, "leave": leave}
            )  # fmt: skip
        (folder / "jobs.json").write_text(json.dumps(listed))
        command = [sys.executable, "-m", "tests.ranked", str(folder)]
        processes = [
            subprocess.Popen(
                [*command, str(rank), "2"], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for rank in (0, 1)
        ]  # fmt: skip
        try:
            yield
            said = [process.communicate(timeout=240)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-8000:]


EXACT = (
    outcome.REWARD, outcome.REWARD_SD, outcome.CORRECT, outcome.GENERATED_TOKENS,
    outcome.TRAINED_TOKENS, outcome.ADVANTAGE_MEAN, outcome.TEST_PASS, outcome.TRAIN_PASS,
    "test/pass_at_1_sampled", "test/tokens", outcome.AGE_MEAN, outcome.GROUP_SIZE,
)  # fmt: skip


@pytest.mark.parametrize("name", [*CELLS, "one, then two", "two, then one", "left"])
def test_two_processes_train_as_one_does(trained: Trained, name: str) -> None:
    alone = name if name in CELLS else "replay"
    one, two = trained.lines(alone, "one"), trained.lines(name, "two")
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert {k: a[k] for k in EXACT if k in a} == {k: b[k] for k in EXACT if k in b}
        assert b == pytest.approx(a, rel=5e-3, abs=1e-6)
    marks = [read_json(trained.paths(n, by).done) for n, by in ((alone, "one"), (name, "two"))]
    assert marks[0] == marks[1]
    _alike(trained.weights(alone, "one"), trained.weights(name, "two"), _base(alone))
    for file in ("optimizer.pt", "memory.pt"):
        states = [
            torch.load(trained.checkpoint(n, by) / file, weights_only=True)
            for n, by in ((alone, "one"), (name, "two"))
        ]
        _alike(*({str(k): v for k, v in _flat(state)} for state in states))


def _base(name: str) -> dict[str, torch.Tensor] | None:
    model = CELLS[name].get("model", "tiny-qwen2")
    if CELLS[name].get("lora_rank"):
        return None
    return load_file(ROOT / f"workers/embedded/models/{model}/model.safetensors")


def _alike(one: dict[str, Any], two: dict[str, Any], base: dict[str, Any] | None = None) -> None:
    """Equal but for what a sum in another order may change, against how far it all moved."""
    assert one.keys() == two.keys()
    moved, apart = 0.0, 0.0
    for name, value in one.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            start = base[name] if base else torch.zeros_like(value)
            moved += float((value - start).double().square().sum())
            apart += float((value - two[name]).double().square().sum())
        else:
            assert _plain(value) == _plain(two[name]), name
    assert apart <= 1e-4 * moved  # of norms: a hundredth


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _flat(tree: Any, name: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _flat(value, (*name, key))
    else:
        yield name, tree


def test_the_first_alone_grades_and_reports_and_all_leave_after_one_round(trained: Trained) -> None:
    first, second = trained.told("groups")
    assert first["reports"] == [0, 1, 2] and second["reports"] == []
    assert first["graded"] > 0 and second["graded"] == 0
    left, _ = trained.told("left")
    assert (left["left"], left["reports"]) == (False, [2])  # the round that was left
    epochs = {line["attempt"] for line in read_lines(trained.paths("left", "two").timings)}
    assert epochs == {1}


def test_a_checkpoint_of_two_is_a_model_that_anybody_loads(trained: Trained) -> None:
    from transformers import AutoModelForCausalLM

    folder = trained.checkpoint("groups", "two")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert read_json(folder / "config.json")["architectures"] == ["LlamaForCausalLM"]
    assert sum(p.numel() for p in model.parameters()) > 0
    assert trained.weights("groups", "two").keys() == trained.weights("groups", "one").keys()


FINDS = """
import os, sys
from dataclasses import replace
from pathlib import Path
from workers import checkpoint, ranks

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
ranks.join(rank, 2, folder / "meeting")
whole = checkpoint._read

def fails(only):
    def read(path, key):
        if rank == only and path.name == "000004":
            raise FileNotFoundError("gone for a moment")
        return whole(path, key)
    return read

def strays(path, key):
    return replace(whole(path, key), round=4 - rank)

for checkpoint._read in (whole, fails(0), strays, fails(1)):
    try:
        print(checkpoint.agreed(folder, "k").round, flush=True)
    except Exception as error:
        print(error, flush=True)
os._exit(0)
"""


def test_all_go_on_from_the_checkpoint_that_the_first_chose_or_fail(tmp_path: Path) -> None:
    for round in (2, 4):
        made = tmp_path / f"{round:06d}"
        made.mkdir()
        save_file({"w": torch.zeros(1)}, made / "model.safetensors")
        for name in ("optimizer.pt", "memory.pt"):
            torch.save({}, made / name)
        (made / "state.json").write_text(json.dumps({"round": round, "key": "k"}))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FINDS, str(rank), str(tmp_path)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    first, second = (process.communicate(timeout=120)[0].splitlines() for process in processes)
    strayed = "the processes would go on from different rounds: [4, 3]"
    assert first[:3] == ["4", "2", strayed] and len(first) == 4 and "4" != first[3]
    assert second == ["4", "2", strayed, "gone for a moment"]


@pytest.mark.parametrize("seconds", ["abc", "0", "-1", "nan", "inf"])
def test_a_wait_that_is_no_time_is_one_message(
    seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANDITGRID_RANK_SECONDS", seconds)
    with pytest.raises(InputError, match=f"BANDITGRID_RANK_SECONDS: .* got '{seconds}'; give a"):
        ranks.wait_seconds()
    monkeypatch.setenv("BANDITGRID_RANK_SECONDS", "60")
    assert ranks.wait_seconds() == 60.0
    monkeypatch.delenv("BANDITGRID_RANK_SECONDS")
    assert ranks.wait_seconds() == 1800.0


@pytest.mark.parametrize(("count", "items"), [(1, 5), (2, 5), (3, 7), (4, 2)])
def test_parts_cover_all_and_differ_by_one_at_most(
    count: int, items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    for rank in range(count):
        monkeypatch.setattr(ranks, "_here", ranks.Here(rank, count))
        parts.append(range(items)[ranks._part(items)])
    assert [i for part in parts for i in part] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rows_are_dealt_whole_and_every_process_takes_as_many_passes() -> None:
    from workers.passes import NOTHING, Row, dealt

    rows = [Row((1,) * 3, torch.ones(length, dtype=torch.long)) for length in (9, 1, 5, 7, 3, 2, 8)]
    hands = [dealt(rows, 24, None, rank, 3) for rank in range(3)]
    assert len({len(hand) for hand in hands}) == 1
    found = [row for hand in hands for part in hand for row in part if row is not NOTHING]
    assert sorted(map(id, found)) == sorted(map(id, rows))
    assert any(NOTHING in part for hand in hands for part in hand)
    assert NOTHING.weights_T is not None and NOTHING.weights_T.sum() == 0
