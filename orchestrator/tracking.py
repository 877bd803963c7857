"""Our own MLflow writer: explicit run ids, deterministic timestamps, never a fluent active run.

The journal of a cell is the truth; MLflow is what people browse: evaluations at their own round,
training as means every few rounds (`means.py`). Sending twice is sending once: a point is a
function of journal lines, MLflow knows it by (run, metric, step, timestamp, value), and the
timestamp is a function of the step. Nothing that MLflow does or fails to do stops training: what
could not be sent is sent with the next success, or by the next `run`. NaN is sent as NaN: a broken
loss is a result.
Leaves out the fluent API, artifacts and the server (`ui.py`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grids import outcome
from grids.cell import SPECS, Cell
from grids.errors import InputError
from grids.paths import CellPaths, DamagedError, read_lines
from orchestrator.marks import (
    behind,
    mark_of_done,
    mark_path,
    marked_run,
    place,
    redacted,
    sqlite_path,
)
from orchestrator.means import Point, evaluations, means, points
from orchestrator.plan import Work
from workers.lease import Held, Lease, Lost, held

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

START_MS = 1_600_000_000_000
STEP_MS = 1000
METRICS_A_CALL = 1000
SECONDS_BETWEEN_WRITES = 10.0
SECONDS_AFTER_A_FAILURE = 60.0
# One call that is not answered costs a trial at most two timeouts.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
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
            [experiment], run_view_type=ViewType.DELETED_ONLY, max_results=1000, page_token=token
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
        client.delete_run(run.info.run_id)
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
            if same and run.info.lifecycle_stage == "active":
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
        **{f"{outcome.TAG_GRID_PREFIX}{grid}": "yes" for grid in grids},
    }


def params(cell: Cell) -> dict[str, str]:
    """What a run is, once and for all: a parameter of MLflow cannot change."""
    settings = {k: str(v)[:6000] for k, v in cell.model_dump(exclude=NOT_PARAMS).items()}
    revisions = {"model": cell.model_spec.revision, "dataset": cell.dataset_spec.revision}
    return settings | {f"{k}_revision": v for k, v in revisions.items()}


@dataclass
class Writer:
    """Brings one cell's run level with its journal.

    It finds or makes the run when MLflow first answers. It keeps no lines: what is left to send is
    read from the journal and its mark each time, so that a worker that goes on, or repeats rounds,
    sends what an undisturbed one does. Every method may fail to reach MLflow and says so at most
    once a minute; none raises for it. Where a lease is given and lost, nothing is sent any more.
    """

    uri: str
    experiment: str
    cell: Cell
    grids: Sequence[str]
    paths: CellPaths
    lease: Lease
    failures: int = 0
    _client: Any = None
    _run_id: str | None = None
    _begin: dict[str, str] = field(default_factory=dict)  # tags that are still to be set
    _sent_at: float = 0.0
    _quiet_until: float = 0.0
    _warned_at: float = -1e9

    def begin(self, attempt: int, rows_per_pass: int | None = None) -> None:
        """Mark the run as running and send what earlier attempts did not.

        `rows_per_pass` is told where memory ran out before and it was halved.
        """
        self._begin = {outcome.TAG_STATUS: "running", outcome.TAG_ATTEMPTS: str(attempt)}
        if rows_per_pass is not None:
            self._begin[outcome.TAG_ROWS_PER_PASS] = str(rows_per_pass)
        self._try(self._send_behind)

    def run_id(self) -> str:
        """Of the cell's run; raises where MLflow does not answer."""
        if self._run_id is None:
            marked = marked_run(self.paths, self.uri)
            client = self._mlflow()
            self._run_id = ensure_run(client, self.experiment, self.cell, self.grids, marked)
        if self._begin:
            self._mlflow().update_run(self._run_id, status="RUNNING")
            for name, value in self._begin.items():
                self._tag(name, value)
            self._begin = {}
        return self._run_id

    def write(self, line: dict[str, float]) -> None:
        """A line is in the journal: send if it holds an evaluation, else every ten seconds."""
        due = time.monotonic() - self._sent_at > SECONDS_BETWEEN_WRITES
        if (due or outcome.TEST_PASS in line) and time.monotonic() > self._quiet_until:
            self._try(self._send_behind)

    def finish(self, done: dict[str, Any]) -> None:
        """Send the rest and the final numbers; the mark says that nothing is left to send."""
        self._try(self._finish, done)

    def end(self, status: str, reason: str) -> None:
        """Close the run as FAILED or KILLED, with the reason."""
        self._try(self._send_behind)
        self._try(self._close, status, status.lower(), reason)

    def _send_behind(self) -> None:
        """A window that is not whole waits, for the cell may go on with it."""
        if lines := behind(self.paths, self.uri, self.run_id()):
            self._send(points(lines))
            self._sent_at = time.monotonic()
            self._mark(int(lines[-1]["round"]), None)

    def _finish(self, done: dict[str, Any]) -> None:
        """Evaluations go again: the journal's line of a round may have been scored after it was
        sent. The last window goes as it is: should the cell go on, the whole one has a later step.
        """
        lines = read_lines(self.paths.journal)
        rest = behind(self.paths, self.uri, self.run_id())
        self._send(evaluations(lines) + means(rest, ended=True))
        self._send_finals(done)
        self._mark(int(lines[-1]["round"]), mark_of_done(self.paths))

    def _send_finals(self, done: dict[str, Any]) -> None:
        scores = {f"{outcome.BASE_PREFIX}{k}": v for k, v in (done.get("base") or {}).items()}
        scores |= {f"{outcome.FINAL_PREFIX}{k}": v for k, v in (done.get("final") or {}).items()}
        self._send([Point(done["rounds"], k, v) for k, v in scores.items() if v is not None])
        self._close("FINISHED", done["status"], done.get("reason") or "")

    def _close(self, mlflow_status: str, status: str, reason: str) -> None:
        self._tag(outcome.TAG_STATUS, status)
        self._tag(outcome.TAG_STATUS_REASON, redacted(reason)[:2000])
        self._mlflow().set_terminated(self.run_id(), mlflow_status)

    def _tag(self, name: str, value: str) -> None:
        self._mlflow().set_tag(self._run_id, name, value)

    def _send(self, made: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float(value), START_MS + STEP_MS * step, step)
            for step, name, value in made
        ]
        for i in range(0, len(metrics), METRICS_A_CALL):
            self._mlflow().log_batch(self.run_id(), metrics=metrics[i : i + METRICS_A_CALL])

    def _mlflow(self) -> Any:
        self._client = self._client or quiet_client(self.uri)
        return self._client

    def _try(self, call: Any, *arguments: Any) -> bool:
        """Whether the call went through. Telemetry is the one thing whose failure is swallowed."""
        try:
            self.lease.check()
            call(*arguments)
        except Lost:
            raise
        except DamagedError as error:  # whoever trains the cell reads the file too, and stops there
            self.failures += 1
            print(error, file=sys.stderr, flush=True)
            return False
        except Exception as error:
            self.failures += 1
            now = time.monotonic()
            self._quiet_until = now + SECONDS_AFTER_A_FAILURE
            if now - self._warned_at > SECONDS_AFTER_A_FAILURE:
                self._warned_at = now
                print(
                    f"MLflow at {redacted(self.uri)} did not take what was sent "
                    f"({brief(error)}); training goes on, the journal is sent later",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            return False
        return True

    def _mark(self, sent: int, done: str | None) -> None:
        mark = {"place": place(self.uri), "run_id": self.run_id(), "round": sent, "done": done}
        self.lease.write_json(mark_path(self.paths), {**mark, "grids": sorted(self.grids)})


def bring_level(work: Work, paths: CellPaths, uri: str, experiment: str) -> bool:
    """Send what a done cell's run lacks; True where MLflow took it, or another does it."""
    try:
        with held(paths, work.cell.label) as lease:
            writer = Writer(uri, experiment, work.cell, work.grids, paths, lease)
            writer.finish(json.loads(paths.done.read_text(encoding="utf-8")))
    except (Held, Lost):
        return True
    return writer.failures == 0


def brief(error: Exception) -> str:
    """The first line of an error, without credentials and not too long."""
    lines = redacted(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
