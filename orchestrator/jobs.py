"""Studies as jobs of a Ray cluster: sending them, finding them, stopping them.

One job runs one study. Its id, `banditgrid-STUDY-N`, is chosen by the sender, and Ray takes an id
once, so that of two who send the same at the same time one attaches to what the other sent. What a
job is about (study, store, digests of its grids) is in its metadata: everybody who can read the
list of jobs can read it, so no credentials are. Leaves out their logs (`following.py`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from grids.errors import InputError
from orchestrator.endpoint import connect, url_of
from orchestrator.marks import redacted
from orchestrator.shipping import Order, Parcel, packed

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

KIND: Final = "banditgrid"  # of a job, in its metadata
RUN, ASKED = "run", "asked"
OVER: Final = ("SUCCEEDED", "FAILED", "STOPPED")
TRIES = 20  # at an id that another client may take first
TALKATIVE: Final = (
    "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)  # fmt: skip
# Ray kills a stopped job's processes after this time: the driver ends its workers, then itself.
STOP_SECONDS = 30
KEPT_SECONDS = 60.0  # on the list, after a command ended


class Gone(InputError):
    """The cluster does not know the job."""


@dataclass(frozen=True)
class Job:
    """One study on a cluster, now or earlier."""

    id: str
    study: str
    store: str
    grids: dict[str, str]  # name -> digest
    code: str
    status: str
    began: float | None = None  # seconds since 1970
    ended: float | None = None
    exit_code: int | None = None
    message: str = ""
    package: str | None = None  # the URI of its code and grids

    @property
    def over(self) -> bool:
        return self.status in OVER

    @property
    def number(self) -> int:
        told = self.id.rpartition("-")[2]
        return int(told) if told.isdigit() else 0


@dataclass(frozen=True)
class Sent:
    """What became of an order."""

    job: Job
    attached: bool  # it ran already
    code: str  # digest of this machine's own
    beside: tuple[Job, ...] = ()  # other running jobs of the study
    bytes: int = 0  # of the package


@dataclass
class Cluster:
    """The jobs of a cluster. Raises `InputError` as `endpoint.connect` does."""

    address: str
    client: JobSubmissionClient = field(init=False)

    def __post_init__(self) -> None:
        self.address = url_of(self.address)
        self.client = connect(self.address)
        for name in TALKATIVE:  # what is worth telling, we tell
            logging.getLogger(name).setLevel(logging.WARNING)

    @contextmanager
    def asking(self) -> Iterator[JobSubmissionClient]:
        """One message where the cluster stops answering."""
        from requests import RequestException

        try:
            yield self.client
        except (RequestException, ConnectionError) as error:
            raise InputError(
                f"the cluster at {self.address} stopped answering ({type(error).__name__}); what "
                "runs there goes on; try again"
            ) from None

    def jobs(self, study: str | None = None) -> list[Job]:
        """Jobs that run studies, or one study, the newest first."""
        with self.asking() as client:
            found = [_job(details) for details in client.list_jobs()]
        jobs = [job for job in found if job is not None and study in (None, job.study)]
        return sorted(jobs, key=lambda job: (job.began or 0, job.number), reverse=True)

    def job(self, job_id: str) -> Job:
        """A job as it stands, of whatever kind. Raises `Gone`."""
        with self.asking() as client:
            try:
                details = client.get_job_info(job_id)
            except RuntimeError as error:
                if "404" not in str(error):
                    raise InputError(_odd(self.address, error)) from None
                raise Gone(
                    f"the cluster at {self.address} does not know the job {job_id} any more, as "
                    "after a restart of its head; submit again to go on from the last checkpoints"
                ) from None
        return _job(details, whatever=True)  # type: ignore[return-value]

    def send(self, order: Order) -> Sent:
        """Start a study, or attach to a job that does all of the order already."""
        wanted = order.digests.items()
        with packed(order.shipped) as parcel:
            for _ in range(TRIES):
                jobs = self.jobs(order.study)
                running = [job for job in jobs if not job.over]
                for job in running:
                    if job.store == order.store and wanted <= job.grids.items():
                        return Sent(job, True, parcel.code)
                number = 1 + max((job.number for job in jobs), default=0)
                job_id = f"banditgrid-{order.study}-{number}"
                if self.start(job_id, order.entrypoint, str(parcel.folder), _about(order, parcel)):
                    beside = tuple(running)
                    return Sent(self.job(job_id), False, parcel.code, beside, parcel.bytes)
        raise InputError(f"the cluster at {self.address} takes no job for study {order.study}")

    def start(
        self, job_id: str | None, entrypoint: str, package: str, metadata: dict[str, str]
    ) -> str | None:
        """The id of a new job, or None where another client took it first."""
        stop = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        with self.asking() as client:
            try:
                return client.submit_job(
                    entrypoint=entrypoint, submission_id=job_id, metadata=metadata,
                    runtime_env={"working_dir": package, "env_vars": stop},
                )  # fmt: skip
            except RuntimeError as error:
                if job_id is not None and "already exists" in str(error):
                    return None
                raise InputError(_odd(self.address, error)) from None

    def stop(self, job_id: str) -> None:
        """Have Ray end a job; nothing where it ended by itself."""
        with self.asking() as client:
            try:
                client.stop_job(job_id)
            except RuntimeError as error:
                raise InputError(_odd(self.address, error)) from None

    def sweep(self, seconds: float = KEPT_SECONDS) -> None:
        """Take commands that ended so long ago off the list of jobs.

        Not sooner: Ray looks once more at a job that ended, and would list one that is gone anew.
        """
        with self.asking() as client:
            for details in client.list_jobs():
                about, ended = details.metadata or {}, _seconds(details.end_time)
                if about.get(KIND) == ASKED and ended and time.time() - ended > seconds:
                    try:
                        client.delete_job(details.submission_id)
                    except RuntimeError:  # another client did
                        pass

    def has(self, package: str | None) -> bool:
        """The cluster has the package still: it lets go of those that no job needs."""
        with self.asking() as client:
            return package is not None and bool(client._package_exists(package))


def _about(order: Order, parcel: Parcel) -> dict[str, str]:
    grids = json.dumps(order.digests, sort_keys=True)
    about = {"study": order.study, "store": order.store, "grids": grids, "code": parcel.code}
    return {KIND: RUN, **about}


def _job(details: Any, whatever: bool = False) -> Job | None:
    """A job of ours from Ray's account of it, or None for another one's."""
    about = details.metadata or {}
    if details.submission_id is None or not (whatever or about.get(KIND) == RUN):
        return None
    return Job(
        details.submission_id, about.get("study", ""), about.get("store", ""),
        json.loads(about.get("grids", "{}")), about.get("code", ""), details.status.value,
        _seconds(details.start_time), _seconds(details.end_time), details.driver_exit_code,
        details.message or "", (details.runtime_env or {}).get("working_dir"),
    )  # fmt: skip


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def _odd(address: str, error: Exception) -> str:
    """Ray answers with a traceback of its own: the last line says what it is about."""
    lines = [line for line in redacted(error).splitlines() if line.strip(" .")]
    return f"the cluster at {address} refused: {lines[-1][:300] if lines else 'it says no more'}"
