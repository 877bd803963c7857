"""The parts of a GPU check: which cells are run, each by one `banditgrid run`.

Leaves out running them (`gpu_check.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from grids.cell import Cell
from grids.load import load_grid
from grids.paths import replace_text
from orchestrator.packing import Gpus, shares
from tests.benchmarks.real_model import NAME

MOST_TRIALS = 8  # at once: more would say no more


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        base: settings of all cells.
        rounds, every: of the two runs, raw and grpo, and between their evaluations.
        batch: queries a round.
        trial_rounds: of each of the trials that share the GPU.
    """

    base: dict[str, Any]
    rounds: tuple[int, int] = (100, 30)
    every: tuple[int, int] = (20, 10)
    batch: int = 32
    trial_rounds: int = 20
    train_questions: int = 100


FULL = Scale(
    {"model": NAME, "dataset": "gsm8k", "max_prompt": 256, "max_response": 256, "keep": "none"}
)
TINY = Scale(
    {"model": "tiny-qwen2", "dataset": "tiny-sums", "keep": "none"},
    rounds=(4, 2), every=(2, 1), batch=8, trial_rounds=2, train_questions=8,
)  # fmt: skip


def scale_of(tiny: bool, on_gpu: bool) -> Scale:
    """What is asked for. On a GPU the embedded model takes bf16: vLLM's usual attention there has
    no fp32 for the width of its heads."""
    if not tiny:
        return FULL
    return replace(TINY, base=TINY.base | {"precision": "bf16" if on_gpu else "fp32"})


@dataclass(frozen=True)
class Part:
    """One `banditgrid run`.

    Attributes:
        study: where its cells lie; parts of one study share a base evaluation.
        slots: cells at a time; None: as many as the GPU holds.
        trial: whether it is of the trials that share the GPU.
    """

    name: str
    study: str
    about: str
    engine: str
    settings: dict[str, Any]
    seeds: int = 1
    slots: int | None = 1
    trial: bool = False

    def write(self, folder: Path) -> Path:
        """Its grid file."""
        grid = {
            "name": self.name, "study": self.study, "about": self.about,
            "base": {k: v for k, v in self.settings.items() if k not in ("model", "dataset")},
            "axes": {k: [self.settings[k]] for k in ("model", "dataset")},
            "seeds": list(range(self.seeds)),
        }  # fmt: skip
        path = folder / f"{self.name}.yaml"
        replace_text(path, yaml.safe_dump(grid, sort_keys=False))
        return path

    def cells(self, folder: Path) -> tuple[Cell, ...]:
        """What its grid file asks for."""
        return load_grid(self.write(folder)).cells()


def parts_of(scale: Scale, engine: str, trials: int, at_once: int | None) -> list[Part]:
    """What is run with one engine; `at_once` are slots where no GPU says how many fit."""
    base = scale.base | {"engine": engine, "batch": scale.batch}
    made = []
    shapes = (("raw", 1), ("grpo", 8))
    for (advantage, n), rounds, every in zip(shapes, scale.rounds, scale.every, strict=True):
        settings = base | {"rollouts": n, "advantage": advantage, "rounds": rounds}
        settings["eval"] = {"every": every, "train_questions": scale.train_questions}
        about = f"{rounds} rounds of ({scale.batch},{n},0) {advantage}"
        made.append(Part(f"{engine}-{advantage}", f"{engine}-learning", about, engine, settings))
    few = {"every": scale.trial_rounds, "test_questions": 8, "train_questions": 0}
    short = base | {"rounds": scale.trial_rounds, "eval": few}
    for name, slots, words in (("together", at_once, "at once"), ("one-by-one", 1, "one by one")):
        made.append(
            Part(f"{engine}-{name}", f"{engine}-{name}", f"{trials} short trials, {words}", engine,
                 short, trials, slots, trial=True)
        )  # fmt: skip
    return made


def trials_that_fit(cell: Cell, gpu_bytes: int | None) -> int:
    """As many as the predicted shares let; two without a GPU."""
    if gpu_bytes is None:
        return 2
    share = shares([cell], Gpus(gpu_bytes, gpu_bytes))[cell.key]
    return max(1, int(1 / share + 1e-9))
