"""A declared comparison of two arms: what differs, what is held equal, the claim, the margin.

Leaves out estimates: `analysis.contrasts` computes them from runs.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SHAPE = frozenset({"batch", "rollouts", "replay"})


class Contrast(BaseModel):
    """`a` against `b`: their difference in Pass@1 is b minus a."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    name: str = Field(min_length=1)
    a: dict[str, Any] = Field(description="settings of arm a")
    b: dict[str, Any] = Field(description="settings of arm b")
    with_: dict[str, Any] = Field({}, alias="with", description="settings of both arms")
    claim: Literal["superior", "equivalent", "non-inferior"] = "superior"
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    match: Literal["rounds", "prompts", "generated", "updates"] = "rounds"
    seeds: Annotated[int, Field(gt=0)] | None = Field(
        None, description="declared number of seeds; null: the grid's"
    )
    family: str | None = Field(
        None,
        description="contrasts of a grid whose p-values are corrected together; "
        "null: this contrast alone, over all pairs",
    )

    @model_validator(mode="after")
    def _one_factor(self) -> Self:
        """The arms differ in one declared factor; a shape (B, n, m) counts as one."""
        keys = sorted(self.a.keys() | self.b.keys())
        differ = {k for k in keys if self.a.get(k) != self.b.get(k)}
        if not differ:
            raise ValueError(f"arms a and b are the same: {self.a}; they must differ in one factor")
        if len(differ) > 1 and not differ <= SHAPE:
            raise ValueError(
                f"arms differ in more than one factor: {', '.join(sorted(differ))}; "
                "declare one contrast for each (batch, rollouts and replay together count as one)"
            )
        return self

    @property
    def registration(self) -> str:
        """16 hexadecimal digits over the whole declaration: what is registered in a study."""
        text = self.model_dump_json(by_alias=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
