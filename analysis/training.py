"""What a run's journal says of its training: its curve, its costs, how its metrics began and ended.

Everything is of the rounds up to a given end, so that a longer run can be read at a shorter
horizon. A metric that a round does not have is left out of its means; one that no round has is
absent or NaN. Leaves out evaluations of the base and the final policy (`runs.py`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from analysis.records import Numbers
from grids import outcome
from grids.cell import Cell

PART: Final = 0.1  # of the rounds, that "first" and "last" are means over
SCORES: Final = ("test/", "val/", "train/pass_at_1")  # what evaluations write
# Metrics whose beginning and end tables and findings speak of.
TOLD: Final = frozenset((
    outcome.REWARD, outcome.REWARD_SD, outcome.CORRECT, outcome.PARSED, outcome.TRUNCATED,
    outcome.ENTROPY, outcome.KL, outcome.CLIP_SHARE, outcome.GRAD_NORM, outcome.RESPONSE_TOKENS,
    outcome.GROUPS_ALL_WRONG, outcome.GROUPS_ALL_RIGHT, outcome.GROUPS_MIXED, outcome.GROUP_SIZE,
    outcome.AGE_MEAN, outcome.RATIO_MEAN, outcome.RATIO_SD, outcome.SECOND_MOMENT_RAW,
    outcome.SECOND_MOMENT_GROUP,
))  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What training took, evaluations left out; NaN where the journal does not say.

    Attributes:
        rounds, prompts, rollouts, updates: counts; rollouts are fresh ones, and those of the base
            model that replay began with.
        generated_tokens, trained_tokens: of responses; trained ones took a forward and a backward.
        seconds: of one worker on its own hardware.
    """

    rounds: float = math.nan
    prompts: float = math.nan
    rollouts: float = math.nan
    updates: float = math.nan
    generated_tokens: float = math.nan
    trained_tokens: float = math.nan
    seconds: float = math.nan


@dataclass(frozen=True)
class Training:
    """A run's training up to its end.

    Attributes:
        curve: evaluated round -> its scores, and the tokens generated until then.
        first, last: metric -> mean over the first and the last tenth of the rounds; where none of
            these has it, its first and its last value.
        median_group: of the effective group size over rounds; NaN where no round tells it.
    """

    costs: Costs = Costs()
    curve: Mapping[int, Numbers] = field(default_factory=dict)
    first: Numbers = field(default_factory=dict)
    last: Numbers = field(default_factory=dict)
    median_group: float = math.nan


def training(
    cell: Cell, lines: Mapping[int, Numbers], seconds: Mapping[int, float], end: int
) -> Training:
    """The training of a cell up to round `end`, from its journal and its seconds by round."""
    rounds = sorted(r for r in lines if 0 < r <= end)
    sizes = [lines[r][outcome.GROUP_SIZE] for r in rounds if outcome.GROUP_SIZE in lines[r]]
    return Training(
        _costs(cell, lines, seconds, end),
        _curve(lines, end),
        *_first_and_last([lines[r] for r in rounds]),
        statistics.median(sizes) if sizes else math.nan,
    )


def _costs(
    cell: Cell, lines: Mapping[int, Numbers], seconds: Mapping[int, float], end: int
) -> Costs:
    rounds = [r for r in lines if r <= end]
    trained = [r for r in rounds if r > 0]
    return Costs(
        rounds=len(trained),
        prompts=cell.batch * len(trained),
        rollouts=cell.generated_per_step * len(trained) + cell.filled_samples,
        updates=_sum(lines, trained, outcome.UPDATES),
        generated_tokens=_sum(lines, trained, outcome.GENERATED_TOKENS)
        + lines.get(0, {}).get(outcome.GENERATED_TOKENS, 0.0),
        trained_tokens=_sum(lines, trained, outcome.TRAINED_TOKENS),
        seconds=sum(seconds[r] for r in trained)
        if all(r in seconds for r in trained)
        else math.nan,
    )


def _sum(lines: Mapping[int, Numbers], rounds: list[int], metric: str) -> float:
    """Over all rounds; NaN where one does not tell."""
    return math.fsum(lines[r].get(metric, math.nan) for r in rounds)


def _curve(lines: Mapping[int, Numbers], end: int) -> dict[int, Numbers]:
    curve: dict[int, Numbers] = {}
    tokens = 0.0
    for r in sorted(lines):
        line = lines[r]
        tokens += line.get(outcome.GENERATED_TOKENS, 0.0 if r == 0 else math.nan)
        if r <= end and outcome.TEST_PASS in line:
            scores = {name: x for name, x in line.items() if _is_score(name)}
            curve[r] = scores | {outcome.GENERATED_TOKENS: tokens}
    return curve


@cache  # a journal has few names and many lines
def _is_score(name: str) -> bool:
    return name.startswith(SCORES)


def _first_and_last(lines: list[Numbers]) -> tuple[Numbers, Numbers]:
    """Means over the first and the last tenth of the rounds; one value where these have none."""
    part = max(1, round(PART * len(lines)))
    told = TOLD & set().union(*lines)
    return (
        {name: x for name in told if not math.isnan(x := _mean_of_first(lines, name, part))},
        {name: x for name in told if not math.isnan(x := _mean_of_first(lines[::-1], name, part))},
    )


def _mean_of_first(lines: list[Numbers], name: str, part: int) -> float:
    """Over the values in the first `part` lines, else the first value there is."""
    values = [x for line in lines[:part] if not math.isnan(x := line.get(name, math.nan))]
    if values:
        return math.fsum(values) / len(values)
    rest = (line.get(name, math.nan) for line in lines[part:])
    return next((x for x in rest if not math.isnan(x)), math.nan)
