"""A cell's sample completions as a table of MLflow's: question, answer and what it was worth.

The table is the whole of `samples.jsonl` each time, written over the last, so that sending it again
changes nothing; MLflow's own `log_table` would append. Leaves out all other answers: they are in
the cell's outcomes.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from grids.outcome import TAG_ARTIFACTS
from grids.paths import CellPaths, DamagedError, read_lines
from orchestrator.access import status

FILE: Final = "completions.json"
COLUMNS: Final = (
    "round", "from", "question", "gold", "completion", "reward", "correct", "truncated",
)  # fmt: skip
MOST_ROWS: Final = 1000  # of the newest rounds, so that a page can show them


def table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples as MLflow's tables are: `split`, in pandas' word. What a row lacks is null."""
    kept = lines[-MOST_ROWS:]
    columns = [name for name in COLUMNS if any(name in line for line in kept)]
    return {
        "columns": columns,
        "data": [[_cell(line.get(name)) for name in columns] for line in kept],
    }


def _cell(value: Any) -> Any:
    """JSON has no NaN: an answer that was not scored has no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_final(error: Exception) -> bool:
    """Whether sending again would fail again: refused, damaged, or no way to that store from here.
    A server that is away, or broken for now, may take them later."""
    if (told := status(error)) is not None:
        return 400 <= told < 500
    away = type(error).__module__.startswith(("requests.", "urllib3."))
    return isinstance(error, (DamagedError, ImportError, OSError)) and not away


def send(client: Any, run_id: str, paths: CellPaths) -> None:
    """Bring the run's table level with the samples on disk; nothing where there are none."""
    if not (lines := read_lines(paths.samples)):
        return
    client.log_text(run_id, json.dumps(table(lines), allow_nan=False), FILE)
    # By this tag MLflow's pages find tables.
    client.set_tag(run_id, TAG_ARTIFACTS, json.dumps([{"path": FILE, "type": "table"}]))
