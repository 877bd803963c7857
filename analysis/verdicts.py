"""Verdicts of declared contrasts as plain values, for whoever shows them beside the runs.

Leaves out how they are shown (the orchestrator, in MLflow's descriptions) and all else that a table
says of a contrast (`contrast_sheets.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from analysis.declared import Result
from analysis.tables import Table
from grids.outcome import Verdict


def verdicts(tables: Iterable[Table]) -> dict[str, dict[str, tuple[Verdict, ...]]]:
    """Study -> grid -> its declared contrasts in every pair; nothing where it declares none."""
    made: dict[str, dict[str, tuple[Verdict, ...]]] = {}
    for table in tables:
        told = tuple(_verdict(table, result) for result in table.results)
        made.setdefault(table.grid.study, {})[table.grid.name] = told
    return made


def _verdict(table: Table, result: Result) -> Verdict:
    contrast, comparison = result.contrast, result.comparison
    numbers = "no comparison"
    if comparison is not None:
        numbers = (
            f"b - a {comparison.difference.format(sign=True)}, {len(comparison.by_seed)} of "
            f"{len(result.stratum.a)} seeds, {comparison.questions} questions"
        )
    return Verdict(
        study=table.grid.study, grid=table.grid.name, contrast=contrast.name, where=result.where,
        a_key=result.stratum.arm_keys[0], b_key=result.stratum.arm_keys[1],
        a=_side(contrast.a), b=_side(contrast.b), told=result.told, numbers=numbers,
        standing="exploratory" if result.standing.exploratory else "registered",
    )  # fmt: skip


def _side(settings: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
