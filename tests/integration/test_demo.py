"""The demo, twice, with another seed, with more rounds; and its table. Real Ray, real MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from grids import load_grid
from grids.outcome import REWARD
from grids.paths import CellPaths, Store, read_lines
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COMMAND = Path(sys.executable).parent / "banditgrid"


class Demo:
    """A copy of the demo's grid, one seed of it, and a store."""

    def __init__(self, folder: Path) -> None:
        self.path, self.store = folder / "demo.yaml", Store(folder / "store")
        self.folder = folder
        self.content = yaml.safe_load((ROOT / "grids" / "demo.yaml").read_text())
        self.write(seeds=[0])

    def write(self, rounds: int | None = None, **changes: object) -> None:
        self.content |= changes
        if rounds is not None:
            self.content["base"]["rounds"] = rounds
        self.path.write_text(yaml.safe_dump(self.content))

    def run(self, *words: str) -> str:
        command = [str(COMMAND), *words, "--store", str(self.store.root)]
        made = subprocess.run(
            command, cwd=self.folder, env=dict(os.environ), capture_output=True, text=True
        )
        assert made.returncode == 0, made.stdout + made.stderr
        return made.stdout

    def cells(self) -> dict[str, CellPaths]:
        study = self.store.study("demo")
        return {cell.label: study.cell(cell.key) for cell in load_grid(self.path).cells()}

    def journals(self) -> dict[str, str]:
        return {label: paths.journal.read_text() for label, paths in self.cells().items()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    assert "of 8 cells: 8 finished" in demo.run("run", str(demo.path))
    return demo


def test_again_trains_nothing_then_a_seed_and_then_more_rounds(demo: Demo) -> None:
    first, began = demo.journals(), time.monotonic()
    assert "nothing to train: all 8 cells are done" in demo.run("run", str(demo.path))
    assert time.monotonic() - began < 60 and demo.journals() == first

    demo.write(seeds=[0, 1])
    assert "of 8 cells: 8 finished" in demo.run("run", str(demo.path))
    second = demo.journals()
    assert len(second) == 16 and {label: second[label] for label in first} == first

    demo.write(rounds=70, seeds=[0])
    assert "of 8 cells: 8 finished" in demo.run("run", str(demo.path))
    for label, journal in demo.journals().items():
        assert journal.startswith(first[label])
        assert len(journal.splitlines()) == 71


def test_the_tables_tell_what_was_trained(demo: Demo) -> None:
    told = demo.run("tables", str(demo.path), "--out", str(demo.folder / "tables"))
    assert "pipeline check" in told
    table = pd.read_csv(demo.folder / "tables" / "demo.csv")
    assert len(table) == 8 and (table.seeds_finished == len(demo.content["seeds"])).all()
    assert (table.gain_test_value > 0.05).all(), "every pair of the demo learns"


def test_the_reward_rises(demo: Demo) -> None:
    for label, paths in demo.cells().items():
        rewards = [line[REWARD] for line in read_lines(paths.journal) if REWARD in line]
        assert sum(rewards[-20:]) > sum(rewards[:20]), label
