"""What a cell's keys are hashes of: its canonical form, without what is inert in it.

The rule: everything that can change the trained policy, and nothing else. Settings that equal their
default are left out, so that adding a field keeps old keys. Also tells why two cells have one key.
Leaves out the schema (`cell.py`).
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import TYPE_CHECKING, Any

from grids.catalog import AGGREGATIONS, ESTIMATORS, GRADER_VERSIONS, GROUP_RELATIVE, LOSSES
from grids.plugin import FUNCTIONS, provider

if TYPE_CHECKING:
    from grids.cell import Cell

# Raised when a fix changes what some settings train; enters every key.
SEMANTICS = 2

# Names, resources, horizon and evaluation; and what `canonical` writes in a form of its own.
NOT_IDENTITY = {
    "model", "dataset", "model_spec", "dataset_spec", "plugin_specs", "grader", "engine",
    "precision", "rounds", "eval", "rows_per_pass", "gradient_checkpointing", "liger", "gpus",
    "keep", "max_unscored",
}  # fmt: skip

# What the singleton rule makes of every estimator that is relative to a group.
ALONE = {
    "raw": "a group of one earns the raw reward: singleton: raw",
    "batch_mean": "a group of one earns its reward minus the batch's mean: singleton: batch_mean",
    "zero": "a group of one earns nothing: singleton: zero",
}


def canonical(cell: Cell) -> dict[str, Any]:
    """Everything that can change the trained policy, as JSON; equal policies, equal form."""
    defaults = _defaults(type(cell))
    changed = {k: v for k, v in effective(cell).items() if v != defaults[k]}
    data = cell.dataset_spec
    columns: list[Any] = [data.question, list(data.answer), data.answer_after]
    if data.source is not None:
        columns += [data.source, data.options]
    return changed | {
        "semantics": SEMANTICS,
        "seed": cell.seed,
        "model": cell.model_spec.revision,
        "dataset": [data.revision, data.config, *columns],
        "prompt": data.prompt,
        "grader": graded(cell, cell.grader),
        "engine": cell.engine,
        "precision": cell.precision,
    }


def effective(cell: Cell) -> dict[str, Any]:
    """Every setting that can change what this cell trains, defaults included."""
    inert = _inert(cell)
    return {name: value for name, value in _settings(cell).items() if name not in inert}


def evaluation(cell: Cell) -> dict[str, Any]:
    """Everything that can change an evaluation of a given policy."""
    form = cell.eval.model_dump(exclude={"every", "primary"})
    if not cell.eval.samples:
        form.pop("temperature")
    graders = [graded(cell, name) for name in (cell.grader, cell.flexible_grader) if name]
    return form | {"graders": graders, "max_response": cell.max_response}


def base(cell: Cell) -> dict[str, Any]:
    """Everything that can change the evaluation of the base model."""
    names = ("model", "dataset", "prompt", "engine", "precision")
    form = {k: v for k, v in canonical(cell).items() if k in names}
    if cell.holdout:  # which are scored, and which are not in the train subset
        form["holdout"] = cell.holdout
    return form | {"eval": evaluation(cell), "max_prompt": cell.max_prompt}


def digest(form: dict[str, Any]) -> str:
    """16 hexadecimal digits over a canonical form."""
    text = json.dumps(form, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def graded(cell: Cell, grader: str) -> list[Any]:
    """A grader and its version, or its plug-in's digest."""
    spec = provider(cell.plugin_specs, "GRADERS", grader)
    return [grader, GRADER_VERSIONS[grader] if spec is None else spec.digest]


@cache
def _defaults(cells: type[Cell]) -> dict[str, Any]:
    return {name: info.default for name, info in cells.model_fields.items()}


def _settings(cell: Cell) -> dict[str, Any]:
    settings = cell.model_dump(exclude=NOT_IDENTITY)
    settings["advantage"] = _estimator(cell)
    for registry, name in FUNCTIONS.items():
        if name in settings and (spec := provider(cell.plugin_specs, registry, settings[name])):
            settings[name] = [settings[name], spec.digest]
    if cell.clip_high == cell.clip:
        settings["clip_high"] = None
    return settings


def _inert(cell: Cell) -> set[str]:
    """Settings that cannot change what this cell trains."""
    inert: set[str] = set()
    if cell.on_policy and cell.loss in LOSSES:
        inert |= {"clip", "clip_high", "dual_clip"}
    if cell.clip is None:
        inert |= {"clip_high", "dual_clip"}
    if cell.kl == 0:
        inert |= {"kl_form", "kl_on_signal_only"}
    if cell.replay == 0:
        inert |= {"replay_mode", "replay_fill", "replay_max_age"}
    if idle_replay(cell):
        inert |= {"replay", "replay_mode", "replay_fill", "replay_max_age"}
    own = _estimator(cell) not in ESTIMATORS  # a plug-in's may read the rule
    follows = _estimator(cell) in (*GROUP_RELATIVE, "ema")  # where a group is of one
    if not own and (cell.rollouts > 1 or not follows):
        inert |= {"singleton"}
    if cell.advantage != "ema":
        inert |= {"ema_decay"}
    if cell.aggregation != "token_mean_micro_batch" and cell.aggregation in AGGREGATIONS:
        inert |= {"micro_batch"}
    if cell.lora_rank == 0:
        inert |= {"lora_alpha", "lora_targets"}
    if cell.engine == "transformers":
        inert |= {"importance_correction"}
    return inert


def _estimator(cell: Cell) -> str:
    """The cell's estimator by what it computes: another one's name where all groups are of one."""
    if not _is_alone(cell):
        return cell.advantage
    if cell.singleton == "zero":  # whichever it is, no reward makes a gradient
        return "mean_centered"
    if cell.advantage != "reinforce_pp_baseline":
        return cell.singleton  # raw, batch_mean: estimators of these names do just that
    return "reinforce_pp" if cell.singleton == "raw" else cell.advantage


def _is_alone(cell: Cell) -> bool:
    """Every group is of one, in every round, so that the singleton rule gives all advantages."""
    return cell.rollouts + cell.replay == 1 and cell.advantage in GROUP_RELATIVE


def idle_replay(cell: Cell) -> str | None:
    """Why what the cell replays enters nothing, or None."""
    if not cell.replay or cell.replay_mode == "train":
        return None
    why = f"replay in baseline mode changes nothing under the {cell.advantage} advantage"
    if cell.advantage == "raw":
        return why
    if cell.advantage == "ema" and cell.replay_fill == "cold":
        return f"{why}, whose running baseline already holds what was seen (replay_fill: cold)"
    return None


def why_same(cell: Cell, twin: Cell) -> str:
    """What makes two settings one: ` (...)`, or nothing where the two are written alike."""
    names = [n for n in type(cell).model_fields if n not in NOT_IDENTITY]
    differ = [n for n in names if getattr(cell, n) != getattr(twin, n)]
    told = []
    if "advantage" in differ:
        relative = cell if _is_alone(cell) else twin
        told.append(ALONE[relative.singleton])
    if rest := [n for n in differ if n != "advantage"]:
        told.append(f"{', '.join(rest)}: without effect here")
    return f" ({'; '.join(told)})" if told else ""
