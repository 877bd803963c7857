"""Workers that score kept weights: Ray actors, each with its share of a GPU, cell after cell.

An actor whose cell failed by no mistake of a person's makes way for a fresh one, for its libraries
may be half changed; a cell whose engine died is tried once more in that one. Leaves out which cells
there are and what people are told (`evaluating.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grids.cell import Cell
from grids.errors import InputError
from grids.paths import Store, read_mark
from orchestrator import cluster, nodes, packing
from orchestrator.driver import Settings
from orchestrator.evaluating import SCORED, Ended, Target
from orchestrator.marks import redacted
from workers.footprint import predicted_bytes

if TYPE_CHECKING:
    from ray.actor import ActorHandle

HELD, FAILED, BROKEN, DIED = "held by a worker", "failed", "broken", "engine died"


class Scorer:
    """Runs in a worker's process."""

    def __init__(self, env: dict[str, str], share: float | None) -> None:
        os.environ.update(env)  # before torch is imported
        self.share = share

    def score(self, task: dict[str, str]) -> tuple[str, str, dict[str, Any]]:
        """How it ended, a word about that, and the record where it ended well."""
        from workers import memory
        from workers.engine_check import EngineError
        from workers.lease import Held, Lost
        from workers.rescore import evaluate_cell

        memory.fence(self.share)
        cell, asked = (Cell.model_validate_json(task[name]) for name in ("cell", "asked"))
        # A store of this name that is another folder here would be written to nobody's use.
        if (read_mark(Store(Path(task["store"])).identity) or {}).get("id") != task["store_id"]:
            return FAILED, f"the worker's host does not see the store {task['store']}", {}
        folder = Path(task["folder"])
        try:
            record = evaluate_cell(cell, asked, task["name"], folder, Path(task["shared"]))
            return SCORED, "", record
        except Held as error:
            return HELD, str(error), {}
        except Lost as error:
            return HELD, f"{error}; a worker took the cell over", {}
        except EngineError as error:
            return DIED, redacted(error), {}
        except InputError as error:
            return FAILED, redacted(error), {}
        except Exception as error:
            return BROKEN, redacted(f"{type(error).__name__}: {error}"), {}


def scored(todo: Sequence[Target], name: str, store: Store, settings: Settings) -> Iterator[Ended]:
    """Score the targets, each told when it has ended. Ends Ray, or leaves the cluster."""
    cluster.check(settings.address)
    with _started(settings, store):
        share = _share(todo)
        pool = _Pool(_slots(settings, share), share)
        identity = (read_mark(store.identity) or {}).get("id", "")
        yield from _hand_out(list(_ordered(todo)), name, store, identity, pool)


@contextmanager
def _started(settings: Settings, store: Store) -> Iterator[None]:
    cluster.start(settings)
    try:
        if settings.address is not None:
            nodes.check_store(store)
        yield
    finally:
        cluster.stop()


def _ordered(todo: Sequence[Target]) -> list[Target]:
    """Cells of one base together: a worker keeps the last base model and its questions."""
    return sorted(todo, key=lambda t: (t.asked.model, t.asked.dataset, t.study, t.cell.label))


def _share(todo: Sequence[Target]) -> float | None:
    """Of a GPU, for a worker that scores any of the targets; None where there is no GPU."""
    import ray

    if not ray.cluster_resources().get("GPU"):
        return None
    gpus = packing.gpu_bytes()
    return max(_share_of(target.asked, gpus) for target in todo)


def _share_of(cell: Cell, gpus: packing.Gpus | None) -> float:
    """By the weights and what generation takes: there is no optimiser and no reference."""
    if cell.gpus is not None or gpus is None:
        return min(1.0, cell.gpus or 1.0)  # one process scores, whatever it took to train
    predicted = predicted_bytes(cell)
    held = predicted.weights + predicted.engine
    return packing.share(held + predicted.generation, gpus.smallest)


def _slots(settings: Settings, share: float | None) -> int:
    import ray

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = fitting(there, share)
    return max(1, min(settings.slots or fit, fit))


def fitting(nodes: Iterable[Mapping[str, float]], share: float | None) -> int:
    """Actors that nodes of these resources hold at a time. One more than fit would never start,
    and its cell would be waited for without an end."""
    if share is None:
        return sum(int(node.get("CPU", 0)) for node in nodes)
    on_one = int(1 / share + 1e-9)  # an actor lies on one GPU
    return sum(min(int(n.get("CPU", 0)), int(n.get("GPU", 0)) * on_one) for n in nodes)


class _Pool:
    """At most so many actors; a broken one is replaced."""

    def __init__(self, slots: int, share: float | None) -> None:
        import ray

        self.slots, self.share = slots, share
        self.idle: list[ActorHandle] = []
        self.there = 0
        made = ray.remote(num_cpus=1, num_gpus=share or 0, max_restarts=0)
        self.kind = made(Scorer)

    def take(self) -> ActorHandle | None:
        """An idle actor, or a new one; None where all are at work."""
        if not self.idle and self.there < self.slots:
            self.there += 1
            env = cluster.worker_env(self.share is not None)
            self.idle.append(self.kind.remote(env, self.share))
        return self.idle.pop() if self.idle else None

    def drop(self, actor: ActorHandle) -> None:
        import ray

        ray.kill(actor)
        self.there -= 1


def _hand_out(
    waiting: list[Target], name: str, store: Store, identity: str, pool: _Pool
) -> Iterator[Ended]:
    import ray

    busy: dict[Any, tuple[ActorHandle, Target]] = {}
    making: set[str] = set()  # bases that one of the busy scores for all
    again: list[Target] = []  # their engine has died once
    while waiting or busy:
        while (target := _next(waiting, making)) and (actor := pool.take()):
            waiting.remove(target)
            making.add(_base(target))
            busy[actor.score.remote(_task(target, name, store, identity))] = actor, target
        (ready, *_), _ = ray.wait(list(busy), num_returns=1)
        actor, target = busy.pop(ready)
        making.discard(_base(target))
        end = _ended(ready, target)
        if end.how in (BROKEN, DIED):
            pool.drop(actor)
        else:
            pool.idle.append(actor)
        if end.how == DIED and target not in again:
            again.append(target)
            waiting.append(target)
        else:
            yield end


def _next(waiting: list[Target], making: set[str]) -> Target | None:
    """The first whose base is there, or nobody scores."""
    return next((t for t in waiting if _has_base(t) or _base(t) not in making), None)


def _base(target: Target) -> str:
    return f"{target.study}/{target.asked.base_key}"


def _has_base(target: Target) -> bool:
    shared = target.paths.directory.parent.parent / "shared"
    return (shared / target.asked.base_key / "metrics.json").is_file()


def _task(target: Target, name: str, store: Store, identity: str) -> dict[str, str]:
    return {
        "cell": target.cell.model_dump_json(), "asked": target.asked.model_dump_json(),
        "name": name, "store": str(store.root.resolve()), "store_id": identity,
        "folder": str(target.paths.directory.resolve()),
        "shared": str(store.study(target.study).shared.resolve()),
    }  # fmt: skip


def _ended(ready: Any, target: Target) -> Ended:
    import ray

    try:
        how, told, record = ray.get(ready)
    except ray.exceptions.RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        last = lines[-1] if lines else type(error).__name__  # a traceback ends with the reason
        how, told, record = BROKEN, f"its worker died: {redacted(last.strip())}", {}
    return Ended(target, how, told, record)
