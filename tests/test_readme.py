"""What the README shows is true: its grid loads, its make targets and paths are there."""

import re

from grids import load_grid
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_grid_is_a_grid(grid_file):
    (text,) = [t for t in re.findall(r"```yaml\n(.*?)```", README, re.S) if t.startswith("name:")]
    grid = load_grid(grid_file(text))
    assert {cell.samples_per_step for cell in grid.cells()} == {64}
    assert grid.contrasts


def test_the_readmes_make_targets_are_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) - {"and"} <= targets


def test_the_readmes_files_are_there():
    for path in re.findall(r"`((?:grids|tests|workers)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


def test_the_readmes_commands_are_commands():
    from orchestrator.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"banditgrid ([a-z]+)\b", README)) - {"plans"} <= known


def test_constraints_pin_exactly():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x[:1] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    pins = dict(line.split("==") for line in lines)
    assert (pins["torch"], pins["transformers"], pins["trl"]) == ("2.13.0", "5.17.0", "1.16.0")
