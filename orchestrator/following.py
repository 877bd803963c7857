"""A job's log as it is written, until the job ends; what its end means.

A lost connection is made again, and what was shown is not shown twice. Leaves out where the text
goes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from grids.errors import InputError
from orchestrator.jobs import Cluster, Gone, Job
from orchestrator.marks import redacted

QUIET_SECONDS = 60.0  # without a word, after which the connection may be dead
OUTAGE_SECONDS = 300.0  # without an answer, after which following ends
PAUSE_SECONDS = 1.0
STOPPED_CODE: Final = 130
BEGIN: Final = "Running entrypoint for job "  # the last line that Ray writes itself


@dataclass
class Follower:
    """Writes the log of one job; `write` gets only what the job itself printed."""

    cluster: Cluster
    job_id: str
    write: Callable[[str], object]
    _seen: int = 0  # characters taken
    _head: str | None = ""  # what came before the job's own output; None when that began

    def until_end(self) -> Job:
        """Follow; the job when it is over.

        Raises `Gone` where the cluster lost it, `InputError` where it does not answer any more.
        """
        answered = time.monotonic()
        while True:
            try:
                over = self.cluster.job(self.job_id).over
                whole = asyncio.run(self._tail())
                job = self.cluster.job(self.job_id)
                answered = time.monotonic()
                if job.over and (whole or over):
                    return job
            except Gone:
                raise
            except InputError:
                if time.monotonic() - answered > OUTAGE_SECONDS:
                    raise
            time.sleep(PAUSE_SECONDS)

    def so_far(self) -> None:
        """Write what there is."""
        with self.cluster.asking() as client:
            self._take(client.get_job_logs(self.job_id))

    async def _tail(self) -> bool:
        """Take what the log holds from its beginning; whether it came to the job's end."""
        import aiohttp

        passed = 0
        tail = self.cluster.client.tail_job_logs(self.job_id)
        try:
            while True:
                text = await asyncio.wait_for(anext(tail), QUIET_SECONDS)
                passed += len(text)
                if (new := passed - self._seen) > 0:
                    self._take(text[-new:])
                    self._seen = passed
        except StopAsyncIteration:
            return True
        except (TimeoutError, RuntimeError, OSError, aiohttp.ClientError):
            return False
        finally:
            await tail.aclose()

    def _take(self, text: str) -> None:
        if self._head is None:
            self.write(text)
            return
        self._head += text
        before, found, after = self._head.partition(BEGIN)
        if found and "\n" in after:
            self._head = None
            self.write(after.partition("\n")[2])


def exit_code(job: Job) -> int:
    """That of the run: 0 all is well, 1 some cell failed, 2 bad input, 130 stopped."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return STOPPED_CODE
    return job.exit_code if job.exit_code in (1, 2, STOPPED_CODE) else 1


def why(job: Job) -> str | None:
    """How a job ended that did not end by itself, or None."""
    if job.status == "STOPPED":
        return f"{job.id} was stopped"
    if job.status == "SUCCEEDED" or job.exit_code in (1, 2, STOPPED_CODE):
        return None
    if job.exit_code is not None:
        return f"{job.id}: its driver ended with code {job.exit_code}, as one that was killed"
    lines = redacted(job.message).strip().splitlines() or ["no reason was told"]
    return f"{job.id} failed: {lines[0][:300]}"
