"""A command of this program, run on a cluster, for a store that only its nodes see.

It runs as a short job with the package of a job of the study, so that the code which reads the
store is the code that writes it. Leaves out which commands (`cli_cluster.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.following import Follower, exit_code, why
from orchestrator.jobs import ASKED, KIND, Cluster, Job
from orchestrator.shipping import Shipped, command, packed


def ask(
    cluster: Cluster, arguments: Sequence[str], write: Callable[[str], object],
    job: Job | None = None, shipped: Sequence[Shipped] = (),
) -> int:  # fmt: skip
    """Run a command on the cluster, writing what it prints; its exit code.

    Args:
        cluster: where.
        arguments: the command and its arguments.
        write: takes its output as it comes, standard error too.
        job: whose package to use; this machine's own code where the cluster has it no more.
        shipped: grids that the command reads; the package is this machine's own then.
    """
    if not shipped and job is not None and cluster.has(job.package):
        return _ask(cluster, arguments, write, str(job.package))
    with packed(shipped) as parcel:
        return _ask(cluster, arguments, write, str(parcel.folder))


def _ask(
    cluster: Cluster, arguments: Sequence[str], write: Callable[[str], object], package: str
) -> int:
    job_id = cluster.start(None, command(*arguments), package, {KIND: ASKED})
    assert job_id is not None  # Ray chose it
    ended = None
    try:
        ended = Follower(cluster, job_id, write).until_end()
    finally:
        if ended is None:  # interrupted: nobody reads what it prints
            cluster.stop(job_id)
    cluster.sweep()
    if told := why(ended):
        write(f"{told}\n")
    return exit_code(ended)
