"""A table's contrasts as raw numbers, a row a contrast and stratum: for programs and spreadsheets.

Leaves out rendering (`contrast_sheets.py`) and every computation (`declared.py`).
"""

from __future__ import annotations

import math
from typing import Any, Final

import pandas as pd

from analysis.contrasts import Comparison
from analysis.declared import Result
from analysis.intervals import NOTHING, Estimate
from analysis.matching import COSTS
from analysis.tables import Table

PARTS: Final = ("value", "se", "low", "high", "df", "n")
NUMBERS: Final = (
    "p", "p_family", "family_size", "tost_p", "non_inferior_p", "smallest_effect", "superiority",
    "seed_correlation", "questions", "samples", "unscored",
)  # fmt: skip


def contrast_frame(table: Table) -> pd.DataFrame:
    """One row a contrast and stratum: raw numbers, NaN where missing."""
    return pd.DataFrame([_record(table, result) for result in table.results])


def _record(table: Table, result: Result) -> dict[str, Any]:
    contrast, (a_key, b_key) = result.contrast, result.stratum.arm_keys
    record: dict[str, Any] = {
        "study": table.grid.study, "grid": table.grid.name, "section": table.grid.section,
        "contrast": contrast.name, "registration": contrast.registration, "pair": result.pair,
        "where": result.where, "a_arm_key": a_key, "b_arm_key": b_key, "claim": contrast.claim,
        "margin": contrast.margin, "match": contrast.match, "family": result.family,
        "seeds_declared": len(result.stratum.a), "verdict": result.verdict,
        "claim_holds": result.claim_holds, "why_no_verdict": result.withheld or result.absent,
    }  # fmt: skip
    record |= _compared(result.comparison)
    record |= _parts("at_zero", result.at_zero.difference if result.at_zero else NOTHING)
    record["at_zero_verdict"] = result.at_zero.verdict if result.at_zero else ""
    for name in COSTS:
        record |= _parts(f"cost_{name}_b_over_a", result.cost_ratios.get(name, NOTHING))
    group = result.group or (math.nan, math.nan)
    standing = result.standing
    return record | {
        "median_group": group[0], "whole_group": group[1],
        "differ": "; ".join(f"{n}: {x} and {y}" for n, (x, y) in result.differ.items()),
        "held_equal": " ".join(result.held), "registered": standing.registered,
        "exploratory": "; ".join(standing.exploratory), "looks": standing.looks,
        "notes": "; ".join(result.notes),
    }  # fmt: skip


def _compared(comparison: Comparison | None) -> dict[str, Any]:
    """The numbers of a comparison; NaN throughout where there is none."""
    made = _parts("difference", comparison.difference if comparison else NOTHING)
    made |= _parts(
        "difference_fixed_questions", comparison.fixed_questions if comparison else NOTHING
    )
    made |= {name: getattr(comparison, name, math.nan) for name in NUMBERS}
    by_seed = comparison.by_seed if comparison else {}
    discordant, noise = (getattr(comparison, name, None) for name in ("discordant", "noise"))
    return made | {
        "seeds": len(by_seed), "by_seed": " ".join(f"s{s}={x!r}" for s, x in by_seed.items()),
        **{f"discordant_{n}": getattr(discordant, n, math.nan) for n in ("a_only", "b_only")},
        "answers": getattr(discordant, "pairs", math.nan),
        **{f"noise_{n}": getattr(noise, n, math.nan) for n in ("seed", "question", "rest")},
    }  # fmt: skip


def _parts(name: str, estimate: Estimate) -> dict[str, float]:
    return {f"{name}_{part}": getattr(estimate, part) for part in PARTS}
