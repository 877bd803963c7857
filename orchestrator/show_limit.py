"""What people are told of `--max-gpu-hours`: before a run that is predicted to need more, and after
one that was stopped by it. Leaves out the counting (`cost_limit.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from grids.paths import Store
from orchestrator.cost import of_plan
from orchestrator.cost_place import Place, place
from orchestrator.ledger import DONE
from orchestrator.plan import Plan
from orchestrator.queue import Queue
from orchestrator.show import counted
from orchestrator.show_cost import number, unit

if TYPE_CHECKING:
    from orchestrator.driver import Settings


def show_limit(plan: Plan, store: Store, settings: Settings, out: Console) -> None:
    """Say it where the plan is predicted to take more."""
    if settings.max_gpu_hours is None or not plan.todo:
        return
    where = Place(settings.slots) if settings.address else place(settings.slots, None, None)
    priced = of_plan(plan, store, where)
    value, low, high, n = priced.hours
    if value <= settings.max_gpu_hours:
        return
    basis = f"n = {n} finished runs" if n else "assumed: no finished run of this study, n = 0"
    told = (
        f"predicted: {number(value)} {unit(priced)}-hours ({number(low)} to {number(high)}; "
        f"{basis}), more than --max-gpu-hours {settings.max_gpu_hours:g}: cells save and leave "
        "when it is reached"
    )
    out.print(Text(told, style="yellow"), soft_wrap=True)


def show_spent(queue: Queue, limit: float | None, out: Console) -> None:
    """What the run came to when its GPU-hours were spent."""
    done = sum(item.state in DONE for item in queue.items)
    left = len(queue.items) - done
    told = (
        f"stopped at {number(queue.spent or 0.0)} GPU-hours (--max-gpu-hours {limit or 0.0:g}): "
        f"{counted(done, 'cell')} done, {left:,} left; run again to go on"
    )
    out.print(Text(told), soft_wrap=True)
