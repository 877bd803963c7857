"""A local Ray, or one that is named, and the Tune run over the cells that are left.

Ray on this machine listens on loopback alone and takes only calls that know a token of this run.
Tune places the cells; it keeps no state that a later run would read.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grids.errors import InputError
from grids.paths import Store
from orchestrator.ledger import DONE, FAILED, state_of
from orchestrator.marks import redacted
from orchestrator.plan import Work
from orchestrator.prepare import Runs
from orchestrator.progress import Progress
from orchestrator.tracking import PATIENCE

if TYPE_CHECKING:
    from orchestrator.driver import Settings

# A cell whose worker died gets another this often, after all others, before it counts as failed.
MORE_PASSES = 2
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


def train(
    works: Sequence[Work], runs: Runs, store: Store, settings: Settings, progress: Progress
) -> str | None:
    """Train the cells in their order. Why Ray ended before its time, or None."""
    gpus = _start(settings)
    slots = settings.slots or _slots(works, gpus)
    left = list(works)
    with tempfile.TemporaryDirectory(prefix="banditgrid-", dir=_scratch(store, settings)) as folder:
        for number in range(1 + MORE_PASSES):
            tuner = _tuner(left, runs, store, slots, gpus, f"{folder}/{number}", progress)
            try:
                tuner.fit()
            except Exception as error:  # the cells' own errors never come here
                return redacted(f"{type(error).__name__}: {error}").splitlines()[0]
            left = [work for work in left if _open(work, store)]
            if not left:
                break
    return None


def _open(work: Work, store: Store) -> bool:
    """Neither done nor failed: its worker died."""
    state = state_of(work.paths(store), work.cell.rounds, work.cell.eval_key)
    return state not in (*DONE, FAILED)


def check(address: str | None) -> None:
    """Raise `InputError` where nothing listens at a cluster's address: Ray itself waits minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # this machine, or `auto`, which Ray answers at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise InputError(_no_cluster(address, error)) from None


def _no_cluster(address: str | None, error: Exception) -> str:
    return (
        f"no Ray cluster answers at {address} ({error}); start it, correct --address, or leave "
        "--address out to run on this machine"
    )


def stop() -> None:
    """End the local Ray with all its processes, or leave the cluster."""
    import ray

    ray.shutdown()


def _start(settings: Settings) -> float:
    """Start Ray, or join the cluster at the address; answer its number of GPUs."""
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
    try:
        ray.init(
            address=settings.address or "local", logging_level=quiet,
            log_to_driver=settings.verbose, **(own if local else {}),
        )  # fmt: skip
    except ConnectionError as error:
        raise InputError(_no_cluster(settings.address, error)) from None
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(quiet)
    return float(ray.cluster_resources().get("GPU", 0))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _slots(works: Sequence[Work], gpus: float) -> int:
    """Cells at a time: as many as the GPUs hold, or one a core where there is none."""
    import ray

    if not gpus:
        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    return max(1, int(gpus / max(min(work.cell.gpus for work in works), 0.01)))


def _scratch(store: Store, settings: Settings) -> str | None:
    """Tune wants a folder that all its machines see."""
    return None if settings.address is None else str(store.root.resolve())


def _tuner(
    works: Sequence[Work], runs: Runs, store: Store, slots: int, gpus: float, folder: str,
    progress: Progress,
) -> Any:  # fmt: skip
    from ray import tune

    from orchestrator.trainable import CellTrial

    tasks = [_task(work, runs, store) for work in works]
    shares = {work.cell.key: work.cell.gpus for work in works}
    trial = tune.with_parameters(CellTrial, uri=runs.uri, env=worker_env(gpus))
    sized = tune.with_resources(
        trial, lambda config: _resources(shares[config["task"]["key"]] if gpus else 0)
    )
    return tune.Tuner(
        sized,
        param_space={"task": tune.grid_search(tasks)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=slots, reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="cells", storage_path=folder, verbose=0,
            callbacks=[_watcher(works, runs, progress)],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )  # fmt: skip


def _resources(gpus: float) -> Any:
    from ray import tune

    return tune.PlacementGroupFactory([{"CPU": 1, **({"GPU": gpus} if gpus else {})}])


def _task(work: Work, runs: Runs, store: Store) -> dict[str, Any]:
    paths = work.paths(store)
    return {
        "study": work.study,
        "key": work.cell.key,
        "cell": work.cell.model_dump_json(),
        "directory": str(paths.directory.resolve()),
        "shared": str(store.study(work.study).shared.resolve()),
        "run_id": runs.id(work),
        "grids": list(work.grids),
        "attempts": runs.attempts(work) + 1,
    }


def worker_env(gpus: float) -> dict[str, str]:
    """What a worker's libraries must find in their environment before they are imported."""
    env = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        **PATIENCE,
    }
    if not gpus:
        env["OMP_NUM_THREADS"] = "1"  # cells share the cores; a person's own setting wins
    kept = {k: v for k, v in os.environ.items() if k in env or k.startswith("MLFLOW_TRACKING_")}
    return {**env, **kept}


def _watcher(works: Sequence[Work], runs: Runs, progress: Progress) -> Any:
    from ray.tune import Callback

    by_key = {(work.study, work.cell.key): work for work in works}

    class Watcher(Callback):
        """Tells the driver which cells have a worker. A copy, as Tune pickles it, does nothing."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            where = _where(trial)
            runs.begin(by_key[where])
            progress.start(*where)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            progress.finish(*_where(trial), result["status"], result["reason"])

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            progress.lose(*_where(trial))

        def __deepcopy__(self, memo: Any) -> Watcher:
            return self

        def __reduce__(self) -> Any:
            return (Callback, ())

    return Watcher()


def _where(trial: Any) -> tuple[str, str]:
    task = trial.config["task"]
    return task["study"], task["key"]
