"""What declared contrasts could find, for people: a table under a plan's totals.

Rows are those of `analysis.planning`, which the command computes. Leaves out every formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.show import table

Row = dict[str, Any]
ABSENT = "—"


def show_power(rows: Sequence[Row], out: Console) -> None:
    """One line a contrast and kind of pair, then how to read it; nothing without contrasts."""
    if not rows:
        return
    made = table(
        "contrast", "claim", "#pairs", "#seeds", "#questions", "#K", "#finds", "#needs", "#Holm",
        "#floor", "noise", title="contrasts",
    )  # fmt: skip
    for row in rows:
        made.add_row(*_cells(row))
    out.print()
    out.print(made)
    for line in _reading([row for row in rows if row["noise"]]):
        out.print(Text(line), soft_wrap=True)


def _cells(row: Row) -> list[str]:
    same = row["grid"] == row["contrast"]
    name = row["contrast"] if same else f"{row['grid']}: {row['contrast']}"
    told = [name, f"{row['claim']} {row['margin']:g}", str(row["pairs"]), str(row["seeds"])]
    if not row["noise"]:
        return [*told, *[ABSENT] * 6, row["note"]]
    needs = [_seeds(row, number) for number in ("seeds_needed", "seeds_needed_in_family")]
    noise = f"{row['runs']} runs" if row["runs"] else "assumed"
    sizes = [f"{row['questions']:,}", str(row["samples"])]
    return [*told, *sizes, _effect(row["smallest_effect"]), *needs, f"{row['floor']:.3f}", noise]


def _effect(effect: float | None) -> str:
    if effect is None:
        return ABSENT
    return "> 1" if effect > 1 else f"{effect:.3f}"  # Pass@1 differs by 1 at most


def _seeds(row: Row, number: str) -> str:
    if row[number] is not None:
        return str(row[number])
    return "never" if row["margin"] <= row["floor"] else f"> {row['most_seeds']}"


def _reading(rows: Sequence[Row]) -> list[str]:
    """What the columns say, and of the noise what the table has."""
    if not rows:
        return []
    often = f"{rows[0]['power']:.0%}"
    lines = [
        f"finds: the smallest difference found in {often} of repetitions with these seeds; "
        "one seed finds none",
        f"needs: seeds that show the claim at its margin in {often}; "
        "Holm: the same in the worst case of its family (equivalence is not corrected)",
        f"both speak of {rows[0]['target']}: below the floor no number of seeds shows a margin; "
        "more questions lower it",
    ]
    if assumed := [row for row in rows if not row["runs"]]:
        lines.append(_assumed(assumed[0]["noise"]))
    if observed := [row for row in rows if row["runs"]]:
        low, high = max((row["sd_range"] for row in observed), key=lambda factors: factors[1])
        lines.append(
            "runs: noise between the finished runs of the study; between seeds it is known "
            f"to a factor of {low:.2f} to {high:.2f} (95%)"
        )
    return lines


def _assumed(noise: dict[str, float]) -> str:
    arm, question = math.sqrt(noise["seed"] / 2), math.sqrt(noise["question"])
    differ = noise["question"] + noise["interaction"] + noise["sampling"]
    return (
        f"assumed: seeds move an arm's Pass@1 by {arm:g} (SD), one answer each is right in one "
        f"arm alone at {differ:.0%} of questions, and the true difference varies between "
        f"questions by {question:g} (SD); two finished seeds of both arms tell more"
    )
