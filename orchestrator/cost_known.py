"""What one study's finished runs tell of its next cells: seconds, lengths, and how sure they are.

Leaves out reading the runs (`cost_runs.py`) and the regression (`cost_fit.py`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from grids.paths import Store
from orchestrator.cost_fit import Errors, Fit, fitted
from orchestrator.cost_runs import CPU, Runs, finished_runs
from orchestrator.cost_sizes import VLLM, Seen, Sized, Stretch


class Source(NamedTuple):
    """What a study's cost rests on: `n` finished runs, and the errors of their prediction."""

    study: str
    n: int
    device: str | None
    typical: float  # NaN without runs
    largest: float
    elsewhere: int  # runs on other hardware, left out
    damaged: int  # runs that could not be read, left out


@dataclass(frozen=True)
class Known:
    """One study's finished runs, and the model that fits them."""

    study: str
    runs: Runs
    fit: Fit

    @classmethod
    def of(cls, store: Store, study: str, on_gpus: bool | None) -> Known:
        """By runs of that kind of hardware; None: of whatever most of them had."""
        runs = finished_runs(store.study(study), on_gpus)
        gpus = on_gpus if runs.device is None else runs.device != CPU
        return cls(study, runs, fitted(runs.runs, bool(gpus)))

    @property
    def on_gpus(self) -> bool:
        return self.runs.device not in (None, CPU)

    def new_process(self, size: Sized) -> float:
        """Seconds until a new worker's process has imported everything and, for vLLM's cells, has
        its engine."""
        *_, process, engine = self.fit.coefficients["outside"]
        return float(process + engine * (size.engine == VLLM))

    @property
    def source(self) -> Source:
        errors, runs = self.fit.errors, self.runs
        return Source(
            self.study, len(runs.runs), runs.device, errors.typical, errors.largest,
            runs.elsewhere, runs.damaged,
        )  # fmt: skip

    @cached_property
    def _seen(self) -> dict[Sized, Seen]:
        return {}

    def seen(self, size: Sized) -> Seen:
        """Lengths and shares of a cell's rows; told once of equal cells."""
        if size not in self._seen:
            self._seen[size] = self.runs.seen(size)
        return self._seen[size]

    def seconds(self, size: Sized, stretch: Stretch) -> float:
        return self.fit.seconds(size, stretch, self.seen(size))

    def share(self, size: Sized) -> float:
        """Of a GPU: what the grid asks for, else what runs of the model took, else a whole one."""
        took = [r.gpus for r in self.runs.runs if r.size.model == size.model and r.gpus]
        return size.gpus or (fmean(took) if took else 1.0)

    @cached_property
    def lengths(self) -> Errors:
        """Of the tokens of responses."""
        return self._tokens(lambda seen: seen.tokens)

    @cached_property
    def trained(self) -> Errors:
        """Of the tokens that take gradient."""
        return self._tokens(lambda seen: seen.tokens * seen.share)

    def _tokens(self, what: Callable[[Seen], float]) -> Errors:
        """Each run's from what the others tell, by model and data set."""
        runs = self.runs.runs
        by_pair: dict[Any, list[float]] = defaultdict(list)
        for i, run in enumerate(runs):
            others = Runs(runs[:i] + runs[i + 1 :])
            told, expected = what(run.seen), what(others.seen(run.size))
            if others.runs and told > 0 and expected > 0:
                by_pair[run.size.pair].append(math.log(told / expected))
        return Errors(tuple(map(tuple, by_pair.values())), 0.0)
