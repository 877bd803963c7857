"""What a valid cell must also hold: names that exist, lengths, batch, clip.

Each check raises `ValueError`, naming the setting, what was got and what is allowed. Leaves out the
type and range of a single setting, which its field declares (`cell.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from grids.catalog import (
    AGGREGATIONS,
    ESTIMATORS,
    GRADER_VERSIONS,
    KLS,
    LOSSES,
    PARTIAL,
    REWARDS,
    SOURCES,
)
from grids.errors import listed, nearest
from grids.plugin import FUNCTIONS, PluginSpec
from grids.plugin import SOURCES as PLUGIN_SOURCES

if TYPE_CHECKING:
    from grids.cell import Cell

MOST_GPUS = 64  # of a cell: more than any node has
# Settings whose value is a name of a registry elsewhere.
NAMED: dict[str, Collection[str]] = {
    "advantage": ESTIMATORS,
    "loss": LOSSES,
    "aggregation": AGGREGATIONS,
    "kl_form": KLS,
    "reward": REWARDS,
    "grader": GRADER_VERSIONS,
}


def known(name: str, plugins: Iterable[PluginSpec] = ()) -> tuple[str, ...]:
    """The names that a setting may have, with those of some plug-ins."""
    registry = next(key for key, setting in FUNCTIONS.items() if setting == name)
    return (*NAMED[name], *(n for spec in plugins for n in spec.provides.get(registry, ())))


def check(cell: Cell) -> None:
    """Everything that single settings cannot tell of a cell."""
    for name in NAMED:
        check_name(name, getattr(cell, name), known(name, cell.plugin_specs))
    _check_source(cell)
    _check_graded(cell)
    _check_context(cell)
    _check_batch(cell)
    _check_updates(cell)
    _check_clip(cell)
    _check_liger(cell)


def no_switch(gpus: Any) -> Any:
    if isinstance(gpus, bool):
        raise ValueError(
            "is a number, a share of one GPU or how many; take 1 for a whole one, or leave it out"
        )
    return gpus


def check_gpus(gpus: float) -> float:
    if gpus > MOST_GPUS:
        raise ValueError(
            f"a cell's GPUs are of one node, at most {MOST_GPUS}; got {gpus:.15g}; lower it"
        )
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(
            f"a cell takes a share of one GPU (above 0, at most 1) or a whole number of GPUs; got "
            f"{gpus:g}; take {int(gpus)} or {int(gpus) + 1}"
        )
    return gpus


def check_name(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed and not (name == "grader" and value == ""):
        raise ValueError(
            f"{name}: unknown name; got {value!r}; "
            f"allowed: {listed(allowed)}{nearest(value, allowed)}"
        )


def _check_source(cell: Cell) -> None:
    source = cell.dataset_spec.source
    own = (n for spec in cell.plugin_specs for n in spec.provides.get(PLUGIN_SOURCES, ()))
    if source is not None:
        check_name(f"{cell.dataset}: source", source, (*SOURCES, *own))


def _check_graded(cell: Cell) -> None:
    """What a data set's golds or a grader cannot give is refused; a plug-in's may be anything."""
    own = cell.dataset_spec.source in (None, *SOURCES)
    if cell.grader == "reasoning-gym" and own and cell.dataset_spec.source != "reasoning-gym":
        raise ValueError(
            f"grader: reasoning-gym scores answers to its own questions alone, and {cell.dataset} "
            "has others; take another grader, such as gsm8k, or a data set with "
            "`source: reasoning-gym`"
        )
    if cell.reward == "score" and cell.grader in GRADER_VERSIONS and cell.grader not in PARTIAL:
        raise ValueError(
            f"reward: score is the grader's own partial credit, and {cell.grader} gives none; "
            f"allowed with score: {listed(PARTIAL)}; take another reward, such as steps or format"
        )


def _check_context(cell: Cell) -> None:
    longest = cell.max_prompt + cell.max_response
    if longest > cell.model_spec.context:
        raise ValueError(
            f"max_prompt {cell.max_prompt} + max_response {cell.max_response} = {longest} tokens "
            f"exceed the context of {cell.model} ({cell.model_spec.context} tokens); lower one"
        )


def _check_batch(cell: Cell) -> None:
    rows = cell.dataset_spec.train_rows
    if rows is not None and cell.batch > (left := rows - cell.holdout):
        without = f", {cell.holdout} of them held out" if cell.holdout else ""
        raise ValueError(
            f"batch: larger than the train set; got {cell.batch}; {cell.dataset} has {rows} train "
            f"questions{without}, so at most {left} is allowed"
        )
    if cell.generated_per_step < 2:
        raise ValueError("batch: 1 query with 1 rollout a round; at least 2 rollouts are needed")


def _check_updates(cell: Cell) -> None:
    if cell.batch % cell.updates_per_round:
        raise ValueError(
            f"updates_per_round: {cell.updates_per_round} does not divide the batch {cell.batch}; "
            f"allowed: its divisors; take {_near_divisors(cell.batch, cell.updates_per_round)}"
        )
    rows = cell.rows_per_update
    if cell.micro_batch > rows:  # a default has been lowered: this one was written
        taken = "(rollouts + replay)" if cell.replay_mode == "train" else "rollouts"
        raise ValueError(
            f"micro_batch: {cell.micro_batch} rows, but an update has {rows} "
            f"(batch × {taken} / updates_per_round); at most {rows} is allowed"
        )


def _near_divisors(batch: int, wanted: int) -> str:
    """The divisors of a batch on either side of a number that is none: `2 or 4`."""
    divisors = [d for d in range(1, batch + 1) if batch % d == 0]
    below = max(d for d in divisors if d < wanted)
    above = [d for d in divisors if d > wanted][:1]
    return " or ".join(map(str, [below, *above]))


def _check_clip(cell: Cell) -> None:
    upper = cell.clip_high or cell.clip
    if upper is not None and cell.dual_clip is not None and 1 + upper > cell.dual_clip:
        raise ValueError(
            f"dual_clip: {cell.dual_clip} lies below the upper clip 1 + {upper}, which it must not "
            "cut; raise it, or turn it off"
        )


def _check_liger(cell: Cell) -> None:
    asked = {
        "kl: off": cell.kl == 0,
        "loss: clip": cell.loss == "clip",
        "updates_per_round: 1": cell.updates_per_round == 1,
        "replay_mode: baseline": not cell.replay or cell.replay_mode == "baseline",
    }
    if cell.liger and (lacking := [setting for setting, holds in asked.items() if not holds]):
        raise ValueError(
            "liger: its loss tells no log-probabilities, so it takes the place of ours only where "
            f"none are asked for; take {' and '.join(lacking)}, or liger: false"
        )
