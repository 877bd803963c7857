"""What a cell's keys are hashes of: its canonical form, without what is inert in it.

The rule: everything that can change the trained policy, and nothing else. Settings that equal their
default are left out, so that adding a field keeps old keys. Leaves out the schema (`cell.py`).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from grids.catalog import GRADER_VERSIONS

if TYPE_CHECKING:
    from grids.cell import Cell

# Raised when a fix changes what some settings train; enters every key.
SEMANTICS = 1

# Names, resources, horizon and evaluation; and what `canonical` writes in a form of its own.
NOT_IDENTITY = {
    "model", "dataset", "model_spec", "dataset_spec", "grader", "engine", "precision",
    "rounds", "eval", "rows_per_pass", "gradient_checkpointing", "gpus", "keep",
}  # fmt: skip


def canonical(cell: Cell) -> dict[str, Any]:
    """Everything that can change the trained policy, as JSON; equal policies, equal form."""
    settings = _settings(cell)
    for name in _inert(cell):
        settings.pop(name, None)
    changed = {k: v for k, v in settings.items() if v != type(cell).model_fields[k].default}
    data = cell.dataset_spec
    columns = [data.question, list(data.answer), data.answer_after]
    return changed | {
        "semantics": SEMANTICS,
        "seed": cell.seed,
        "model": cell.model_spec.revision,
        "dataset": [data.revision, data.config, *columns],
        "prompt": data.prompt,
        "grader": graded(cell.grader),
        "engine": cell.engine,
        "precision": cell.precision,
    }


def evaluation(cell: Cell) -> dict[str, Any]:
    """Everything that can change an evaluation of a given policy."""
    form = cell.eval.model_dump(exclude={"every", "primary"})
    if not cell.eval.samples:
        form.pop("temperature")
    graders = [graded(name) for name in (cell.grader, cell.flexible_grader) if name]
    return form | {"graders": graders, "max_response": cell.max_response}


def base(cell: Cell) -> dict[str, Any]:
    """Everything that can change the evaluation of the base model."""
    names = ("model", "dataset", "prompt", "engine", "precision")
    form = {k: v for k, v in canonical(cell).items() if k in names}
    return form | {"eval": evaluation(cell), "max_prompt": cell.max_prompt}


def digest(form: dict[str, Any]) -> str:
    """16 hexadecimal digits over a canonical form."""
    text = json.dumps(form, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def graded(grader: str) -> list[Any]:
    """A grader and its version."""
    return [grader, GRADER_VERSIONS[grader]]


def _settings(cell: Cell) -> dict[str, Any]:
    settings = cell.model_dump(exclude=NOT_IDENTITY)
    settings["micro_batch"] = min(cell.micro_batch, cell.rows_per_update)
    if _is_raw_alone(cell):
        settings["advantage"] = "raw"
    if cell.clip_high == cell.clip:
        settings["clip_high"] = None
    return settings


def _inert(cell: Cell) -> set[str]:
    """Settings that cannot change what this cell trains."""
    inert: set[str] = set()
    if cell.on_policy:
        inert |= {"clip", "clip_high", "dual_clip"}
    if cell.clip is None:
        inert |= {"clip_high", "dual_clip"}
    if cell.kl == 0:
        inert |= {"kl_form", "kl_on_signal_only"}
    if cell.replay == 0:
        inert |= {"replay_mode", "replay_fill", "replay_max_age"}
    if cell.advantage == "raw" or cell.rollouts > 1 or _is_raw_alone(cell):
        inert |= {"singleton"}
    if cell.aggregation != "token_mean_micro_batch":
        inert |= {"micro_batch"}
    if cell.engine == "transformers":
        inert |= {"importance_correction"}
    return inert


def _is_raw_alone(cell: Cell) -> bool:
    """A group of one that earns its raw reward, whatever its estimator."""
    return cell.rollouts + cell.replay == 1 and cell.singleton == "raw"
