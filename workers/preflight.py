"""What can be known about a cell before it starts: its data, its model's files, their limits.

A driver calls it before it writes anything, so that a person's mistake ends in one message and not
in a failed trial. Imports no torch. Leaves out everything that only training can tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from grids.cell import Cell
from workers.data import check_batch, load_questions
from workers.models import check_context, model_folder


def check(cells: Iterable[Cell]) -> list[str]:
    """Load every data set and find every model that the cells name.

    Returns:
        Notes for people, such as rows that had to be dropped.

    Raises:
        InputError: naming the cell or data set, what was got, what is allowed and what to do.
    """
    notes: list[str] = []
    sizes: dict[str, int] = {}
    folders: dict[str, Path] = {}
    for cell in cells:
        data, model = cell.dataset_spec, cell.model_spec
        named = data.model_dump_json()
        if named not in sizes:
            questions = load_questions(data)
            notes += questions.notes
            sizes[named] = len(questions.train)
        if model.revision not in folders:
            folders[model.revision] = model_folder(model)
        check_batch(cell, sizes[named])
        check_context(cell, folders[model.revision])
    return notes
