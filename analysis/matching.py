"""What two arms share and what they do not: settings, planned quantities, costs, sizes of groups.

Leaves out outcomes (`contrasts.py`), and what follows for a verdict (`declared.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from analysis.intervals import Estimate, mean_t
from analysis.runs import Run
from grids.cell import SPECS, Cell
from grids.grid import NOT_AXES

# Settings that are no part of what is compared, though cells hold them.
NOT_COMPARED: Final = NOT_AXES - {"rounds", "eval"} | {"seed"}
COSTS: Final = (
    "rounds", "prompts", "rollouts", "updates", "generated_tokens", "trained_tokens", "seconds",
)  # fmt: skip


def planned(cell: Cell) -> dict[str, int]:
    """What a cell spends by design, whatever became of its run."""
    return {
        "rounds": cell.rounds,
        "prompts": cell.batch * cell.rounds,
        "rollouts": cell.generated_per_step * cell.rounds + cell.filled_samples,
        "updates": cell.updates_per_round * cell.rounds,
    }


def held_equal(a: Cell, b: Cell) -> tuple[str, ...]:
    """Names of `planned` quantities that are equal in two arms."""
    ours, theirs = planned(a), planned(b)
    return tuple(name for name in ours if ours[name] == theirs[name])


def differences(a: Cell, b: Cell) -> dict[str, tuple[Any, Any]]:
    """Every setting in which two arms differ, content behind names included."""
    ours, theirs = (_flat(cell) for cell in (a, b))
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


def _flat(cell: Cell) -> dict[str, Any]:
    settings = cell.model_dump(exclude={*SPECS, "eval", *NOT_COMPARED})
    settings |= {f"eval.{name}": value for name, value in cell.eval.model_dump().items()}
    settings["model_revision"] = cell.model_spec.revision
    return settings | {"dataset_revision": cell.dataset_spec.revision}


def cost_ratios(runs: Mapping[str, Sequence[Run]], seeds: tuple[int, ...]) -> dict[str, Estimate]:
    """b over a by kind of cost: geometric means over seeds, their t interval on the log scale."""
    spent = {side: {r.cell.seed: asdict(r.training.costs) for r in runs[side]} for side in runs}
    ratios = {}
    for name in COSTS:
        pairs = [(spent["a"][seed][name], spent["b"][seed][name]) for seed in seeds]
        if all(x > 0 and y > 0 for x, y in pairs):  # NaN fails too
            logs = mean_t([math.log(y / x) for x, y in pairs])
            value, low, high = (math.exp(x) for x in (logs.value, logs.low, logs.high))
            ratios[name] = Estimate(value, value * logs.se, low, high, logs.df, logs.n)
    return ratios


def group_of(runs: Mapping[str, Sequence[Run]], seeds: tuple[int, ...]) -> tuple[float, int] | None:
    """Of the arm that replays: the median over its seeds, and what its groups should hold."""
    for side in ("b", "a"):
        cell = runs[side][0].cell
        if cell.replay:
            medians = [r.training.median_group for r in runs[side] if r.cell.seed in seeds]
            return float(np.median(medians)), cell.rollouts + cell.replay
    return None


def differing_hardware(
    runs: Mapping[str, Sequence[Run]], seeds: Collection[int], device: Callable[[Cell], str | None]
) -> str:
    """Why two arms cannot be told apart from their machines; empty where these are the same."""
    devices = [
        {device(run.cell) or "unknown" for run in runs[side] if run.cell.seed in seeds}
        for side in ("a", "b")
    ]
    if devices[0] == devices[1]:
        return ""
    told = " and ".join(", ".join(sorted(names)) for names in devices)
    return f"the arms also differ in hardware ({told})"


def not_exercised(group: tuple[float, int] | None) -> str:
    """Why replay, where an arm has it, was not put to the test; empty where it was."""
    if group is None or group[0] >= group[1]:
        return ""
    if math.isnan(group[0]):
        return "how large the groups were is not known"
    return f"replay not exercised: the median group has {group[0]:g} of {group[1]} rollouts"
