"""A GPU check's report as Markdown.

Leaves out where the figures come from (`gpu_report.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis.markdown import aligned
from orchestrator.ledger import DONE
from tests.benchmarks.gpu_report import EVALUATE, Told
from tests.benchmarks.told import WORK

UNKNOWN = "—"
GAP = ".1e"
OUTSIDE = f"none of {', '.join(WORK)}"


def markdown(told: Told) -> str:
    """The whole report."""
    cells = [cell for part in told["parts"] for cell in part.get("cells", ())]
    learning = [cell for cell in cells if not cell["trial"]]
    parts = ["# GPU check", _environment(told), _parts(told["parts"])]
    if learning:
        parts += [_curves(learning), _speeds(learning), _phases(learning), _memory(told["parts"])]
    parts += [_together(told["side_by_side"])] if told["side_by_side"] else []
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(title: str, lead: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Nothing where it would have no row."""
    return f"## {title}\n\n{lead}\n\n{aligned(head, rows)}" if rows else ""


def _environment(told: Told) -> str:
    about = told["environment"]
    asked = ", ".join(f"{k} {v}" for k, v in told["asked"].items() if v not in (None, False))
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if v)
    lines = [
        f"- made: {told['made']}; asked: {asked}",
        f"- device: {about['device']}; {about['cores']} cores; {about['system']}",
        f"- versions: {versions}",
        *(f"- {note}" for note in told["notes"]),
    ]
    return "\n".join(lines)


def _parts(parts: Sequence[Told]) -> str:
    rows = []
    for part in parts:
        done = sum(cell["state"] in DONE for cell in part.get("cells", ()))
        state = "done" if part["ok"] else "failed"
        rows.append([part["about"], part["engine"], state, f"{done}/{len(part.get('cells', ()))}",
                     number(part["seconds"], ".0f"), _wrong(part)])  # fmt: skip
    head = ["part", "engine", "state", "cells done", "command's seconds", "what went wrong"]
    return "## What was run\n\n" + aligned(head, rows)


def _wrong(part: Told) -> str:
    """Why a part failed; of one that did not, the first attempt at a cell that was in vain."""
    lost = [reason for cell in part.get("cells", ()) for reason in cell.get("lost", ())]
    return part["reason"] or (f"an attempt: {lost[0]}" if lost else "")


def _curves(cells: Sequence[Told]) -> str:
    rows = [
        [name(cell), str(point["round"]), interval(point, ".3f"), str(point["n"])]
        for cell in cells for point in cell.get("curve", ())
    ]  # fmt: skip
    lead = "Greedy, on test questions; 95% Wilson intervals of this policy, n questions."
    head = ["cell", "round", "Pass@1", "n"]
    return _section("Pass@1 by round", lead, head, rows)


SPEEDS: dict[str, Callable[[Told], Told | None]] = {
    "rounds a minute": lambda cell: cell["speed"].get("rounds_a_minute"),
    "tokens/s, generating": lambda cell: cell["speed"].get("tokens_a_second_generating"),
    "tokens/s, whole round": lambda cell: cell["speed"].get("tokens_a_second_whole_round"),
    "tokens a round": lambda cell: cell["speed"].get("tokens_a_round"),
}


def _speeds(cells: Sequence[Told]) -> str:
    rows = []
    for cell in (cell for cell in cells if cell.get("speed")):
        found = [made(cell) for made in SPEEDS.values()]
        gap = cell["gap"]
        apart = UNKNOWN if gap is None else f"{interval(gap, GAP)}, at most {gap['largest']:{GAP}}"
        n = str(cell["speed"]["rounds_a_minute"]["n"])
        rows.append([name(cell), *(interval(x, ".1f") for x in found), apart, n])
    head = ["cell", *SPEEDS, "log p, engine against trainer", "n"]
    lead = (
        "Means over n rounds without evaluation, and their 95% t intervals; the distance of "
        "log-probabilities is of a token, in nats."
    )
    return _section("Speed", lead, head, rows)


def _phases(cells: Sequence[Told]) -> str:
    rows = []
    for cell in (cell for cell in cells if cell.get("speed")):
        seconds = cell["speed"]["seconds"]
        whole = seconds["all"]["value"]
        for phase, found in seconds.items():
            share = UNKNOWN if phase == EVALUATE else f"{found['value'] / whole:.1%}"
            rows.append([name(cell), phase, interval(found, ".3f"), share, str(found["n"])])
        outside = cell["speed"]["outside_work"]
        rows.append([name(cell), OUTSIDE, UNKNOWN, interval(outside, ".3f"), str(outside["n"])])
    lead = "Mean seconds of a round; `evaluate` is of rounds that are evaluated, and not in `all`."
    head = ["cell", "phase", "seconds", "share", "n"]
    return _section("Phases of a round", lead, head, rows)


def _memory(parts: Sequence[Told]) -> str:
    rows = [
        [part["about"], cell["label"], cell["engine"], *_taken(cell["memory"])]
        for part in parts for cell in part.get("cells", ()) if "memory" in cell
    ]  # fmt: skip
    seen = [
        [part["about"], "all of the GPU", part["engine"], UNKNOWN,
         gigabytes(part["smi"]["peak_bytes"]), UNKNOWN]
        for part in parts if part["smi"]
    ]  # fmt: skip
    head = ["part", "cell", "engine", "share given", "peak of the GPU", "peak of the host"]
    lead = (
        "Of a cell: what PyTorch's allocator took from the GPU, and its process of the host. "
        "Of all of the GPU: nvidia-smi's view, once a second."
    )
    return _section("Memory, GB", lead, head, rows + seen)


def _taken(found: Told) -> list[str]:
    share = UNKNOWN if found["gpus"] is None else f"{found['gpus']:.2f}"
    return [share, gigabytes(found["peak_gpu_bytes"]), gigabytes(found["peak_rss_bytes"])]


def _together(found: Sequence[Told]) -> str:
    rows = [
        [one["engine"], str(one["trials"]), str(one["rounds"]), number(one["at_once"], ".0f"),
         number(one["after"], ".0f"), number(one["ratio"], ".2f")]
        for one in found
    ]  # fmt: skip
    head = ["engine", "trials", "rounds each", "at once, s", "one after the other, s", "ratio"]
    lead = (
        "Wall seconds from the first worker's start to the last one's end, measured once (n=1). "
        "One after the other, one process serves all of them. A dash: a trial did not end, or not "
        "in one attempt."
    )
    return _section("Several trials on one GPU", lead, head, rows)


# ---- words


def interval(found: Told | None, form: str) -> str:
    """`0.667 [0.612, 0.721]`; a bound that is not known is a dash, and one value says `(n=1)`."""
    if found is None:
        return UNKNOWN
    value, low, high = (number(found[name], form) for name in ("value", "low", "high"))
    return f"{value} (n=1)" if found["n"] == 1 else f"{value} [{low}, {high}]"


def number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else f"{value:{form}}"


def gigabytes(count: float | None) -> str:
    return UNKNOWN if count is None else f"{count / 1e9:.2f}"


def name(cell: Told) -> str:
    return f"{cell['label']}, {cell['engine']}"
