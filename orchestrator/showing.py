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
from orchestrator.tracking import PAGE

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

TAG_ANALYSIS: Final = "banditgrid.analysis"  # of an experiment: that run's id
# What kind of study it is, in MLflow's words; pages of training are opened by the links (`views`).
MODEL_TRAINING: Final = {"mlflow.experimentKind": "custom_model_development"}

Verdicts = Mapping[str, Sequence[Verdict]]  # grid -> what its tables say; nothing where they do not


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
        view = views.of_grid(grid)
        tags.update([views.tag(views.key_of(grid), views.title_of(grid), view, grid.section)])
    now = found.tags | tags
    entries = {name: json.loads(value) for name, value in under(TAG_GRID_PREFIX, now).items()}
    verdicts = {grid: told for grid, told in under(TAG_VERDICTS_PREFIX, now).items() if told}
    note = notes.study_note(found.name, experiment, entries, verdicts, now.get(TAG_ANALYSIS))
    tags[TAG_NOTE] = notes.joined(found.tags.get(TAG_NOTE), note, notes.MOST_OF_A_STUDY)
    _set(client, found, tags)


def show_verdicts(
    client: MlflowClient, experiment: str, analysis: str, by_grid: Verdicts, now: datetime
) -> int:
    """Write what tables said into the descriptions of the study and of every run of their arms.

    What these tables say no longer goes; verdicts of other grids stay. `analysis` is the run that
    holds the tables. Answers how many runs were changed.
    """
    found = client.get_experiment(experiment)
    tags = {TAG_ANALYSIS: analysis}
    for grid, made in by_grid.items():
        tags[f"{TAG_VERDICTS_PREFIX}{grid}"] = notes.study_verdicts(made, now) if made else ""
    _set(client, found, tags)
    show_study(client, experiment)
    return sum(
        _show_on_run(client, run, grid, made)
        for grid, made in by_grid.items()
        for run in _runs_of(client, experiment, grid)
    )


def _show_on_run(client: MlflowClient, run: Run, grid: str, made: Sequence[Verdict]) -> bool:
    """Whether something was to be changed; verdict and description in one call, or neither."""
    from mlflow.entities import RunTag

    name = f"{TAG_VERDICTS_PREFIX}{grid}"
    told = notes.run_verdicts(made, run.data.tags.get(TAG_ARM_KEY, ""))
    tags = run.data.tags | ({name: told} if told or name in run.data.tags else {})
    verdicts = {grid: text for grid, text in under(TAG_VERDICTS_PREFIX, tags).items() if text}
    note = notes.with_verdicts(tags.get(TAG_NOTE), verdicts)
    if note is not None:
        tags[TAG_NOTE] = note
    changed = [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]
    if changed:
        client.log_batch(run.info.run_id, tags=changed)
    return bool(changed)


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
