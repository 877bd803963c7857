"""A study's runs from MLflow, for who has its server and not the store.

One paged search tells every run's settings, status and final numbers; no run is asked for singly,
unless for the history of a metric, which figures want. MLflow holds numbers and no answers, so
that nothing can be compared from it. What a run cost, and its numbers at a shorter horizon than it
was trained to, are in the store's journals alone: they are missing here, never guessed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from analysis.outcomes import Answers, Unusable, Which
from analysis.records import Numbers
from analysis.runs import Run
from analysis.sources import Source
from grids import catalog, outcome
from grids.cell import Cell, Evaluation
from grids.errors import InputError, listed, nearest
from grids.outcome import BASE_PREFIX, DIVERGED, FAILED, FINAL_PREFIX, FINISHED, UNFINISHED, WAITING

PAGE: Final = 5000  # runs that one call asks for
SQLITE: Final = "sqlite:///"
# A server that does not answer is told of within minutes, and nothing but it is asked.
PATIENCE: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


@dataclass(frozen=True)
class _Told:
    """What the search says of one run; `metrics` and `steps` are of each metric's last value."""

    run_id: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: Numbers = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def phase(self, prefix: str) -> Numbers:
        """The numbers under `base/` or `final/`, as the journal names them."""
        return {k.removeprefix(prefix): x for k, x in self.metrics.items() if k.startswith(prefix)}

    @property
    def last_round(self) -> int | None:
        """The last round of which anything was sent."""
        scores = (BASE_PREFIX, FINAL_PREFIX)
        rounds = (step for name, step in self.steps.items() if not name.startswith(scores))
        return max(rounds, default=None)

    @property
    def horizon(self) -> int | None:
        """The rounds that its final numbers were made for; None where there are none."""
        return self.steps.get(FINAL_PREFIX + outcome.TEST_PASS)


class MlflowSource(Source):
    """A study as MLflow's experiment of the same name. What it says is read once.

    Attributes:
        unreadable: run -> why `cells` does not hold it.
    """

    has_answers = False

    def __init__(self, uri: str, study: str | None = None) -> None:
        """Raises `InputError` where nothing answers or no such experiment has a run."""
        self.uri = uri
        self.unreadable: dict[str, str] = {}
        self._client = _client(uri)
        self.name, self._experiment = _experiment(self._client, uri, study)
        self._found = self._search()
        if not self._found:
            raise InputError(f"{self.place} has no run of banditgrid; run a grid of it first")

    @property
    def place(self) -> str:
        return f"experiment {self.name} of MLflow at {_redacted(self.uri)}"

    def cells(self) -> tuple[Cell, ...]:
        """The cells whose settings MLflow tells in full: models and data sets of the catalogue.

        The others are named in `unreadable`, with a warning; `run` reads them for who has the grid.
        """
        return self._cells

    def run(self, cell: Cell) -> Run:
        told = self._found.get(cell.key)
        return Run(cell, WAITING) if told is None else _run(cell, told)

    def answers(self, cell: Cell) -> dict[Which, Answers]:
        raise Unusable(
            f"{cell.key}: MLflow holds no per-question outcomes; read the store or a bundle of it"
        )

    def history(self, cell: Cell, metrics: Iterable[str]) -> dict[str, dict[int, float]]:
        """Metric -> round -> value, for figures: one call a metric."""
        told = self._found.get(cell.key)
        if told is None:
            return {metric: {} for metric in metrics}
        return {
            metric: {m.step: m.value for m in self._client.get_metric_history(told.run_id, metric)}
            for metric in metrics
        }

    def _search(self) -> dict[str, _Told]:
        """Active runs by cell key; the oldest where two drivers made one each."""
        found: dict[str, _Told] = {}
        for told in self._pages():
            found.setdefault(told.tags[outcome.TAG_CELL_KEY], told)
        return found

    def _pages(self) -> Iterator[_Told]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{outcome.TAG_CELL_KEY}` LIKE '%'", max_results=PAGE,
                order_by=["attributes.start_time ASC"], page_token=token,
            )  # fmt: skip
            yield from map(_told, page)
            if not (token := page.token):
                return

    @cached_property
    def _cells(self) -> tuple[Cell, ...]:
        cells = []
        for key, told in self._found.items():
            try:
                cells.append(_cell(key, told))
            except (KeyError, ValueError) as error:
                why = f"MLflow tells no {error}" if isinstance(error, KeyError) else str(error)
                self.unreadable[f"{told.name} ({key})"] = why.splitlines()[0]
        if self.unreadable:
            name, why = next(iter(self.unreadable.items()))
            warnings.warn(
                f"{self.place}: {len(self.unreadable)} runs left out (see `unreadable`), the first "
                f"{name}: {why}", stacklevel=3,
            )  # fmt: skip
        return tuple(sorted(cells, key=lambda cell: (cell.arm_label, cell.arm_key, cell.seed)))


def _told(run: Any) -> _Told:
    last = run.data.to_proto().metrics  # `run.data.metrics` has no steps
    return _Told(
        str(run.info.run_id), str(run.info.run_name), run.data.params, run.data.tags,
        {m.key: float(m.value) for m in last}, {m.key: int(m.step) for m in last},
    )  # fmt: skip


def _run(cell: Cell, told: _Told) -> Run:
    """What the search tells of a cell at its own horizon, as `runs.read_run` does from files."""
    status, last = told.tags.get(outcome.TAG_STATUS), told.last_round
    diverged = status == DIVERGED
    ended = told.horizon is not None and (diverged or told.horizon >= cell.rounds)
    if not ended:
        return _open_run(cell, told, status, last)
    if told.tags.get(outcome.TAG_EVAL_KEY) != cell.eval_key:
        why = "scored by another evaluation than this grid's; run the grid to re-score it"
        return Run(cell, UNFINISHED, why, last)
    base, final = told.phase(BASE_PREFIX), told.phase(FINAL_PREFIX)
    if diverged and last is not None and last <= cell.rounds:  # it broke in its last round
        reason = told.tags.get(outcome.TAG_STATUS_REASON) or "no reason given"
        reason = f"at round {last}: {reason}"
        return Run(cell, DIVERGED, reason, last, _scored(told), last, base, final)
    if diverged or told.horizon != cell.rounds:
        why = f"MLflow tells its final numbers at round {last if diverged else told.horizon} alone"
        return Run(cell, UNFINISHED, f"{why}; the store has round {cell.rounds}", last, base=base)
    return Run(cell, FINISHED, "", last, cell.rounds, None, base, final)


def _open_run(cell: Cell, told: _Told, status: str | None, last: int | None) -> Run:
    if status == FAILED:
        reason = told.tags.get(outcome.TAG_STATUS_REASON) or "no reason given"
        return Run(cell, FAILED, reason, last)
    if status is None and last is None:
        return Run(cell, WAITING)
    return Run(cell, UNFINISHED, f"at round {last or 0} of {cell.rounds}", last)


def _scored(told: _Told) -> int | None:
    """The round that a diverged run is counted at: of its last evaluation that gave a number."""
    known = not math.isnan(told.metrics.get(outcome.TEST_PASS, math.nan))
    return told.steps[outcome.TEST_PASS] if known else None


def _cell(key: str, told: _Told) -> Cell:
    """The cell of a run. Raises `KeyError` or `ValueError` where MLflow does not tell it in full.

    Parameters tell settings as Python prints them; content behind names is the catalogue's, at the
    revision that the run tells. That the key comes out proves them right.
    """
    params, tags = told.params, told.tags
    given: dict[str, Any] = {
        name: None if text == "None" else text
        for name, text in params.items()
        if name in Cell.model_fields
    }
    catalogues: dict[str, dict[str, Any]] = {"model": catalog.MODELS, "dataset": catalog.DATASETS}
    for kind, known in catalogues.items():
        if (name := params[kind]) not in known:
            raise ValueError(f"its {kind} {name} is not in the catalogue; its grid knows it")
        revision = {"revision": params[f"{kind}_revision"]}
        given[f"{kind}_spec"] = known[name].model_copy(update=revision)
    specs = json.loads(tags.get(outcome.TAG_PLUGINS, "[]"))
    given["plugin_specs"] = [{**spec, "path": ""} for spec in specs]  # none of it runs here
    given["rounds"] = tags[outcome.TAG_ROUNDS]
    given["eval"] = Evaluation.model_validate_json(tags[outcome.TAG_EVAL])
    cell = Cell(**given)
    if cell.key != key:
        raise ValueError(f"its parameters have the key {cell.key}")
    if cell.eval_key != tags[outcome.TAG_EVAL_KEY]:
        raise ValueError("its evaluation is not the one that it was scored by")
    return cell


def _client(uri: str) -> Any:
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    path = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not path.is_file():  # MLflow would make one
        raise InputError(f"{uri}: no file {path}; name MLflow's database or a server's address")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise InputError(
            f"no MLflow tracking store answers at {_redacted(uri)} ({_redacted(told)[:200]}); "
            "start it or correct the address"
        ) from None
    return client


def _experiment(client: Any, uri: str, study: str | None) -> tuple[str, str]:
    """(name, id) of the experiment: the one of this name, or the only one that has runs."""
    known = {e.name: str(e.experiment_id) for e in client.search_experiments()}
    if study is None:
        named = [name for name in known if name != "Default"]
        if len(named) != 1:
            raise InputError(
                f"MLflow at {_redacted(uri)} has {len(named)} studies "
                f"({listed(named) or 'none'}); name one"
            )
        study = named[0]
    if study not in known:
        raise InputError(
            f"MLflow at {_redacted(uri)} has no experiment {study!r}; it has "
            f"{listed(known)}{nearest(study, known)}"
        )
    return study, known[study]


def _redacted(text: str) -> str:
    """Without the user and password of any address in it."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)
