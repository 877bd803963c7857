"""A job's log as it is written, until the job ends; what its end means.

A lost connection is made again, and what was shown is not shown twice. Leaves out where the text
goes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from grids.errors import InputError
from orchestrator.jobs import Cluster, Gone, Job
from orchestrator.marks import redacted

QUIET_SECONDS = 60.0  # without a word, after which the connection may be dead
OUTAGE_SECONDS = 300.0  # without an answer, after which following ends
LOOK_SECONDS = 1.0  # between looks whether the job is over: the log itself tells it seconds late
STOPPED_CODE: Final = 130
# Ray's own lines; the second may come after what a quick job prints.
SETTING_UP: Final = re.compile(r"\tINFO job_manager\.py:\d+ -- Runtime env is setting up\.$")
BEGIN: Final = "Running entrypoint for job "


@dataclass
class Follower:
    """Writes the log of one job; `write` gets only what the job itself printed."""

    cluster: Cluster
    job_id: str
    write: Callable[[str], object]
    _seen: int = 0  # characters taken
    _part: str = ""  # of a line, while the line could be one of Ray's
    _begun: bool = False

    def until_end(self) -> Job:
        """Follow; the job when it is over.

        Raises `Gone` where the cluster lost it, `InputError` where it does not answer any more.
        """
        answered = time.monotonic()
        while True:
            try:
                job = self.cluster.job(self.job_id)
                answered = time.monotonic()
                if job.over:
                    self.so_far()
                    return job
                asyncio.run(self._tail())
            except Gone:
                raise
            except InputError:
                if time.monotonic() - answered > OUTAGE_SECONDS:
                    raise
                time.sleep(LOOK_SECONDS)

    def so_far(self) -> None:
        """Write what there is and was not written yet."""
        with self.cluster.asking() as client:
            try:
                text = client.get_job_logs(self.job_id)
            except RuntimeError:  # the host that has it is gone
                return
        self._take(text[self._seen :])
        self._flush()

    async def _tail(self) -> None:
        """Take the log from its beginning, until the job is over or the connection is not."""
        import aiohttp

        tail = self.cluster.client.tail_job_logs(self.job_id)
        passed, heard = 0, time.monotonic()
        coming: asyncio.Future[str] | None = None
        try:
            while time.monotonic() - heard < QUIET_SECONDS:
                coming = coming or asyncio.ensure_future(anext(tail))
                if not (await asyncio.wait({coming}, timeout=LOOK_SECONDS))[0]:
                    if self.cluster.job(self.job_id).over:
                        return
                    continue
                text, coming = coming.result(), None
                passed, heard = passed + len(text), time.monotonic()
                self._take(text[len(text) - max(0, passed - self._seen) :])
        except (StopAsyncIteration, RuntimeError, OSError, aiohttp.ClientError):
            await asyncio.sleep(LOOK_SECONDS)
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait({coming})
            await tail.aclose()

    def _take(self, text: str) -> None:
        """Write lines of the job; after Ray's own two there are no others of Ray's."""
        self._seen += len(text)
        if self._begun:
            self.write(text)
            return
        *lines, self._part = (self._part + text).splitlines(keepends=True) or [""]
        if self._part.endswith("\n"):
            lines, self._part = [*lines, self._part], ""
        for line in lines:
            if line.startswith(f"{BEGIN}{self.job_id}:"):
                self._begun = True
            elif not SETTING_UP.search(line):
                self.write(line)
        if self._begun:
            self._flush()

    def _flush(self) -> None:
        """Write the part of a line that was kept back."""
        if self._part:
            self.write(self._part)
            self._part = ""


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
