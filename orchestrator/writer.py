"""One cell's MLflow run, brought level with the cell's files.

The journal of a cell is the truth; MLflow is what people browse: evaluations at their own round,
training as means every few rounds (`means.py`). Sending twice is sending once: a point is a
function of the cell's files, MLflow knows it by (run, metric, step, timestamp, value), and the
timestamp is a function of the step. System metrics alone are of one attempt: where a worker was
killed between sending and noting so, and its rounds were made again, MLflow has two of them.
Nothing that MLflow does or fails to do stops training: what could not be sent is sent with the next
success, or by the next `run`. NaN is sent as NaN: a broken loss is a result.
Leaves out finding the run (`tracking.py`) and what its description says (`notes.py`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grids import outcome
from grids.cell import Cell
from grids.paths import CellPaths, DamagedError, read_lines, read_mark
from orchestrator import completions, notes
from orchestrator.inputs import inputs
from orchestrator.marks import SHOWN, behind, mark_of_done, mark_path, marked_run, place, redacted
from orchestrator.means import Point, evaluations, means, points
from orchestrator.notes import Score
from orchestrator.plan import Work
from orchestrator.scored import scores
from orchestrator.showing import under
from orchestrator.tracking import brief, ensure_run, quiet_client
from orchestrator.usage import Timings
from workers.lease import Held, Lease, Lost, held

START_MS = 1_600_000_000_000
STEP_MS = 1000
METRICS_A_CALL = 1000
SECONDS_BETWEEN_WRITES = 10.0
SECONDS_AFTER_A_FAILURE = 60.0


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
    _told: bool = False  # that completions were not taken
    _missed: bool = False  # completions, for now

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
            attempt = self._begin[outcome.TAG_ATTEMPTS]
            self._begin = {}
            self._describe(f"running, attempt {attempt}")
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
        self._try(self._end, status, reason)

    def _end(self, status: str, reason: str) -> None:
        self._close(status, status.lower(), reason)
        told = redacted(reason).splitlines()[0] if reason else ""
        self._describe(f"{'failed' if status == 'FAILED' else 'left'}: {told[:300]}")

    def _send_behind(self) -> None:
        """A window that is not whole waits, for the cell may go on with it."""
        if lines := behind(self.paths, self.uri, self.run_id()):
            timings = Timings.read(self.paths)
            self._send(points(timings.beside(lines)), timings)
            self._sent_at = time.monotonic()
            self._mark(int(lines[-1]["round"]), None)
            if outcome.TEST_PASS in lines[-1]:  # samples are written with an evaluation
                self._send_completions()

    def _finish(self, done: dict[str, Any]) -> None:
        """Evaluations go again: the journal's line of a round may have been scored after it was
        sent. The last window goes as it is: should the cell go on, the whole one has a later step.
        """
        lines = read_lines(self.paths.journal)
        timings = Timings.read(self.paths)
        rest = timings.beside(behind(self.paths, self.uri, self.run_id()))
        self._send(evaluations(lines) + means(rest, ended=True), timings)
        self._send_finals(done)
        self._describe(_told(done), scores(self.paths))
        self._send_completions()
        self._mark(int(lines[-1]["round"]), mark_of_done(self.paths))

    def _send_finals(self, done: dict[str, Any]) -> None:
        scores = {f"{outcome.BASE_PREFIX}{k}": v for k, v in (done.get("base") or {}).items()}
        scores |= {f"{outcome.FINAL_PREFIX}{k}": v for k, v in (done.get("final") or {}).items()}
        self._send([Point(done["rounds"], k, v) for k, v in scores.items() if v is not None])
        ended = int(self.paths.done.stat().st_mtime * 1000)  # whenever this is sent again
        self._close("FINISHED", done["status"], done.get("reason") or "", ended)

    def _close(
        self, mlflow_status: str, status: str, reason: str, ended_ms: int | None = None
    ) -> None:
        self._tag(outcome.TAG_STATUS, status)
        self._tag(outcome.TAG_STATUS_REASON, redacted(reason)[:2000])
        self._mlflow().set_terminated(self.run_id(), mlflow_status, ended_ms)

    def _describe(self, state: str, scored: Mapping[str, Score] | None = None) -> None:
        """The run's description and its data set; what people wrote into it stays."""
        run = self._mlflow().get_run(self._run_id)
        if not run.inputs.dataset_inputs:
            self._mlflow().log_inputs(self._run_id, inputs(self.cell))
        tags = run.data.tags
        grids = sorted(under(outcome.TAG_GRID_PREFIX, tags))
        verdicts = {k: v for k, v in under(outcome.TAG_VERDICTS_PREFIX, tags).items() if v}
        ours = notes.run_note(self.cell, grids, state, scored or {}, verdicts)
        if (note := notes.joined(tags.get(outcome.TAG_NOTE), ours)) != tags.get(outcome.TAG_NOTE):
            self._tag(outcome.TAG_NOTE, note)

    def _send_completions(self) -> None:
        """Neither a store of artifacts that does not take them nor damaged samples keep a number
        back. What is away may come again: then the next run sends them."""
        self._missed = False
        try:
            completions.send(self._mlflow(), self.run_id(), self.paths)
        except Lost:
            raise
        except Exception as error:
            self._missed = not completions.is_final(error)
            if not self._told:
                self._told = True
                print(
                    f"MLflow at {redacted(self.uri)} did not take the sample completions "
                    f"({brief(error)}); they are in {self.paths.samples.name}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    def _tag(self, name: str, value: str) -> None:
        self._mlflow().set_tag(self._run_id, name, value)

    def _send(self, made: Sequence[Point], timings: Timings | None = None) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(point.metric, float(point.value), _time_ms(point, timings), point.round)
            for point in made
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
        mark["shown"] = SHOWN if done and not self._missed else None
        before = read_mark(mark_path(self.paths)) or {}
        same = before.get("run_id") == mark["run_id"]  # tags of other grids stay on the run
        grids = {*self.grids, *(before.get("grids", ()) if same else ())}
        self.lease.write_json(mark_path(self.paths), {**mark, "grids": sorted(grids)})


def _time_ms(point: Point, timings: Timings | None) -> int:
    """A function of the step. MLflow draws system metrics over time: theirs is when they were."""
    told = None
    if timings is not None and point.metric.startswith(outcome.SYSTEM_PREFIX):
        told = timings.time_ms(point.round)
    return START_MS + STEP_MS * point.round if told is None else told


def _told(done: Mapping[str, Any]) -> str:
    """How a done cell stands."""
    if done["status"] != outcome.DIVERGED:
        return f"finished after {done['rounds']} rounds"
    round, why = done.get("diverged_round"), done.get("reason") or "no reason told"
    return f"diverged in round {round}: {why}" if round is not None else f"diverged: {why}"


def bring_level(work: Work, paths: CellPaths, uri: str, experiment: str) -> bool:
    """Send what a done cell's run lacks; True where MLflow took it, or another does it."""
    try:
        with held(paths, work.cell.label) as lease:
            writer = Writer(uri, experiment, work.cell, work.grids, paths, lease)
            writer.finish(json.loads(paths.done.read_text(encoding="utf-8")))
    except (Held, Lost):
        return True
    return writer.failures == 0
