"""What a named evaluation changes of a cell: its evaluation, data set, lengths or grader.

Also which cells grids name, and the plug-ins beside them. Leaves out scoring (`evaluating.py`) and
grading (`regrading.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from grids import limits, plugin
from grids.catalog import DATASETS, FLEXIBLE, DatasetSpec, pinned
from grids.cell import Cell, Evaluation
from grids.errors import InputError, listed, nearest
from grids.grid import Grid
from grids.plugin import PluginSpec
from workers import named

SHOWN: Final = 5  # cells that a message names
LENIENT: Final = "flexible"  # stands for the lenient rule of whatever grader a cell has


@dataclass(frozen=True)
class Change:
    """None leaves what the cell has.

    Attributes:
        evaluation: fields of `grids.Evaluation` that are to be others.
        plugins: where a grader may come from.
    """

    dataset: DatasetSpec | None = None
    max_response: int | None = None
    grader: str | None = None
    evaluation: dict[str, Any] | None = None
    plugins: tuple[PluginSpec, ...] = ()

    def of(self, cell: Cell) -> Cell:
        """The cell as it is to be scored.

        On another data set, whose grader is taken, no train questions are asked unless they are
        asked for: it was trained on none. Raises `InputError` where the settings contradict each
        other.
        """
        changes: dict[str, Any] = {}
        evaluation = self.evaluation or {}
        if self.dataset is not None:
            given = {"dataset": self.dataset.name, "dataset_spec": self.dataset}
            if not named.same_questions(cell, cell.model_copy(update=given)):
                changes = given | {"holdout": 0, "grader": self.dataset.grader}
        if changes:
            evaluation = {"train_questions": 0, **evaluation}
        if self.grader is not None:
            changes["grader"] = self._grader_for(changes.get("grader", cell.grader), cell)
        if self.max_response is not None:
            changes["max_response"] = self.max_response
        changes["eval"] = _evaluation(cell, evaluation)
        _check_context(cell, changes.get("max_response", cell.max_response))
        return _with_plugins(cell.model_copy(update=changes), self.plugins)

    def _grader_for(self, own: str, cell: Cell) -> str:
        if self.grader != LENIENT or plugin.provider(self.plugins, "GRADERS", LENIENT):
            return str(self.grader)
        if own not in FLEXIBLE:
            raise InputError(
                f"{cell.label}: its grader {own!r} has no lenient rule; name a grader in place of "
                f"{LENIENT!r}; those with one: {listed(FLEXIBLE)}"
            )
        return FLEXIBLE[own]


def _evaluation(cell: Cell, changes: dict[str, Any]) -> Evaluation:
    try:
        return Evaluation.model_validate({**cell.eval.model_dump(), **changes})
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{cell.label}: {told}") from None


def _check_context(cell: Cell, max_response: int) -> None:
    if (longest := cell.max_prompt + max_response) > cell.model_spec.context:
        raise InputError(
            f"{cell.label}: max_prompt {cell.max_prompt} + --max-response {max_response} = "
            f"{longest} tokens exceed the context of {cell.model} ({cell.model_spec.context} "
            "tokens); lower it"
        )


def _with_plugins(cell: Cell, plugins: Sequence[PluginSpec]) -> Cell:
    """The cell with those of its own and of these plug-ins that it uses now."""
    settings = {name: getattr(cell, name) for name in type(cell).model_fields}
    known = {spec.digest: spec for spec in (*plugins, *cell.plugin_specs)}
    return cell.model_copy(update={"plugin_specs": plugin.used(known.values(), settings)})


def plugins_of(grids: Iterable[Grid], named: Iterable[str]) -> tuple[PluginSpec, ...]:
    """The plug-ins of grids, and those that the command names, beside the current folder."""
    found = [spec for grid in grids for spec in grid.plugin_specs]
    found += [plugin.read(plugin.located(name, Path.cwd())).spec for name in named]
    return tuple({spec.digest: spec for spec in found}.values())


def check_grader(name: str, plugins: Sequence[PluginSpec]) -> str:
    """The name. Raises `InputError` where no grader has it."""
    try:
        limits.check_name("--grader", name or "none", (*limits.known("grader", plugins), LENIENT))
    except ValueError as error:
        raise InputError(
            f"{error}; a plug-in's grader needs a grid that names the plug-in, or --plugin"
        ) from None
    return name


def dataset_of(name: str, grids: Iterable[Grid]) -> DatasetSpec:
    """One of the catalogue, of a grid or of its plug-ins. Raises `InputError` for another name."""
    known = dict(DATASETS)
    for grid in grids:
        known |= grid.names.datasets
    if name not in known:
        raise InputError(
            f"--dataset: unknown name; got {name!r}; allowed: {listed(known)}{nearest(name, known)}"
        )
    return pinned(known[name])


def cells_of(grids: Iterable[Grid]) -> dict[tuple[str, str], Cell]:
    """(study, key) -> the cell; of two grids' the one with the larger horizon."""
    found: dict[tuple[str, str], Cell] = {}
    for grid in grids:
        for cell in grid.cells():
            known = found.get((grid.study, cell.key))
            if known is None or known.rounds < cell.rounds:
                found[grid.study, cell.key] = cell
    return found


def named_few(labels: Sequence[str]) -> str:
    """`3 cells: a; b; c`, the first few of many."""
    more = f"; and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    cells = "1 cell" if len(labels) == 1 else f"{len(labels)} cells"
    return f"{cells}: {'; '.join(labels[:SHOWN])}{more}"
