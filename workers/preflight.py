"""What can be known about a cell before it starts: its data, its model's files, their limits.

A driver calls it before it writes anything, so that a person's mistake ends in one message and not
in a failed trial. Imports no torch. Leaves out everything that only training can tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from grids.cell import Cell
from workers import engine_check, liger
from workers.data import Question, check_batch, load_questions, split_off
from workers.models import check_context, model_folder
from workers.rewards import check_solutions


def scorable(asked: Cell) -> Cell:
    """The cell without what training alone asks of its data set: one that is only answered may be
    smaller than a batch, and need no worked solutions."""
    return asked.model_copy(update={"batch": 1, "reward": "correct"})


def check(cells: Iterable[Cell], trains_here: bool = True) -> list[str]:
    """Load every data set and find every model that the cells name.

    Args:
        cells: to look at.
        trains_here: whether this machine trains, so that what is installed on it counts; of other
            machines the workers tell.

    Returns:
        Notes for people, such as rows that had to be dropped.

    Raises:
        InputError: naming the cell or data set, what was got, what is allowed and what to do.
    """
    notes: list[str] = []
    trains: dict[str, tuple[Question, ...]] = {}
    folders: dict[str, Path] = {}
    engine_checked = False
    for cell in cells:
        if trains_here and cell.engine == "vllm" and not engine_checked:
            engine_check.check()
            engine_checked = True
        data, model = cell.dataset_spec, cell.model_spec
        named = data.model_dump_json() + "".join(p.digest for p in cell.plugin_specs)
        if named not in trains:
            questions = load_questions(data, cell.plugin_specs)
            notes += questions.notes
            trains[named] = questions.train
        if model.revision not in folders:
            folders[model.revision] = model_folder(model)
        check_batch(cell, len(split_off(trains[named], cell.holdout).train))
        check_solutions(cell, trains[named])
        check_context(cell, folders[model.revision])
        if trains_here:
            liger.check(cell, folders[model.revision])
    return notes
