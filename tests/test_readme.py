"""The README is short and leads on; its grid, and the pins that it relies on, are what it says.

Commands, paths, links and the blocks that run are `test_documents.py`'s.
"""

from __future__ import annotations

import re

import yaml

from tests.conftest import ROOT
from tests.documents import read

README = ROOT / "README.md"


def test_the_readmes_grid_is_a_grid(grid_file):
    from grids import load_grid

    (block,) = (block for block in read(README).blocks if block.language == "yaml")
    assert block.mark.writes == f"{yaml.safe_load(block.text)['name']}.yaml"
    grid = load_grid(grid_file(block.text))
    assert {cell.samples_per_step for cell in grid.cells()} == {64}
    assert grid.contrasts


def test_the_readme_is_read_in_one_go():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


def test_the_readme_leads_to_every_page():
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {"docs/README.md"}
    assert pages <= set(read(README).links)


def test_what_is_told_of_each_choice_is_told_of_all():
    """Every setting of the table of design choices is a field of a cell."""
    from grids.cell import Cell

    text = (ROOT / "docs" / "grids.md").read_text(encoding="utf-8")
    table = text.split("## The design choices")[1].split("##")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", table, re.M))))
    assert len(named) > 15 and named <= set(Cell.model_fields)


def test_constraints_pin_exactly():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x[:1] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    pins = dict(line.split("==") for line in lines)
    assert (pins["torch"], pins["transformers"], pins["trl"]) == ("2.13.0", "5.17.0", "1.16.0")
