"""Grid: base + axes + rules + seeds + budget + exclude + contrasts -> cells.

Every combination of the axes is either a cell or is named with the reason why it is not. Leaves out
reading files (`load.py`), how axes combine (`expand.py`), what the names of a grid may be
(`vocabulary.py`) and what is already trained (`orchestrator.plan`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from grids import expand, plugin, search_checks, vocabulary
from grids.catalog import DatasetSpec, ModelSpec, pinned
from grids.cell import Cell, check_setting, filled
from grids.contrast import Contrast
from grids.errors import InputError, listed
from grids.key import idle_replay, why_same
from grids.rules import Override, Priority, Settings, When, matched
from grids.search import Search
from grids.vocabulary import NOT_AXES as NOT_AXES

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


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

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    name: str = Field(pattern=NAME, description="of this grid: unique within a study")
    study: str = Field("default", pattern=NAME, description="MLflow experiment and store folder")
    about: str = ""
    section: str | None = Field(None, description="of the paper, for reported numbers")
    assumed: bool = Field(False, description="what the section compares is our reading")
    base: Settings = Field({}, description="settings of every cell")
    axes: dict[str, list[Any]] = Field({}, description="setting -> its values; all combinations")
    zip_: list[dict[str, list[Any]]] = Field(
        [], alias="zip", description="axes that move together: their first values, their second ..."
    )
    when: list[When] = Field([], description="axes that exist under a condition")
    overrides: list[Override] = Field(
        [], description="settings of a model, a data set, a pair or an arm, over the base"
    )
    priority: list[Priority] = Field(
        [], description="cells of a higher rank run first; a number: the rank of all"
    )
    seeds: list[int] = Field([0], min_length=1)
    budget: Budget | None = None
    exclude: list[Settings] = Field(
        [], description="settings (value or list) of cells to leave out; `why` is the reason"
    )
    contrasts: list[Contrast] = []
    search: dict[str, Search] = Field({}, description="settings to search for, beside the tables")
    plugins: list[str] = Field(
        [], description="packages of your own: beside this file, by path, or installed"
    )
    models: dict[str, ModelSpec] = Field({}, description="models of your own, by name")
    datasets: dict[str, DatasetSpec] = Field({}, description="data sets of your own, by name")
    extends: str | None = Field(None, description="another grid file, which this one overrides")

    @field_validator("zip_", mode="before")
    @classmethod
    def _one_group(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("priority", mode="before")
    @classmethod
    def _of_all(cls, value: Any) -> Any:
        return [{"rank": value}] if isinstance(value, int) else value

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
        vocabulary.check(self)
        search_checks.check(self)
        return self

    @cached_property
    def names(self) -> vocabulary.Vocabulary:
        """Plug-ins, models and data sets that this grid may name."""
        return vocabulary.of(self)

    @property
    def plugin_specs(self) -> tuple[plugin.PluginSpec, ...]:
        """The plug-ins that the grid names, whether or not a cell uses them."""
        return tuple(found.spec for found in self.names.plugins)

    def held(self, name: str, value: Any) -> Any:
        """A setting's value as a cell holds it."""
        if name in ("model", "dataset"):
            return value
        return check_setting(name, value, self.plugin_specs)

    @property
    def varied(self) -> dict[str, list[Any]]:
        """Setting -> the values that axes of any kind give it."""
        found = {name: list(values) for name, values in self.axes.items()}
        groups = [*self.zip_, *(rule.axes for rule in self.when)]
        for name, values in (pair for group in groups for pair in group.items()):
            own = [self.base[name]] if name in self.base else [Cell.model_fields[name].default]
            known = found.setdefault(name, own if name not in self._zipped else [])
            known += [value for value in values if value not in known]
        return found

    @cached_property
    def _zipped(self) -> set[str]:
        return {name for group in self.zip_ for name in group}

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
        made = [self._kept({**settings, "seed": self.seeds[0]}) for settings in self.combinations]
        for seed, one in itertools.product(self.seeds, [*self._removed, *made]):
            self._place(_of_seed(one, seed), cells, dropped)
        if not cells:
            reasons = "; ".join(dict.fromkeys(d.reason for d in dropped)) or "no combination"
            raise InputError(
                f"grid {self.name}: no cell is left of {len(self.combinations)} combinations "
                f"({reasons}); loosen the budget or exclude, or widen an axis"
            )
        return Expansion(tuple(cells.values()), tuple(dropped))

    @cached_property
    def _combined(self) -> tuple[list[Settings], list[expand.Removed]]:
        return expand.combinations(self)

    @property
    def combinations(self) -> list[Settings]:
        """What each combination of the axes sets, seeds apart; not all of them become cells."""
        return self._combined[0]

    @property
    def _removed(self) -> list[Dropped]:
        """What conditions took away."""
        return [
            Dropped(_label(self.whole(one.settings | {"seed": self.seeds[0]})), "when", one.reason)
            for one in self._combined[1]
        ]

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
        whole = self.whole(settings)
        if self.budget and (why := self.budget.refuses(whole)):
            return Dropped(_label(whole), "budget", why)
        if (rule := self._excluding(whole)) is not None:
            return Dropped(_label(whole), "excluded", str(rule.get("why", f"exclude: {rule}")))
        if why := without_effect(cell := self.cell(settings)):
            return Dropped(cell.label, "inert", why)
        return cell

    def cells_of(self, settings: Settings) -> tuple[Cell, ...]:
        """The cells of one combination, seed by seed, merged ones too; none where dropped."""
        made = (self._kept({**settings, "seed": seed}) for seed in self.seeds)
        return tuple(cell for cell in made if isinstance(cell, Cell))

    def whole(self, settings: Settings) -> Settings:
        """Every setting, with the defaults of model, data set and cell below what is given."""
        defaults = {name: info.default for name, info in Cell.model_fields.items()}
        model, dataset = (self._pinned(kind, settings) for kind in ("model", "dataset"))
        whole = defaults | filled(settings, model, dataset)
        brought = {*model.defaults, *dataset.defaults} & Cell.model_fields.keys() - settings.keys()
        return whole | {name: self.held(name, whole[name]) for name in brought}

    def cell(self, settings: Settings) -> Cell:
        """One combination as a cell, with this grid's own models, data sets and plug-ins.

        Settings may be those of another cell with some changed: where the grid writes no
        `micro_batch`, that cell's was lowered to its own rows and is no setting of this one.
        """
        specs = {f"{k}_spec": self._pinned(k, settings) for k in ("model", "dataset")}
        if not self.writes_micro_batch:
            settings = {k: v for k, v in settings.items() if k != "micro_batch"}
        return Cell(**{**settings, **specs, "plugin_specs": self.plugin_specs})

    def other(self, given: Settings, arm: Settings) -> Cell:
        """The cell of other settings, some of which an arm changes: what the grid sets by rule
        (zipped axes, conditional ones, overrides) follows the change."""
        held = {name: self.held(name, value) for name, value in arm.items()}
        return self.cell(expand.settled(self, {**given, **held}, held))

    @cached_property
    def writes_micro_batch(self) -> bool:
        """Some part of the grid sets it; else each cell's is lowered to its own rows."""
        given = (g for where, g in vocabulary.given(self) if not where.startswith("exclude"))
        return any("micro_batch" in held for held in given)

    def _pinned(self, kind: str, settings: Settings) -> Any:
        """The spec that a combination names."""
        known: Mapping[str, Any] = self.names.models if kind == "model" else self.names.datasets
        name = str(settings.get(kind))
        if name not in known:
            raise InputError(
                f"grid {self.name}: names no {kind}; give it in `axes:` or `base:`; "
                f"allowed: {listed(known)}"
            )
        if (kind, name) not in self._pins:
            self._pins[kind, name] = pinned(known[name])
        return self._pins[kind, name]

    def rank(self, cell: Cell) -> int:
        """The priority of one of its cells: of the last rule that matches."""
        settings = {name: getattr(cell, name) for name in Cell.model_fields}
        ranks = [rule.rank for rule in self.priority if expand.holds(self, rule.for_, settings)]
        return ranks[-1] if ranks else 0

    def _excluding(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The first rule of which every setting matches."""
        for rule, values_of in zip(self.exclude, self._rules, strict=True):
            if all(settings[name] in values for name, values in values_of.items()):
                return rule
        return None

    @cached_property
    def _rules(self) -> list[dict[str, list[Any]]]:
        """What each rule of `exclude` matches, its values as a cell holds them."""
        return [
            {name: [self.held(name, value) for value in values] for name, values in rule.items()}
            for rule in map(matched, self.exclude)
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


def _label(whole: dict[str, Any]) -> str:
    b, n, m = (whole[name] for name in ("batch", "rollouts", "replay"))
    arm = f"{whole['model']} {whole['dataset']} ({b},{n},{m}) {whole['advantage']}"
    return f"{arm} s{whole['seed']}"
