"""A cell killed with SIGKILL again and again equals one that never was: the long form. Slow.

Each kind of cell is killed at injected points, and then at random times; each attempt goes on from
what the killed one before it left. `-s` prints every kill. `tests/kills.py` says how it is done.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import CellPaths, read_json, read_lines
from tests.kills import (
    Attempt,
    Inside,
    Stop,
    assert_equal,
    at_random,
    few_questions,
    finish,
    kill,
    start,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENGINE, TRAINER, PASSES = "workers.engine:", "workers.trainer:", "workers.pass_trainer:PassTrainer."
JOURNAL, CHECKPOINT, RUN = "workers.journal:", "workers.checkpoint:", "workers.run:"
PUT, WRITE, APPEND = (f"workers.lease:Lease.{name}" for name in ("put", "write_json", "append"))
TRAINED = {"replay": 2, "replay_mode": "train", "advantage": "grpo"}


@dataclass(frozen=True)
class Kind:
    """A kind of cell and the kills that it gets, one an attempt.

    Attributes:
        settings: of the cell.
        stops: where it is killed.
        often: checkpoints come every round and not only at evaluations, while it is killed.
        few: its train questions are few, and come again every other round.
    """

    settings: dict[str, Any]
    stops: Sequence[Stop]
    often: bool = True
    few: bool = True


KINDS = {
    "raw": Kind(
        {"eval": {"samples": 2}},
        [
            Inside(ENGINE + "TransformersEngine._pass", "after"),  # half of the base evaluation
            Inside(JOURNAL + "pq.write_table", "half"),
            Inside(WRITE, about="metrics.json"),  # the base's rows have no mark yet
            Inside(WRITE, "after", about="metrics.json"),
            Inside(ENGINE + "Inversion.__call__", call=30),
            Inside(APPEND, "half", call=2, about="journal.jsonl"),
            Inside(APPEND, "half", about="samples.jsonl"),
            Inside(CHECKPOINT + "_sync", "after", call=2),
            *at_random("raw", 2),
            Inside("workers.evaluate:Evaluator.sampled", "after"),  # the final evaluation
            Inside(WRITE, about="done.json"),
        ],
    ),
    "grpo": Kind(
        {"batch": 8, "rollouts": 4, "advantage": "grpo", "rows_per_pass": 8},
        [
            Inside(PASSES + "_compute_loss", call=5),  # before the second checkpoint
            Inside(PASSES + "_pass_loss", "after", call=6),  # in the second pass of four
            Inside(RUN + "_EachRound.on_optimizer_step", call=3),  # the weights have moved
            Inside("workers.evaluate:Evaluator._answer", "after"),  # half of an evaluation
            Inside(RUN + "write_outcomes"),
            Inside(JOURNAL + "pq.write_table", "half"),
            Inside(RUN + "write_outcomes", "after"),
            Inside(APPEND, "half", call=3, about="journal.jsonl"),
            Inside(PUT, about="checkpoint/000006"),
            Inside(PUT, "after", about="checkpoint/000006"),
            *at_random("grpo", 3),
        ],
        often=False,
    ),
    "replay in the baseline": Kind(
        {"batch": 128, "replay": 3, "advantage": "grpo", "rounds": 12},
        [
            Inside(CHECKPOINT + "torch.save", "half", call=3, about="memory.pt"),
            Inside(CHECKPOINT + "torch.save", "half", call=2, about="optimizer.pt"),
            Inside(CHECKPOINT + "write_json", call=2),  # all of a checkpoint but its mark
            Inside(
                CHECKPOINT + "os.unlink", "after", about="optimizer.pt"
            ),  # an old one, half gone
            Inside(JOURNAL + "Journal.time"),
            *at_random("baseline", 2),
        ],
        few=False,
    ),
    "replay filled from the base": Kind(
        TRAINED | {"replay_fill": "base"},
        [
            Inside(TRAINER + "BanditTrainer.fill_replay"),
            Inside(TRAINER + "ReplayBuffer.add", "after"),  # drawn, and nowhere but in memory
            Inside(RUN + "_Run._save"),  # round 0 has its line and no checkpoint
            Inside(CHECKPOINT + "torch.save", "half", about="memory.pt"),
            Inside(PUT, "after", about="checkpoint/000000"),
            Inside(CHECKPOINT + "torch.save", "half", call=2, about="memory.pt"),
            Inside(TRAINER + "BanditTrainer.recall", "after"),  # in the attempt that resumes
            Inside(PUT, about="journal.jsonl"),
            Inside(PUT, "after", about="journal.jsonl"),
            *at_random("filled", 3),
        ],
    ),
    "replay that takes gradient, two updates": Kind(
        TRAINED | {"updates_per_round": 2},
        [
            Inside(RUN + "_EachRound.on_step_end", "after", call=3),  # between two updates
            Inside(PASSES + "_compute_loss", "after", call=2),
            Inside(TRAINER + "BanditTrainer._update_rows", "after"),
            Inside(CHECKPOINT + "restore", "after"),
            *at_random("two updates", 5),
        ],
    ),
    "ema": Kind(
        {"advantage": "ema", "model": "tiny-llama"},
        [
            Inside(TRAINER + "RunningBaselines.add", "after", call=5),
            Inside("workers.evaluate:Evaluator.greedy"),
            Inside("workers.evaluate:Evaluator.greedy", "after", call=2),
            *at_random("ema", 2),
            Inside(PUT, about="done.json"),
        ],
        often=False,
    ),
    "breaking down": Kind(
        {"lr": 3e-3, "model": "tiny-olmo2", "eval": {"test_questions": 100}},
        [
            Inside(PASSES + "_get_grad_norm", "after", call=5),
            Inside(RUN + "_Run._collapsed", "after", call=2),
            Inside(RUN + "_Run._finish"),
            Inside(PUT, "after", about="done.json"),
        ],
        often=False,
    ),
}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Cell]:
    """Builds a cell of fourteen rounds, evaluated every three; over few questions if asked."""

    def make(few: bool = True, **settings: Any) -> Cell:
        small = {"every": 3, "test_questions": 16, "train_questions": 8}
        given = settings | {"eval": small | settings.get("eval", {})}
        if few:
            given["dataset_spec"] = few_questions(tmp_path / "few")
        shape = {"model": "tiny-qwen2", "dataset": "tiny-sums", "batch": 16, "rounds": 14}
        return Cell(**shape | given)

    return make


def killed_at(
    cell: Cell, directory: Path, name: str, stops: Sequence[Stop], often: bool = True
) -> None:
    """One attempt after the other, each killed."""
    for stop in stops:
        told = kill(cell, directory, stop, often).told
        print(f"{name:42} {str(stop):62} told of rounds {told}")


@pytest.mark.parametrize("name", KINDS)
def test_a_cell_killed_again_and_again_equals_one_that_never_was(build, tmp_path, name):
    kind = KINDS[name]
    cell = build(kind.few, **kind.settings)
    whole = start(Attempt([(cell, tmp_path / "whole")]))
    killed_at(cell, tmp_path / "killed", name, kind.stops, kind.often)
    finish(cell, tmp_path / "killed")
    assert whole.end() == 0, whole.error
    assert_equal(tmp_path / "killed", tmp_path / "whole")
    lines = read_lines(CellPaths(tmp_path / "killed").journal)
    assert any(outcome.AGE_MAX in line for line in lines) is bool(cell.replay)
    broken = read_json(tmp_path / "killed" / "done.json")["status"] == outcome.DIVERGED
    assert broken is (name == "breaking down")


def test_a_longer_run_that_is_killed_equals_one_that_was_not(build, tmp_path):
    """Its first rounds are of a run that ended; a kill may not touch them."""
    short, long = build(rounds=5, **TRAINED), build(rounds=10, **TRAINED)
    for name in ("whole", "killed"):
        finish(short, tmp_path / name)
    stops = [Inside(PUT, about="journal.jsonl"), *at_random("going on", 3)]
    killed_at(long, tmp_path / "killed", "going on", stops)
    for name in ("whole", "killed"):
        finish(long, tmp_path / name)
    assert_equal(tmp_path / "killed", tmp_path / "whole")


# A new evaluation: kills while the old scores go and the new ones come.
RESCORED = [
    Inside(JOURNAL + "Journal.strip_scores"),
    Inside(JOURNAL + "Journal.strip_scores", "after"),
    Inside(WRITE, about="cell.json"),
    Inside(RUN + "Journal.score", "after"),  # of round 0
    Inside("workers.evaluate:Evaluator.greedy"),
    Inside(RUN + "Journal.score", "after", call=2),
    Inside(WRITE, about="done.json"),
]


@pytest.mark.parametrize("stop", RESCORED, ids=str)
def test_a_new_evaluation_that_is_killed_equals_one_that_was_not(build, tmp_path, stop):
    old, new = build(rounds=3), build(rounds=3, eval={"test_questions": 24})
    for name in ("whole", "killed"):
        finish(old, tmp_path / name)
    kill(new, tmp_path / "killed", stop)
    for name in ("whole", "killed"):
        finish(new, tmp_path / name)
    assert_equal(tmp_path / "killed", tmp_path / "whole")
    frame = pd.read_parquet(CellPaths(tmp_path / "killed").outcomes)
    assert set(frame.phase) == {"base", "final"}


def test_the_old_evaluation_is_made_again_where_a_new_one_was_killed(build, tmp_path):
    old, new = build(rounds=3), build(rounds=3, eval={"test_questions": 24})
    finish(old, tmp_path)
    before = CellPaths(tmp_path).journal.read_bytes()
    kill(new, tmp_path, Inside(JOURNAL + "Journal.strip_scores", "after"))
    finish(old, tmp_path)
    assert CellPaths(tmp_path).journal.read_bytes() == before


@pytest.mark.parametrize("keep", ["none", "weights"])
def test_a_cell_killed_after_its_done_mark_is_tidied_when_it_is_run_again(build, tmp_path, keep):
    cell = build(rounds=6, keep=keep)
    kill(cell, tmp_path, Inside(WRITE, "after", about="done.json"))
    finish(cell, tmp_path)
    left = list(CellPaths(tmp_path).checkpoint.glob("*"))
    assert len(left) == (0 if keep == "none" else 1)


def test_weights_killed_half_way_out_are_gone_and_are_not_trained_anew_unasked(build, tmp_path):
    """`keep: none` takes the last checkpoint away; what is left of it cannot go on."""
    cell = build(rounds=3, keep="none")
    kill(cell, tmp_path, Inside("shutil:os.unlink", "after", about="state.json"))
    child = start(Attempt([(build(rounds=6, keep="none"), tmp_path)]))
    assert child.end() == 1 and isinstance(child.error, InputError)
    assert "weights were not kept" in str(child.error)


@pytest.mark.parametrize(
    "stop",
    [
        Inside(CHECKPOINT + "torch.save", "half", call=1),  # a checkpoint that is never due again
        Inside(CHECKPOINT + "os.unlink", "after", about="state.json"),
        Inside(PUT, call=2, about="outcomes.parquet"),
        Inside(PUT, about="provenance.json"),
    ],
    ids=str,
)
def test_a_kill_leaves_nothing_behind(build, tmp_path, stop):
    cell = build(rounds=6)
    kill(cell, tmp_path / "killed", stop, often=True)
    finish(cell, tmp_path / "killed")
    finish(cell, tmp_path / "whole")
    found = [
        {
            re.sub(r"\.lease\.\d+", ".lease", str(path.relative_to(tmp_path / name)))
            for path in (tmp_path / name).rglob("*")
        }
        for name in ("killed", "whole")
    ]
    assert found[0] == found[1]


def test_the_long_form_kills_often_and_everywhere():
    stops = [stop for kind in KINDS.values() for stop in kind.stops]
    inside = [stop for stop in stops if isinstance(stop, Inside)]
    assert len(inside) >= 40 and len(stops) - len(inside) >= 15
    assert {stop.when for stop in inside} == {"before", "half", "after"}
