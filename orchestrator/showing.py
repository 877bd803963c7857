"""The study in MLflow as a person browses it: its description, saved views, verdicts on its runs.

All of it is made from tags that are there already and from what is told here, so that any driver
may make it again; equal content is not sent twice. Leaves out the text (`notes.py`, `views.py`) and
what a run's own worker sends (`writer.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from grids.grid import Grid
from grids.outcome import (
    TAG_ARM_KEY,
    TAG_GRID_PREFIX,
    TAG_NOTE,
    TAG_VERDICTS_PREFIX,
    Verdict,
)
from orchestrator import notes, views

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

TAG_ANALYSIS: Final = "banditgrid.analysis"  # of an experiment: that run's id
# What kind of study it is, in MLflow's words; pages of training are opened by the links (`views`).
MODEL_TRAINING: Final = {"mlflow.experimentKind": "custom_model_development"}
PAGE: Final = 1000


def show_study(
    client: MlflowClient, experiment: str, grids: Iterable[tuple[Grid, int]] = ()
) -> None:
    """Bring a study's views and description level; `grids` with their number of cells are those
    that are run now, to which the description adds those of earlier runs."""
    found = client.get_experiment(experiment)
    tags = dict(MODEL_TRAINING)
    tags.update([views.tag(views.STUDY, "all runs", views.of_study())])
    for grid, cells in grids:
        entry = json.dumps(notes.grid_entry(grid, cells), sort_keys=True)
        tags[f"{TAG_GRID_PREFIX}{grid.name}"] = entry
        tags.update([views.tag(views.key_of(grid), views.title_of(grid), views.of_grid(grid))])
    now = found.tags | tags
    entries = {name: json.loads(value) for name, value in under(TAG_GRID_PREFIX, now).items()}
    verdicts = under(TAG_VERDICTS_PREFIX, now)
    note = notes.study_note(found.name, experiment, entries, verdicts, now.get(TAG_ANALYSIS))
    tags[TAG_NOTE] = notes.joined(found.tags.get(TAG_NOTE), note)
    _set(client, found, tags)


def show_verdicts(
    client: MlflowClient, experiment: str, analysis: str, made: Sequence[Verdict], now: datetime
) -> None:
    """Write what tables said into the descriptions of the study and of every run of their arms.

    Verdicts of other grids stay. `analysis` is the run that holds the tables.
    """
    found = client.get_experiment(experiment)
    by_grid: dict[str, list[Verdict]] = {}
    for verdict in made:
        by_grid.setdefault(verdict.grid, []).append(verdict)
    tags = {TAG_ANALYSIS: analysis}
    for grid, of_grid in by_grid.items():
        tags[f"{TAG_VERDICTS_PREFIX}{grid}"] = notes.study_verdicts(of_grid, now)
    _set(client, found, tags)
    show_study(client, experiment)
    for grid, of_grid in by_grid.items():
        for run in _runs_of(client, experiment, grid):
            _show_on_run(client, run, grid, of_grid)


def _show_on_run(client: MlflowClient, run: Run, grid: str, made: Sequence[Verdict]) -> None:
    tags, name = run.data.tags, f"{TAG_VERDICTS_PREFIX}{grid}"
    told = notes.run_verdicts(made, tags[TAG_ARM_KEY])
    if not told or tags.get(name) == told:
        return
    client.set_tag(run.info.run_id, name, told)
    verdicts = under(TAG_VERDICTS_PREFIX, tags | {name: told})
    if (note := notes.with_verdicts(tags.get(TAG_NOTE), verdicts)) is not None:
        client.set_tag(run.info.run_id, TAG_NOTE, note)


def _runs_of(client: MlflowClient, experiment: str, grid: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(
            [experiment], f"tags.`{TAG_GRID_PREFIX}{grid}` = 'yes'", max_results=PAGE,
            page_token=token,
        )  # fmt: skip
        yield from page
        if not (token := page.token):
            return


def under(prefix: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Tags whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tags.items() if k.startswith(prefix)}


def _set(client: MlflowClient, experiment: Experiment, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        if experiment.tags.get(name) != value:
            client.set_experiment_tag(experiment.experiment_id, name, value)
