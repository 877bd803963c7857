"""What is left and what it takes, for people and for programs: each number with its interval, and
what all rest on. Leaves out where the numbers come from (`cost.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.cost import Price
from orchestrator.cost_fit import ASSUMED_FACTOR, Estimate
from orchestrator.cost_known import Source
from orchestrator.show import counted, duration

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show_cost(price: Price, out: Console, per_hour: float | None = None) -> None:
    """Some lines: tokens, hours, the makespan, money, and what they rest on."""
    for line in cost_lines(price, per_hour):
        out.print(Text(line), soft_wrap=True)


def cost_lines(price: Price, per_hour: float | None = None) -> list[str]:
    """None where nothing is left to do."""
    if not price.hours.value:
        return []
    drawn, evaluations, trained = price.tokens
    tokens = (
        f"tokens: {_told(drawn, short)} to generate, of them for evaluations "
        f"{short(evaluations.value)}; {_told(trained, short)} to train on"
    )
    lines = [tokens, f"time: {time_line(price)}"]
    if per_hour is not None:
        lines.append(_money_line(price, per_hour))
    return lines + [source_line(source) for source in price.sources]


def time_line(price: Price) -> str:
    """`2.0 slot-hours (1.6 to 2.5); about 61 min on 2 slots (50 to 74 min)`."""
    told = f"{_told(price.hours, number)} {unit(price)}-hours"
    if price.makespan is None:
        return told
    return f"{told}; about {_told(price.makespan, duration)} on {_where(price)}"


def _money_line(price: Price, per_hour: float) -> str:
    own = _told(price.hours.times(per_hour), number)
    told, money = f"money: {own} at {per_hour:g} a {unit(price)}-hour", rent(price, per_hour)
    if money is None:
        return told
    return f"{told}; {_told(money, number)} where {_where(price)} are paid for until the end"


def rent(price: Price, per_hour: float) -> Estimate | None:
    """Money for all GPUs, or slots, from the start to the end."""
    if price.makespan is None:
        return None
    return price.makespan.times(price.rented * per_hour / 3600)


def unit(price: Price) -> str:
    return "GPU" if price.on_gpus else "slot"


def _where(price: Price) -> str:
    if not price.place.gpus:
        return counted(price.place.slots or 0, "slot")
    return f"{counted(price.place.gpus, 'GPU')}, {counted(price.at_once, 'cell')} at a time"


def source_line(source: Source) -> str:
    """What a study's numbers rest on."""
    left = ((source.elsewhere, "on other hardware"), (source.damaged, "that cannot be read"))
    more = "".join(f"; {counted(count, 'run')} {why} left out" for count, why in left if count)
    if not source.n:
        return (
            f"study {source.study}: assumed: no finished run of this study{_on(source)} (n = 0); "
            f"low and high are a third and {ASSUMED_FACTOR:g} times{more}"
        )
    errors = "one tells nothing of its error"
    if source.n > 1:
        errors = f"each from the others: typical error {source.typical:.0%}, "
        errors += f"largest {source.largest:.0%}"
    runs = counted(source.n, "finished run")
    return (
        f"study {source.study}: 95% intervals, from n = {runs} on {source.device} ({errors}){more}"
    )


def _on(source: Source) -> str:
    return " on such hardware" if source.elsewhere else ""


def _told(estimate: Estimate, form: Callable[[float], str]) -> str:
    """`61 min (50 min to 74 min)`."""
    value, low, high = (form(x) for x in estimate[:3])
    return f"{value} ({low} to {high})"


def short(count: float) -> str:
    """`12.3M`."""
    for size, letter in UNITS:
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# ---- for programs


def cost_json(
    price: Price, per_hour: float | None = None, disk_bytes: int | None = None
) -> dict[str, Any]:
    """All of it; None where it is not known."""
    money = None if per_hour is None else price.hours.times(per_hour)
    rented = None if per_hour is None else rent(price, per_hour)
    drawn, evaluations, trained = price.tokens
    made: dict[str, Any] = {
        "tokens_to_generate": drawn, "tokens_of_evaluations": evaluations,
        "tokens_to_train": trained, f"{unit(price).lower()}_hours": price.hours,
        "makespan_seconds": price.makespan, "money": money, "money_for_all_until_the_end": rented,
    }  # fmt: skip
    told = {name: None if one is None else one._asdict() for name, one in made.items()}
    place = {**price.place._asdict(), "cells_at_once": price.at_once}
    sources = [_source_json(source) for source in price.sources]
    disk = {} if disk_bytes is None else {"disk_bytes": disk_bytes}
    return {**told, **disk, "price_per_hour": per_hour, "place": place, "sources": sources}


def _source_json(source: Source) -> dict[str, Any]:
    told = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in source._asdict().items()
    }
    return {**told, "source": "finished runs" if source.n else "assumed"}
