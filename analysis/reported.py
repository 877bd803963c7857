"""The numbers that the paper reports (`grids/reported.yaml`), and whose they are.

A number stands beside a cell of ours only where the paper states its arm; any other one is shown as
"reported, arm unknown". Leaves out what the paper does not report: it stays blank.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

import grids
from analysis.arms import is_papers
from grids.cell import Cell

# What the paper states of its settings: an arm that departs from one of them is not the paper's.
STATED = ("lr", "kl", "clip", "micro_batch", "max_prompt", "max_response")


class ReportedArm(BaseModel):
    """(B, n, m) and advantage."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    shape: tuple[int, int, int]
    advantage: str


class Reported(BaseModel):
    """One number; null for what the paper leaves open."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    section: str
    model: str | None
    dataset: str | None
    arm: ReportedArm | None
    what: str = ""
    measure: Literal["gain", "test", "range"]
    value: float | tuple[float, float]

    @property
    def text(self) -> str:
        """`gain 0.60`, `test 0.56`, `0.00 to 0.10`."""
        if isinstance(self.value, tuple):
            return f"{self.value[0]:.2f} to {self.value[1]:.2f}"
        return f"{self.measure} {self.value:.2f}"

    @property
    def subject(self) -> str:
        """Whose number it is, as far as the paper says."""
        if self.model is None:
            return "pairs not named"
        return f"{self.model}-{self.dataset}" if self.dataset else f"{self.model}, data not stated"


@lru_cache(maxsize=1)
def reported_numbers() -> tuple[Reported, ...]:
    """Everything in `grids/reported.yaml`."""
    path = Path(grids.__file__).parent / "reported.yaml"
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(Reported.model_validate(number) for number in loaded["numbers"])


def of_arm(cell: Cell, section: str | None) -> tuple[Reported, ...]:
    """The section's numbers that the paper states for this very pair and arm."""
    if not _as_stated(cell):
        return ()
    return tuple(
        number
        for number in reported_numbers()
        if number.arm is not None
        and number.section == section
        and (number.model, number.dataset) == _paper_pair(cell)
        and (number.arm.shape, number.arm.advantage) == (cell.shape, cell.advantage)
    )


def arm_unknown(cell: Cell, section: str | None) -> tuple[Reported, ...]:
    """The section's numbers that may be this pair's, their arm not stated."""
    if not is_papers(cell):
        return ()
    model, dataset = _paper_pair(cell)
    return tuple(
        number
        for number in reported_numbers()
        if number.arm is None
        and number.section == section
        and number.model in (None, model)
        and number.dataset in (None, dataset)
    )


def arms_unknown(cells: Iterable[Cell], section: str | None) -> tuple[Reported, ...]:
    """The same over all cells of a table, each number once."""
    found = (number for cell in cells for number in arm_unknown(cell, section))
    once = set(found)
    return tuple(number for number in reported_numbers() if number in once)


def _as_stated(cell: Cell) -> bool:
    fields = Cell.model_fields
    return is_papers(cell) and all(getattr(cell, n) == fields[n].default for n in STATED)


def _paper_pair(cell: Cell) -> tuple[str, str]:
    return (cell.model_spec.paper, cell.dataset_spec.paper)
