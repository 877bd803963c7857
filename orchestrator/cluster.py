"""A local Ray, or one that is named, and the Tune run over the cells that are left.

Ray on this machine listens on loopback alone and takes only calls that know a token of this run; a
cluster must be told its own. Tune places the cells that the queue hands out; it keeps no state that
a later run would read. Leaves out what is checked of a cluster's nodes (`nodes.py`) and how many
cells they hold (`capacity.py`).
"""

from __future__ import annotations

import io
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grids.cell import Cell
from grids.errors import InputError
from grids.paths import Store, read_mark
from orchestrator import capacity, nodes, packing, tokens
from orchestrator.cost_limit import Limit
from orchestrator.keeping import Kept
from orchestrator.marks import redacted
from orchestrator.plan import Work
from orchestrator.progress import Progress
from orchestrator.queue import Item, Queue
from orchestrator.tracking import PATIENCE

if TYPE_CHECKING:
    from orchestrator.driver import Settings

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables come even when it is asked to be silent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of local copies stay valid in the workers
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the driver's
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Despite its name it has Ray use the loopback address on any system.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
OBJECT_STORE_BYTES = 100 * 2**20  # nothing but a few settings travels through it


@dataclass(frozen=True)
class Tracking:
    """Where the runs of a plan's studies are."""

    uri: str
    experiments: dict[str, str]  # study -> MLflow's id


def train(
    works: Sequence[Work], tracking: Tracking, store: Store, settings: Settings,
    progress: Progress, keep: Callable[[Queue], None], kept: Kept | None = None,
) -> str | None:  # fmt: skip
    """Train the cells. Why Ray ended before its time, or None.

    `keep` gets the queue before the first cell does: it tells what became of each, whatever happens
    to Ray. `kept` says where the workers find plug-ins.
    """
    start(settings)
    if settings.address is not None:
        nodes.check_store(store)
    shares = capacity.shares([work.cell for work in works], settings)
    slots = capacity.slots(settings, shares)
    queue = Queue(works, store, progress, slots, settings.attempts)
    keep(queue)
    # Tune would ask the searcher for the next cell only when the last one's worker has started.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots())
    with tempfile.TemporaryDirectory(prefix="banditgrid-") as folder:
        limit = _limit(settings, shares)
        tuner = _tuner(queue, tracking, store, shares, folder, kept or Kept({}), limit)
        try:
            tuner.fit()
        except Exception as error:  # the cells' own errors never come here
            return redacted(f"{type(error).__name__}: {error}").splitlines()[0]
    return None


def check(address: str | None) -> None:
    """Raise `InputError` where nothing listens at a cluster's address: Ray itself waits minutes.
    Or where there is no token for it."""
    if address is None:
        return
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"--address: {redacted(address)} is the address of a dashboard, to which `banditgrid "
            "submit` sends; `run` joins the cluster itself: give host:port of its head"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise InputError(
            f"--address: got {redacted(address)!r}; expected host:port of the cluster's head, as "
            "in HEAD:6379, or `auto` on one of its nodes"
        )
    tokens.require_token(address)
    if address == "auto":
        return  # Ray answers it at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise InputError(_no_cluster(address, error)) from None


def _no_cluster(address: str | None, error: object) -> str:
    return (
        f"no Ray cluster answers at {address} ({error}); start it, correct --address, or leave "
        "--address out to run on this machine"
    )


def stop() -> None:
    """End the local Ray with all its processes, or leave the cluster."""
    import ray

    ray.shutdown()


def start(settings: Settings) -> None:
    """Start Ray, or join the cluster at the address.

    Raises `InputError` where the cluster does not let us in.
    """
    local = settings.address is None
    for name, value in {**QUIET, **(LOOPBACK if local else {})}.items():
        os.environ.setdefault(name, value)
    if local and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    quiet = logging.INFO if settings.verbose else logging.CRITICAL  # what matters, we say
    own: dict[str, Any] = {
        "num_cpus": settings.slots or cores(),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    said = io.StringIO()
    try:
        with aside(said):
            ray.init(
                address=settings.address or "local", logging_level=quiet,
                log_to_driver=settings.verbose, **(own if local else {}),
            )  # fmt: skip
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        told = f"{redacted(error)}\n{redacted(said.getvalue())}"
        raise InputError(_not_let_in(settings.address, told.strip())) from None
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(quiet)


@contextmanager
def aside(said: io.StringIO) -> Iterator[None]:
    """Within it, what native code writes to standard error goes to `said` and not to people."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.write(file.read().decode(errors="replace"))


def _not_let_in(address: str | None, told: str) -> str:
    """What Ray's many words come to."""
    if "Version mismatch" in told:
        return (
            f"the cluster at {address} runs other versions than this client: "
            f"{' '.join(told.split())}; install the cluster's Ray and Python here, or use "
            "`banditgrid submit`, whose job runs with the cluster's own"
        )
    if "InvalidAuthToken" in told or "Unauthenticated" in told:
        return (
            f"the cluster at {address} does not take the token from {tokens.source()}; give the "
            "one that it was started with"
        )
    return _no_cluster(address, told.partition("\n")[0])


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limit(settings: Settings, shares: dict[str, float] | None) -> Limit | None:
    """What ends the run when so many GPU-hours are spent; a slot without a GPU counts as one."""
    if settings.max_gpu_hours is None:
        return None
    return Limit(settings.max_gpu_hours, lambda where: shares[where[1]] if shares else 1.0)


def _tuner(
    queue: Queue, tracking: Tracking, store: Store, shares: packing.Shares | None, folder: str,
    kept: Kept, limit: Limit | None = None,
) -> Any:  # fmt: skip
    from ray import tune

    from orchestrator.search import Cells, Watcher
    from orchestrator.trainable import CellTrial

    identity = (read_mark(store.identity) or {}).get("id", "")

    def task(item: Item) -> dict[str, Any]:
        share = None if shares is None else shares.of(item.work.cell)
        cell = kept.cell(item.work.study, _cell(item))
        return _task(item, cell, tracking, store, identity, share)

    env = worker_env(shares is not None)
    trial = tune.with_parameters(CellTrial, uri=tracking.uri, env=env)
    sized = tune.with_resources(trial, lambda config: _resources(config["task"]))
    return tune.Tuner(
        sized,
        tune_config=tune.TuneConfig(
            search_alg=Cells(queue, task), num_samples=-1, reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="cells", storage_path=folder, verbose=0, callbacks=[Watcher(queue, limit)],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )  # fmt: skip


def _resources(task: Mapping[str, Any]) -> Any:
    """What a cell takes: of GPUs its share; where there are none, a core for each process."""
    from ray import tune

    if task["gpus"]:
        return tune.PlacementGroupFactory([{"CPU": 1, "GPU": task["gpus"]}])
    processes = Cell.model_validate_json(task["cell"]).processes
    return tune.PlacementGroupFactory([{"CPU": processes}])


def _task(
    item: Item, cell: Cell, tracking: Tracking, store: Store, identity: str, share: float | None
) -> dict[str, Any]:
    work = item.work
    return {
        "study": work.study,
        "key": work.cell.key,
        "cell": cell.model_dump_json(),
        "store": str(store.root.resolve()),
        "store_id": identity,
        "experiment": tracking.experiments[work.study],
        "grids": list(work.grids),
        "gpus": share,
        "stale": item.stale,
        "halved": item.halved,
    }


def _cell(item: Item) -> Cell:
    """The cell, in smaller passes where memory ran out: they change no result."""
    from workers import memory

    return (memory.halved(item.work.cell) if item.halved else None) or item.work.cell


def worker_env(on_gpus: bool) -> dict[str, str]:
    """What a worker's libraries must find in their environment before they are imported."""
    env = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        **PATIENCE,
    }
    if not on_gpus:
        env["OMP_NUM_THREADS"] = "1"  # cells share the cores; a person's own setting wins
    taken = ("MLFLOW_TRACKING_", "BANDITGRID_")
    kept = {k: v for k, v in os.environ.items() if k in env or k.startswith(taken)}
    return {**env, **kept}
