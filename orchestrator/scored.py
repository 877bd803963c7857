"""Pass@1 of a done cell with its interval, for a run's description; tables are analysis's work.

Leaves out other seeds: one run says nothing of them.
"""

from __future__ import annotations

from grids.paths import CellPaths
from orchestrator.notes import Score


def scores(paths: CellPaths) -> dict[str, Score]:
    """Greedy Pass@1 on test questions, `base` and `final`, with Wilson's 95% interval.

    A phase without answers, or a file that cannot be read, gives nothing; answers that were not
    scored do not count.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(paths.outcomes, columns=["phase", "split", "decoding", "correct"])
    except (OSError, pa.ArrowException):
        return {}
    greedy: dict[str, list[float]] = {"base": [], "final": []}
    for row in columns.to_pylist():
        if (row["split"], row["decoding"]) == ("test", "greedy") and row["correct"] is not None:
            greedy.setdefault(row["phase"], []).append(row["correct"])
    return {phase: _score(values) for phase, found in greedy.items() if (values := _scored(found))}


def _scored(values: list[float]) -> list[float]:
    return [value for value in values if value == value]  # NaN is not itself


def _score(values: list[float]) -> Score:
    from scipy.stats import binomtest

    right, n = round(sum(values)), len(values)
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return Score(sum(values) / n, float(interval.low), float(interval.high), n)
