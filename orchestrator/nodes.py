"""What must be true of a cluster's nodes before cells go to them: they see one store.

Leaves out their GPUs (`packing.py`).
"""

from __future__ import annotations

import time
from pathlib import Path

from grids.errors import InputError
from grids.paths import Store, read_mark

# A node that does not answer in this time is left to Ray, which knows whether it is alive.
ANSWER_SECONDS = 60.0
CLOCKS_APART_SECONDS = 30.0


def check_store(store: Store) -> None:
    """Raise `InputError` naming the nodes that do not see the store, or cannot write there.

    Clocks that differ are told: nothing but the times that people read depends on them.
    """
    identity = (read_mark(store.identity) or {}).get("id", "")
    told = _ask_nodes(str(store.root.resolve()), identity)
    if blind := {host: why for host, why, _ in told if why}:
        listed = "; ".join(f"{host}: {why}" for host, why in sorted(blind.items()))
        raise InputError(
            f"not every node of the cluster can use the store {store.root.resolve()} ({listed}); "
            "share one folder between all nodes, under one path, and name it with --store"
        )
    for host, _, apart in told:
        if abs(apart) > CLOCKS_APART_SECONDS:
            print(
                f"the clock of {host} differs from the driver's by {apart:.0f} s: times in logs "
                "do; leases of cells do not depend on clocks",
                flush=True,
            )


def _ask_nodes(root: str, identity: str) -> list[tuple[str, str, float]]:
    """Of each node that answers: its name, what is wrong, its clock minus ours in seconds."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = [
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(root, identity)
        for node in ray.nodes()
        if node["Alive"]
    ]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
    found = []
    for answer in ready:
        try:
            host, why, clock = ray.get(answer)
        except ray.exceptions.RayError:
            continue  # the node left meanwhile
        found.append((host, why, clock - time.time()))
    return found


def _look(root: str, identity: str) -> tuple[str, str, float]:
    """Runs on a node."""
    import socket
    import uuid

    folder, why = Path(root), ""
    try:
        if not folder.is_dir():
            why = "no such folder"
        elif (read_mark(Store(folder).identity) or {}).get("id") != identity:
            why = "another folder of that name"
        else:
            probe = folder / f".probe.{uuid.uuid4().hex[:12]}"
            probe.write_text("", encoding="utf-8")
            probe.unlink()
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
    return socket.gethostname(), why, time.time()
