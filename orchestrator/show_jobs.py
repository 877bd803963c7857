"""Jobs of a cluster for people and for programs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.jobs import Job, Sent
from orchestrator.show import bytes_for_people, duration, table


def told_jobs(found: Iterable[Job]) -> list[Job]:
    """Of jobs, the newest first: those that run, and the newest of a study that has none."""
    jobs = list(found)
    running = [job for job in jobs if not job.over]
    busy = {job.study for job in running}
    newest = {job.study: job for job in reversed(jobs) if job.study not in busy}
    return [*running, *newest.values()]


def show_jobs(jobs: Sequence[Job], out: Console) -> None:
    """One line a job."""
    made = table("job", "study", "state", "began", "for", "store", "grids")
    for job in jobs:
        grids = ", ".join(job.grids)
        cells = (job.id, job.study, state(job), began(job), took(job), job.store, grids)
        made.add_row(*map(Text, cells))
    out.print(made if made.row_count else "no study was submitted to this cluster")


def job_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "job": job.id, "study": job.study, "state": state(job), "began": job.began,
            "ended": job.ended, "exit_code": job.exit_code, "store": job.store,
            "grids": list(job.grids),
        }
        for job in jobs
    ]  # fmt: skip


def show_sent(sent: Sent, address: str, out: Console) -> None:
    """What became of an order, and how to go on."""
    job = sent.job
    if sent.attached:
        other = "" if job.code == sent.code else ", with other code than this machine's"
        told = f"study {job.study} runs already, since {began(job)}{other}: attached to {job.id}"
    else:
        told = f"{job.id} runs study {job.study}; code and grids: {bytes_for_people(sent.bytes)}"
    lines = [told, *_neighbours(job, sent.beside), *hints(job.study, address)]
    for line in lines:
        out.print(Text(line), soft_wrap=True)


def _neighbours(job: Job, beside: Iterable[Job]) -> list[str]:
    lines = []
    for other in beside:
        same = other.store == job.store
        how = "the two share the cells out" if same else f"it has a store of its own, {other.store}"
        lines.append(f"beside it runs {other.id}: {how}")
    return lines


def hints(study: str, address: str) -> list[str]:
    """How to follow and to stop a study on a cluster."""
    return [
        f"  follow: banditgrid logs {study} -f --address {address}",
        f"  stop:   banditgrid stop {study} --address {address}",
    ]


def state(job: Job) -> str:
    return "starting" if job.status == "PENDING" else job.status.lower()


def began(job: Job) -> str:
    """In UTC, to the second."""
    if job.began is None:
        return ""
    return datetime.fromtimestamp(job.began, UTC).isoformat(" ", "seconds").removesuffix("+00:00")


def took(job: Job) -> str:
    if job.began is None:
        return ""
    return duration(max(0.0, (job.ended or time.time()) - job.began))
