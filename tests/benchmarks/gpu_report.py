"""The report of a GPU check: what the files of its cells tell, as JSON and as Markdown.

Every figure is read from what workers left (journals, timings, attempts, marks) and comes with its
interval and n; what is not known is None. Leaves out what is run (`gpu_check.py`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from analysis.intervals import Estimate, mean_t, wilson
from grids import outcome
from grids.cell import Cell
from grids.paths import CellPaths, DamagedError, StudyPaths, read_lines, read_mark
from orchestrator.attempts import attempts
from orchestrator.ledger import DONE, standing
from tests.benchmarks.told import outside_work

Told = dict[str, Any]

# First rounds, which warm up: not counted in seconds and tokens, where there are enough others.
WARM_UP, ENOUGH = 3, 10
EVALUATE = "evaluate"


# ---- one cell


def of_cell(cell: Cell, paths: CellPaths) -> Told:
    """Where a cell stands and, as far as its files tell, its curve, seconds, tokens and memory."""
    found = standing(paths, cell.rounds, cell.eval_key)
    told: Told = {
        "label": cell.label, "key": cell.key, "rounds": found.round, "of_rounds": cell.rounds,
        "state": found.state, "reason": found.reason, "engine": cell.engine,
    }  # fmt: skip
    try:
        return told | _measured(cell, paths)
    except DamagedError as error:
        return told | {"state": outcome.DAMAGED, "reason": str(error)}


def _measured(cell: Cell, paths: CellPaths) -> Told:
    journal, timings = read_lines(paths.journal), read_lines(paths.timings)
    told: Told = {"curve": curve(journal, _questions(cell)), "gap": gap(journal)}
    made = attempts(paths)
    told |= {"speed": speed(journal, timings), "memory": memory(made)}
    told["lost"] = [f"{x['how']}: {x['reason']}" for x in made if x["how"] not in DONE]
    made_by = read_mark(paths.provenance) or {}
    return told | {name: made_by.get(name) for name in ("device", "versions", "python", "commit")}


def _questions(cell: Cell) -> int | None:
    """Of the test set; None where the catalogue does not tell."""
    rows = cell.dataset_spec.test_rows
    asked = cell.eval.test_questions
    return rows if asked is None else min(asked, rows or asked)


def curve(journal: Sequence[Told], questions: int | None) -> list[Told]:
    """Greedy test Pass@1 by round, with Wilson's interval over the questions that were scored."""
    points = []
    for line in journal:
        scored = round((questions or 0) * (1 - line.get(outcome.TEST_UNSCORED, 0.0)))
        if scored and outcome.TEST_PASS in line:
            share = wilson(round(line[outcome.TEST_PASS] * scored), scored)
            points.append({"round": line["round"], **numbers(share)})
    return points


def gap(journal: Iterable[Told]) -> Told | None:
    """Between the engine's log-probabilities and the trainer's: mean over rounds, and the most."""
    lines = [x for x in journal if math.isfinite(x.get(outcome.ENGINE_GAP, math.nan))]
    if not lines:
        return None
    largest = max(line[outcome.ENGINE_GAP_MAX] for line in lines)
    return numbers(mean_t(line[outcome.ENGINE_GAP] for line in lines)) | {"largest": largest}


def speed(journal: Sequence[Told], timings: Sequence[Told]) -> Told:
    """Seconds of a round by phase, rounds a minute and tokens a second; evaluation stands apart."""
    skipped = WARM_UP if len(timings) >= ENOUGH else 0
    tokens = {line["round"]: line.get(outcome.GENERATED_TOKENS) for line in journal}
    scored = {line["round"] for line in journal if outcome.TEST_PASS in line}
    rounds = [(line["seconds"], tokens.get(line["round"])) for line in timings[skipped:]]
    if not rounds:
        return {}
    names = sorted({name for seconds, _ in rounds for name in seconds} - {EVALUATE}, key=_order)
    phases = {name: numbers(mean_t(s.get(name, 0.0) for s, _ in rounds)) for name in names}
    if spent := [x["seconds"].get(EVALUATE, 0.0) for x in timings if x["round"] in scored]:
        phases[EVALUATE] = numbers(mean_t(spent))
    told: Told = {"skipped_rounds": skipped, "seconds": phases}
    told["outside_work"] = numbers(mean_t(outside_work([s]) for s, _ in rounds))
    told["rounds_a_minute"] = _inverted(mean_t(s["all"] for s, _ in rounds), 60.0)
    for name, phase in (("generating", "generate"), ("whole_round", "all")):
        rates = [t / s[phase] for s, t in rounds if t is not None and s.get(phase)]
        told[f"tokens_a_second_{name}"] = numbers(mean_t(rates)) if rates else None
    told["tokens_a_round"] = numbers(mean_t(t for _, t in rounds if t is not None))
    return told


def _order(phase: str) -> tuple[bool, str]:
    return phase == "all", phase


def _inverted(seconds: Estimate, unit: float) -> Told:
    """How often a thing of so many seconds happens in `unit`; a bound of no time is none."""
    low, high = (unit / x if x > 0 else math.nan for x in (seconds.high, seconds.low))
    return _plain({"value": unit / seconds.value, "low": low, "high": high, "n": seconds.n})


def memory(lines: Sequence[Told]) -> Told:
    """Of a cell's attempts: the share of a GPU that it was given, and the most that it took."""
    names = ("gpus", "peak_gpu_bytes", "peak_rss_bytes")
    return {n: max((x[n] for x in lines if x.get(n) is not None), default=None) for n in names}


# ---- several trials on one GPU


def side_by_side(together: StudyPaths, alone: StudyPaths, cells: Sequence[Cell]) -> Told:
    """Wall seconds of the same trials at once and one after the other, and what they gain.

    From the first worker's start to the last one's end, as their attempts tell; None where a trial
    did not end in one attempt. Measured once: a ratio without an interval.
    """
    walls = {name: wall(study, cells) for name, study in (("at_once", together), ("after", alone))}
    told: Told = {"trials": len(cells), "rounds": cells[0].rounds, "n": 1, **walls}
    both = walls["at_once"] and walls["after"]
    told["ratio"] = walls["after"] / walls["at_once"] if both else None  # type: ignore[operator]
    taken = [memory(attempts(together.cell(cell.key))) for cell in cells]
    return told | {"memory": taken}


def wall(study: StudyPaths, cells: Sequence[Cell]) -> float | None:
    """Seconds from the first attempt's start to the last one's end; None where one was no whole
    training."""
    began, ended = [], []
    for cell in cells:
        paths = study.cell(cell.key)
        lines = attempts(paths)
        if len(lines) != 1 or standing(paths, cell.rounds, cell.eval_key).state not in DONE:
            return None
        began.append(datetime.fromisoformat(lines[0]["began"]))
        ended.append(datetime.fromisoformat(lines[0]["ended"]))
    return max(1.0, (max(ended) - min(began)).total_seconds())  # they are told to the second


# ---- numbers


def numbers(estimate: Estimate) -> Told:
    """An estimate as JSON has it: missing is null."""
    return _plain({name: getattr(estimate, name) for name in ("value", "low", "high", "n")})


def _plain(found: Told) -> Told:
    return {k: None if isinstance(x, float) and math.isnan(x) else x for k, x in found.items()}


def peak_of(path: Path) -> Told | None:
    """nvidia-smi's view in a file of its lines (memory in MiB, use in percent); None without.

    Either may be `[N/A]` while the other is known.
    """
    if not path.exists():
        return None
    lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    seen = [line for line in lines if len(line) == 2]
    taken, used = ([int(x[i]) for x in seen if x[i].strip().isdigit()] for i in (0, 1))
    if not taken and not used:
        return None
    return {
        "peak_bytes": max(taken) * 2**20 if taken else None, "n": len(taken),
        "mean_use": statistics.mean(used) if used else None, "use_n": len(used),
    }  # fmt: skip
