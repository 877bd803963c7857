"""Grid: base + axes + seeds + budget + exclude + contrasts -> cells.

Every combination of the axes is either a cell or is named with the reason why it is not. Leaves out
reading files (`load.py`) and what is already trained (`orchestrator.plan`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from grids.catalog import DATASETS, MODELS, DatasetSpec, ModelSpec, pinned
from grids.cell import Cell, check_setting, filled
from grids.contrast import Contrast
from grids.errors import InputError, listed, nearest
from grids.key import idle_replay, why_same

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
RESOLVED = {"model_spec", "dataset_spec", "seed"}
NOT_AXES = {
    "rounds", "eval", "rows_per_pass", "gradient_checkpointing", "gpus", "keep", "max_unscored",
}  # fmt: skip


class Budget(BaseModel):
    """Keep the combinations that spend exactly this much a round."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    samples_per_step: int | None = Field(None, gt=0, description="batch × (rollouts + replay)")
    generated_per_step: int | None = Field(None, gt=0, description="batch × rollouts")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if self.samples_per_step is None and self.generated_per_step is None:
            raise ValueError("names no bound; allowed: samples_per_step, generated_per_step")
        return self

    def refuses(self, settings: dict[str, Any]) -> str | None:
        """Why the budget drops these settings, or None where it keeps them."""
        batch, fresh, replayed = (settings[name] for name in ("batch", "rollouts", "replay"))
        samples, generated = batch * (fresh + replayed), batch * fresh
        if self.samples_per_step not in (None, samples):
            return f"{samples} samples per step, the budget is {self.samples_per_step}"
        if self.generated_per_step not in (None, generated):
            return f"{generated} generated per step, the budget is {self.generated_per_step}"
        return None


@dataclass(frozen=True)
class Dropped:
    """A combination without a cell of its own, and why."""

    label: str
    kind: str  # "budget" | "excluded" | "inert" | "merged"
    reason: str
    key: str | None = None  # of the cell that it is the same as


@dataclass(frozen=True)
class Expansion:
    """What a grid's axes come to."""

    cells: tuple[Cell, ...] = ()
    dropped: tuple[Dropped, ...] = field(default=())


class Grid(BaseModel):
    """A declared set of cells."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=NAME, description="of this grid: unique within a study")
    study: str = Field("default", pattern=NAME, description="MLflow experiment and store folder")
    about: str = ""
    section: str | None = Field(None, description="of the paper, for reported numbers")
    assumed: bool = Field(False, description="what the section compares is our reading")
    base: dict[str, Any] = Field({}, description="settings of every cell")
    axes: dict[str, list[Any]] = Field({}, description="setting -> its values; all combinations")
    seeds: list[int] = Field([0], min_length=1)
    budget: Budget | None = None
    exclude: list[dict[str, Any]] = Field(
        [], description="settings (value or list) of cells to leave out; `why` is the reason"
    )
    contrasts: list[Contrast] = []
    models: dict[str, ModelSpec] = Field({}, description="models of your own, by name")
    datasets: dict[str, DatasetSpec] = Field({}, description="data sets of your own, by name")
    extends: str | None = Field(None, description="another grid file, which this one overrides")

    @model_validator(mode="before")
    @classmethod
    def _name_specs(cls, data: Any) -> Any:
        """A spec under `models:` or `datasets:` is named by its key."""
        if not isinstance(data, dict):
            return data
        named = dict(data)
        for kind in ("models", "datasets"):
            if isinstance(specs := data.get(kind), dict):
                named[kind] = {
                    name: {"name": name, **spec} if isinstance(spec, dict) else spec
                    for name, spec in specs.items()
                }
        return named

    @model_validator(mode="after")
    def _check(self) -> Self:
        for axis in self.axes.keys() & NOT_AXES:
            raise ValueError(
                f"axes.{axis}: cannot be an axis: it is no part of what a cell trains, so all "
                "its values would be one cell; set it in `base:`"
            )
        for where, settings in self._given():
            _check_names(where, settings)
            for name, values in settings.items():
                for value in values:
                    self._check_value(f"{where}.{name}", name, value)
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"axes.{axis}: no values; give at least one")
            _check_unique(f"axes.{axis}", values)
        for i, seed in enumerate(self.seeds):
            self._check_value(f"seeds.{i}", "seed", seed)
        _check_unique("seeds", self.seeds)
        _check_unique("contrasts", [contrast.name for contrast in self.contrasts])
        return self

    def _given(self) -> Iterator[tuple[str, dict[str, list[Any]]]]:
        """(where, setting -> values) of all that settings are set to or compared with."""
        yield "base", {name: [value] for name, value in self.base.items()}
        yield "axes", self.axes
        for i, rule in enumerate(self.exclude):
            yield f"exclude.{i}", _matched(rule)
        for i, contrast in enumerate(self.contrasts):
            for part, arm in (("a", contrast.a), ("b", contrast.b), ("with", contrast.with_)):
                yield f"contrasts.{i}.{part}", {name: [value] for name, value in arm.items()}

    def _check_value(self, where: str, name: str, value: Any) -> None:
        if name in ("model", "dataset"):
            known = self._models if name == "model" else self._datasets
            if value not in known:
                raise ValueError(
                    f"{where}: unknown name; got {value!r}; "
                    f"allowed: {listed(known)}{nearest(value, known)}"
                )
            return
        try:
            check_setting(name, value)
        except ValueError as error:
            raise ValueError(f"{where}: {str(error).removeprefix(f'{name}: ')}") from None

    @cached_property
    def _models(self) -> Mapping[str, ModelSpec]:
        return {**MODELS, **self.models}

    @cached_property
    def _datasets(self) -> Mapping[str, DatasetSpec]:
        return {**DATASETS, **self.datasets}

    @cached_property
    def _pins(self) -> dict[tuple[str, str], Any]:
        """Specs whose local files were fingerprinted: once a grid, not once a cell."""
        return {}

    def cells(self) -> tuple[Cell, ...]:
        """The cells, each once, in the order of the axes, seed by seed.

        Raises `InputError` where none is left or where a combination is not a valid cell.
        """
        return self.expansion.cells

    @cached_property
    def expansion(self) -> Expansion:
        """Cells, and every combination that became none, with its reason."""
        cells: dict[str, Cell] = {}
        dropped: list[Dropped] = []
        combinations = [self._combine(values) for values in itertools.product(*self.axes.values())]
        made = [self._kept({**settings, "seed": self.seeds[0]}) for settings in combinations]
        for seed, one in itertools.product(self.seeds, made):
            self._place(_of_seed(one, seed), cells, dropped)
        if not cells:
            reasons = "; ".join(dict.fromkeys(d.reason for d in dropped)) or "no combination"
            raise InputError(
                f"grid {self.name}: no cell is left of {len(combinations)} combinations "
                f"({reasons}); loosen the budget or exclude, or widen an axis"
            )
        return Expansion(tuple(cells.values()), tuple(dropped))

    def _combine(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """The settings of one combination, each as a cell holds it."""
        given = {**self.base, **dict(zip(self.axes, values, strict=True))}
        return {name: _as_held(name, value) for name, value in given.items()}

    def _place(self, made: Cell | Dropped, cells: dict[str, Cell], dropped: list[Dropped]) -> None:
        """Add one combination to the cells, or to the dropped with the reason."""
        if isinstance(made, Dropped):
            dropped.append(made)
        elif (twin := cells.get(made.key)) is not None:
            why = f"trains the same policy as {twin.label}{why_same(made, twin)}"
            dropped.append(Dropped(made.label, "merged", why, made.key))
        else:
            cells[made.key] = made

    def _kept(self, settings: dict[str, Any]) -> Cell | Dropped:
        """The cell of one combination, whether or not another trains the same."""
        whole = self._whole(settings)
        if self.budget and (why := self.budget.refuses(whole)):
            return Dropped(_label(whole), "budget", why)
        if (rule := self._excluding(whole)) is not None:
            return Dropped(_label(whole), "excluded", str(rule.get("why", f"exclude: {rule}")))
        if why := without_effect(cell := self.cell(settings)):
            return Dropped(cell.label, "inert", why)
        return cell

    def combination(self, values: tuple[Any, ...]) -> tuple[Cell, ...]:
        """The cells of one value an axis, seed by seed, merged ones too; none where dropped."""
        settings = self._combine(values)
        made = (self._kept({**settings, "seed": seed}) for seed in self.seeds)
        return tuple(cell for cell in made if isinstance(cell, Cell))

    def _whole(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Every setting, with the defaults of model, data set and cell below what is given."""
        defaults = {name: info.default for name, info in Cell.model_fields.items()}
        model, dataset = (self._pinned(kind, settings) for kind in ("model", "dataset"))
        return defaults | filled(settings, model, dataset)

    def cell(self, settings: dict[str, Any]) -> Cell:
        """One combination as a cell, with this grid's own models and data sets.

        Settings may be those of another cell with some changed: where the grid writes no
        `micro_batch`, that cell's was lowered to its own rows and is no setting of this one.
        """
        specs = {f"{k}_spec": self._pinned(k, settings) for k in ("model", "dataset")}
        if not self.writes_micro_batch:
            settings = {k: v for k, v in settings.items() if k != "micro_batch"}
        return Cell(**{**settings, **specs})

    @cached_property
    def writes_micro_batch(self) -> bool:
        """Some part of the grid sets it; else each cell's is lowered to its own rows."""
        given = (held for where, held in self._given() if not where.startswith("exclude"))
        return any("micro_batch" in held for held in given)

    def _pinned(self, kind: str, settings: dict[str, Any]) -> Any:
        """The spec that a combination names."""
        known: Mapping[str, Any] = self._models if kind == "model" else self._datasets
        name = str(settings.get(kind))
        if name not in known:
            raise InputError(
                f"grid {self.name}: names no {kind}; give it in `axes:` or `base:`; "
                f"allowed: {listed(known)}"
            )
        if (kind, name) not in self._pins:
            self._pins[kind, name] = pinned(known[name])
        return self._pins[kind, name]

    def _excluding(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The first rule of which every setting matches."""
        for rule, matched in zip(self.exclude, self._rules, strict=True):
            if all(settings[name] in values for name, values in matched.items()):
                return rule
        return None

    @cached_property
    def _rules(self) -> list[dict[str, list[Any]]]:
        """What each rule of `exclude` matches, its values as a cell holds them."""
        return [
            {name: [_as_held(name, value) for value in values] for name, values in rule.items()}
            for rule in map(_matched, self.exclude)
        ]

    def arm(self, contrast: Contrast, side: str) -> dict[str, Any]:
        """Settings of one side of a contrast: its own over those of both."""
        return {**contrast.with_, **(contrast.a if side == "a" else contrast.b)}


def _of_seed(made: Cell | Dropped, seed: int) -> Cell | Dropped:
    """The same combination with another seed, on which nothing else depends."""
    if isinstance(made, Cell):
        return made.model_copy(update={"seed": seed})
    return replace(made, label=f"{made.label.rsplit(' s', 1)[0]} s{seed}")


def without_effect(cell: Cell) -> str | None:
    """Why a cell would repeat another at a higher price, or None."""
    return idle_replay(cell)


def _matched(rule: dict[str, Any]) -> dict[str, list[Any]]:
    """Setting -> the values that a rule of `exclude` matches."""
    return {k: v if isinstance(v, list) else [v] for k, v in rule.items() if k != "why"}


def _as_held(name: str, value: Any) -> Any:
    return value if name in ("model", "dataset") else check_setting(name, value)


def _label(whole: dict[str, Any]) -> str:
    b, n, m = (whole[name] for name in ("batch", "rollouts", "replay"))
    arm = f"{whole['model']} {whole['dataset']} ({b},{n},{m}) {whole['advantage']}"
    return f"{arm} s{whole['seed']}"


def _check_names(where: str, names: Iterable[str]) -> None:
    allowed = set(Cell.model_fields) - RESOLVED - (NOT_AXES if where == "axes" else set())
    for name in names:
        if name == "seed":
            raise ValueError(f"{where}.seed: seeds are listed under `seeds:`")
        if name not in allowed:
            raise ValueError(
                f"{where}.{name}: unknown key; allowed: {listed(allowed)}{nearest(name, allowed)}"
            )


def _check_unique(where: str, values: list[Any]) -> None:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{where}: {value!r} is there twice; name each once")
