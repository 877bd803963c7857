"""MLflow's store as this program uses it: a client that gives up soon, experiments, runs, tags.

Explicit run ids, never a fluent active run: a run is found by its cell's key, so that whoever
trains a cell, and however often, writes to the same one. Leaves out the fluent API, what is sent
to a run (`writer.py`), artifacts of tables (`publish.py`) and the server (`ui.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grids import outcome
from grids.cell import SPECS, Cell
from grids.errors import InputError
from orchestrator import access
from orchestrator.marks import (
    redacted,
    sqlite_path,
)
from orchestrator.notes import arm_name, pair_name

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# One call that is not answered costs a trial at most two timeouts.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a proxy may ask for an hour
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Through the server alone: the store behind it may be out of a client's reach.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}
PAGE = 100  # runs in one answer: with all their metrics more take a server longer than that
# Settings that are no parameter of a run: content that tags and keys name, resources, the horizon.
NOT_PARAMS = {
    *SPECS, "rounds", "eval", "rows_per_pass", "gradient_checkpointing", "liger", "gpus", "keep",
}  # fmt: skip


def quiet_client(uri: str) -> MlflowClient:
    """A client that gives up soon and says nothing of its own."""
    import logging

    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def patient_client(uri: str) -> MlflowClient:
    """A client for a person who waits for what was asked, and not for a round of training."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    return quiet_client(uri)


def connect(uri: str) -> MlflowClient:
    """A client of a tracking store that answers.

    Raises `InputError` with the address, what was tried and the fix where it does not.
    """
    if (path := sqlite_path(uri)) is not None and not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"MLflow's database {path} cannot be written: its folder is absent or read-only; "
            "make it, or name another address with --tracking-uri"
        )
    try:
        client = quiet_client(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        if told := access.refusal(error):
            raise InputError(f"MLflow at {redacted(uri)}: {told}") from None
        raise InputError(
            f"no MLflow tracking store answers at {redacted(uri)} (listing its experiments "
            f"failed: {brief(error)}); start it, correct --tracking-uri, or leave "
            "--tracking-uri out to use the store's own SQLite file"
        ) from None
    return client


def ensure_experiment(client: MlflowClient, study: str, artifacts: str | None = None) -> str:
    """The id of the study's experiment; made where there is none."""
    found = client.get_experiment_by_name(study)
    if found is None:
        try:
            return str(client.create_experiment(study, artifact_location=artifacts))
        except Exception:  # another driver was faster
            found = client.get_experiment_by_name(study)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"MLflow's experiment {study!r} was deleted; bring it back with "
            f"`mlflow experiments restore -x {found.experiment_id}`, or give the grid "
            "another `study:`"
        )
    return str(found.experiment_id)


def deleted_runs(client: MlflowClient, experiment: str) -> set[str]:
    """Ids of the experiment's runs that somebody deleted. Seldom any: so this is asked for, and
    not the many that are there."""
    from mlflow.entities import ViewType

    found: set[str] = set()
    token = None
    while True:
        page = client.search_runs(
            [experiment], run_view_type=ViewType.DELETED_ONLY, max_results=PAGE, page_token=token
        )
        found |= {str(run.info.run_id) for run in page}
        if not (token := page.token):
            return found


def ensure_run(
    client: MlflowClient, experiment: str, cell: Cell, grids: Sequence[str], marked: str | None
) -> str:
    """The id of the cell's run, its tags up to date; made where there is none.

    Whoever calls holds the cell's lease, so that no two make one. `marked` is the run that had the
    cell's journal before. One that was deleted is not brought back: the new one gets everything.
    """
    tags = run_tags(cell, grids)
    run = _found(client, experiment, cell.key, marked)
    if run is not None and run.data.tags.get(outcome.TAG_EVAL_KEY) != cell.eval_key:
        # Scored anew, its journal contradicts points that MLflow cannot take back.
        _retire(client, run)
        run = None
    if run is None:
        run = client.create_run(experiment, tags=tags, run_name=cell.label)
    run_id = str(run.info.run_id)
    if not run.data.params:
        from mlflow.entities import Param

        client.log_batch(run_id, params=[Param(k, v) for k, v in params(cell).items()])
    for name, value in tags.items():
        if run.data.tags.get(name) != value:
            client.set_tag(run_id, name, value)
    return run_id


def _retire(client: MlflowClient, run: Any) -> None:
    """Delete a run. Where it is another user's, who alone may delete it, it is the cell's no
    longer: it stays to be seen, and nothing finds it by the cell's key."""
    try:
        client.delete_run(run.info.run_id)
    except Exception as error:
        if access.status(error) != access.FORBIDDEN:
            raise
        client.set_tag(run.info.run_id, outcome.TAG_STATUS, "superseded")
        ours = (outcome.TAG_CELL_KEY, outcome.TAG_GRID_PREFIX)  # no view of a grid shows it
        for name in run.data.tags:
            if name.startswith(ours):
                client.delete_tag(run.info.run_id, name)


def _found(client: MlflowClient, experiment: str, key: str, marked: str | None) -> Any:
    """The cell's active run: the marked one, else the oldest with its key, else None."""
    if marked is not None:
        try:
            run = client.get_run(marked)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            same = run.info.experiment_id == experiment
            of_cell = run.data.tags.get(outcome.TAG_CELL_KEY) == key  # else it was superseded
            if same and run.info.lifecycle_stage == "active":
                if of_cell:
                    return run
            print(f"MLflow's run {marked} was deleted; a new one gets its history", flush=True)
    found = client.search_runs(
        [experiment], f"tags.`{outcome.TAG_CELL_KEY}` = '{key}'", max_results=1,
        order_by=["attributes.start_time ASC"],
    )  # fmt: skip
    return found[0] if found else None


def run_tags(cell: Cell, grids: Sequence[str]) -> dict[str, str]:
    plugins = [spec.model_dump(exclude={"path"}) for spec in cell.plugin_specs]
    return {
        **({outcome.TAG_PLUGINS: json.dumps(plugins)} if plugins else {}),
        outcome.TAG_CELL_KEY: cell.key,
        outcome.TAG_ARM_KEY: cell.arm_key,
        outcome.TAG_EVAL_KEY: cell.eval_key,
        outcome.TAG_EVAL: cell.eval.model_dump_json(),
        outcome.TAG_ROUNDS: str(cell.rounds),
        outcome.TAG_PAIR: pair_name(cell),
        outcome.TAG_ARM: arm_name(cell),
        **{f"{outcome.TAG_GRID_PREFIX}{grid}": "yes" for grid in grids},
    }


def params(cell: Cell) -> dict[str, str]:
    """What a run is, once and for all: a parameter of MLflow cannot change."""
    settings = {k: str(v)[:6000] for k, v in cell.model_dump(exclude=NOT_PARAMS).items()}
    revisions = {"model": cell.model_spec.revision, "dataset": cell.dataset_spec.revision}
    return settings | {f"{k}_revision": v for k, v in revisions.items()}


def brief(error: Exception) -> str:
    """The first line of an error, without credentials and not too long."""
    if told := access.refusal(error):
        return told
    lines = redacted(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
