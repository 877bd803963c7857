"""Parts of a grid that hold for some of its combinations: `when`, `overrides`, `priority`.

A condition names settings, each with a value or a list of values; it holds where every one of them
is among its values, defaults included. Leaves out what a grid makes of them (`expand.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Settings = dict[str, Any]
MODEL_CONFIG = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class When(BaseModel):
    """Axes that exist where a condition holds; elsewhere the base's value, or the default, does."""

    model_config = MODEL_CONFIG
    if_: Settings = Field(alias="if", min_length=1, description="settings (value or list)")
    axes: dict[str, list[Any]] = Field(
        min_length=1, description="setting -> its values, where the condition holds"
    )
    why: str | None = Field(None, description="the reason, for the plan")


class Override(BaseModel):
    """Settings of some combinations: of a model, a data set, a pair, an arm. The last one wins."""

    model_config = MODEL_CONFIG
    for_: Settings = Field(alias="for", min_length=1, description="settings (value or list)")
    set: Settings = Field(min_length=1, description="what they get, over the base")
    found: str | None = Field(None, description="the search that found it")


class Priority(BaseModel):
    """A rank of some combinations: cells of a higher one run first."""

    model_config = MODEL_CONFIG
    for_: Settings = Field({}, alias="for", description="settings (value or list); none: all")
    rank: int


def matched(condition: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Setting -> the values that a condition matches."""
    return {k: v if isinstance(v, list) else [v] for k, v in condition.items() if k != "why"}


def told(condition: Mapping[str, Any]) -> str:
    """`advantage is grpo or rloo and replay is 7`."""
    parts = (f"{k} is {' or '.join(map(str, v))}" for k, v in matched(condition).items())
    return " and ".join(parts)
