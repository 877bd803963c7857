"""What a cell's rounds took, for MLflow's page of system metrics: seconds by phase, tokens a
second, processors, memory.

They are of the cell's own process (of its first, where it has several), from the cell's timings.
What a machine as a whole does would be one curve for all cells that share it. Not reproducible,
unlike all else that a run is told. Leaves out the load of a GPU, which no process can tell of its
own share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from grids import outcome
from grids.outcome import SYSTEM_PREFIX
from grids.paths import CellPaths, DamagedError, read_lines

GB: Final = 1e9
PHASES: Final = ("generate", "reference", "update", "evaluate")

Line = dict[str, Any]


@dataclass(frozen=True)
class Timings:
    """A cell's timings, by round."""

    by_round: Mapping[int, Line]

    @classmethod
    def read(cls, paths: CellPaths) -> Timings:
        """A damaged file of timings costs these curves alone."""
        try:
            lines = read_lines(paths.timings)
        except (OSError, DamagedError):
            lines = []
        return cls({line["round"]: line for line in lines if "round" in line})

    def beside(self, lines: Iterable[Line]) -> list[Line]:
        """Journal lines with the system metrics of their rounds, where these are told."""
        return [line | usage(self.by_round.get(line["round"], {}), line) for line in lines]

    def time_ms(self, round: int) -> int | None:
        """When the round ended, milliseconds since 1970; the same however often it is asked."""
        time = (self.by_round.get(round, {}).get("process") or {}).get("time")
        return int(time * 1000) if isinstance(time, int | float) else None


def usage(timing: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, float]:
    """The system metrics of one round; what was not measured is absent, and so is all where it is
    not told when it was: MLflow draws these over time."""
    seconds, process = timing.get("seconds") or {}, timing.get("process") or {}
    if not _is_number(process.get("time")):
        return {}
    made = {f"seconds_{phase}": seconds.get(phase) for phase in PHASES}
    made["seconds_a_round"] = seconds.get("all")
    made["tokens_a_second"] = _ratio(line.get(outcome.GENERATED_TOKENS), seconds.get("generate"))
    # Of all since the line before: evaluations, checkpoints and a worker's start are in both.
    made["processors_busy"] = _ratio(process.get("cpu_seconds"), process.get("seconds"))
    made["memory_gb"] = _ratio(process.get("rss_bytes"), GB)
    made["gpu_memory_gb"] = _ratio(process.get("gpu_bytes"), GB)
    return {
        f"{SYSTEM_PREFIX}{name}": float(value) for name, value in made.items() if _is_number(value)
    }


def _ratio(over: Any, under: Any) -> float | None:
    return over / under if _is_number(over) and _is_number(under) and under > 0 else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
