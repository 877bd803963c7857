"""docs/sizing.md: its tables are what `plan` predicts now."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks.sizing import (
    BEGIN,
    END,
    GPUS,
    PAGE,
    PRICES,
    Gpu,
    filled,
    memory_table,
    tables,
)

TEXT = PAGE.read_text(encoding="utf-8")
AGAIN = "python -m tests.benchmarks.sizing --write makes the page anew"


def table(name: str) -> str:
    """As the page has it."""
    inside = TEXT.split(BEGIN.format(name))[1].split(END.format(name))[0]
    return inside.strip()


def test_the_page_says_what_a_cell_is_predicted_to_hold() -> None:
    assert table("memory") == memory_table(), AGAIN


@pytest.mark.slow
def test_the_page_says_what_plan_says() -> None:
    assert table("cost") == tables(GPUS, [Gpu(*pair) for pair in PRICES.items()])["cost"], AGAIN


def test_what_is_not_measured_is_marked() -> None:
    for name in ("cost", "memory"):
        before = TEXT.split(BEGIN.format(name))[0]
        assert "predicted" in before
        assert re.search(r"\d", table(name))


def test_tables_take_their_places() -> None:
    page = filled(TEXT, {"cost": "| new |", "memory": "| newer |"})
    assert "| new |" in page and "| newer |" in page and "GPU-hours" not in table_of(page, "cost")
    assert filled(page, {name: table(name) for name in ("cost", "memory")}) == TEXT


def table_of(page: str, name: str) -> str:
    return page.split(BEGIN.format(name))[1].split(END.format(name))[0]
