"""A cell's data set as an input of its MLflow run: which questions, of which revision, from where.

So that MLflow's pages show and filter runs by what they trained on and were asked. Leaves out the
rows: a revision names them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from grids.catalog import DatasetSpec
from grids.cell import Cell

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

CONTEXT: Final = "mlflow.data.context"
DIGEST_CHARACTERS: Final = 36  # MLflow takes no more


def inputs(cell: Cell) -> list[DatasetInput]:
    """The questions that the cell is trained on, and those that it is asked.

    They have names of their own: MLflow keeps one input of a name and digest.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    spec = cell.dataset_spec
    rows = {"train": spec.train_rows, "test": spec.test_rows}
    made = []
    for split, context in (("train", "training"), ("test", "evaluation")):
        profile = {"num_rows": rows[split]} if rows[split] is not None else {}
        dataset = Dataset(
            name=f"{spec.name} {split}", digest=str(spec.revision)[:DIGEST_CHARACTERS],
            source_type=_source_type(spec), source=json.dumps(_source(spec, split)),
            profile=json.dumps(profile),
        )  # fmt: skip
        made.append(DatasetInput(dataset, tags=[InputTag(CONTEXT, context)]))
    return made


def _source_type(spec: DatasetSpec) -> str:
    """As MLflow names them; a function of ours or of a plug-in is code."""
    if spec.hub is not None:
        return "hugging_face"
    return "local" if spec.path is not None else "code"


def _source(spec: DatasetSpec, split: str) -> dict[str, Any]:
    if spec.hub is not None:
        told = {"path": spec.hub, "config_name": spec.config, "split": split}
        return {**told, "revision": spec.revision}
    if spec.path is not None:
        return {"uri": f"{spec.name}/{split}.jsonl", "revision": spec.revision}
    return {"source": spec.source, "options": spec.options, "split": split}
