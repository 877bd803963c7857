"""A cell killed with SIGKILL and run again equals one that was not: the short form.

One kill a kind of cell, each in another phase. `integration/test_kills.py` has the long form.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grids import outcome
from grids.cell import Cell
from grids.paths import CellPaths, read_lines
from tests.kills import Attempt, Inside, assert_equal, few_questions, finish, kill, start

pytestmark = pytest.mark.timeout(300)

# Checkpoints come at rounds 2 and 4, and the kill lies between. The 24 questions, 16 a round, come
# again from round 2 on.
SMALL = {
    "model": "tiny-qwen2", "dataset": "tiny-sums", "batch": 16, "rounds": 4,
    "eval": {"every": 2, "test_questions": 16, "train_questions": 8},
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], Inside]] = {
    "raw, in generation": ({}, Inside("workers.engine:Inversion.__call__", call=55)),
    "grpo, in an update": (
        {"batch": 8, "rollouts": 4, "advantage": "grpo", "rows_per_pass": 8},
        Inside("workers.pass_trainer:PassTrainer._pass_loss", "after", call=14),
    ),
    "replay filled from the base, in a checkpoint": (
        {"replay": 2, "replay_mode": "train", "replay_fill": "base", "advantage": "grpo"},
        Inside("workers.checkpoint:torch.save", "half", call=3, about="memory.pt"),
    ),
    "replay that takes gradient, between the two updates of a round": (
        {"replay": 2, "replay_mode": "train", "advantage": "grpo", "updates_per_round": 2},
        Inside("workers.run:_EachRound.on_step_end", "after", call=7),
    ),
}
if importlib.util.find_spec("vllm"):
    KINDS = {
        "grpo with vLLM, in generation": (
            {"engine": "vllm", "batch": 8, "rollouts": 2, "advantage": "grpo"},
            Inside("workers.vllm_sampling:Inversion.apply", call=100),
        ),
    } | KINDS


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    questions = few_questions(tmp_path_factory.mktemp("data"))
    return {
        kind: Cell(**SMALL | {"dataset_spec": questions} | settings)
        for kind, (settings, _) in KINDS.items()
    }


@pytest.fixture(scope="module")
def whole(
    cells: dict[str, Cell], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The directory of a kind's uninterrupted run. One process makes all, one after the other."""
    folder = tmp_path_factory.mktemp("whole")
    child = start(Attempt([(cell, folder / kind) for kind, cell in cells.items()]))

    def of(kind: str) -> Path:
        assert child.end() == 0, child.error
        return folder / kind

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_killed_and_run_again_equals_one_that_was_not(cells, whole, tmp_path, kind):
    cell, (_, stop) = cells[kind], KINDS[kind]
    told = kill(cell, tmp_path, stop).told
    assert told[-1] >= 2, "killed after a checkpoint"
    assert finish(cell, tmp_path).told == [3, 4], "goes on from the checkpoint of round 2"
    assert_equal(tmp_path, whole(kind))
    lines = read_lines(CellPaths(tmp_path).journal)
    assert any(outcome.AGE_MAX in line for line in lines[3:]) is bool(cell.replay)


def test_a_cell_does_not_depend_on_what_its_process_ran_before(cells, whole, tmp_path):
    kind = list(KINDS)[-1]  # three others, of them one with replay, ran before it
    finish(cells[kind], tmp_path)
    assert_equal(tmp_path, whole(kind))
