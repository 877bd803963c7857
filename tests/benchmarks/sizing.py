"""The tables of docs/sizing.md, from `banditgrid plan --json` over the paper's grids.

`python -m tests.benchmarks.sizing [--gpus N] [--gpu GB=PRICE]... [--write]` prints them, or writes
them into the page. Nothing is measured: they are what `plan` predicts for a study without runs.
Prices are examples that whoever runs this sets. Leaves out what `plan` leaves out.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grids import load_grid
from grids.cell import Cell
from grids.errors import InputError
from orchestrator import packing
from orchestrator.plan import disk_bytes
from tests.conftest import ROOT
from workers.footprint import predicted_bytes

PAGE = ROOT / "docs" / "sizing.md"
BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"
COMMAND = Path(sys.executable).parent / "banditgrid"
SECTIONS = sorted((ROOT / "grids" / "paper").glob("*.yaml"))
MODELS = ("qwen2.5-0.5b-instruct", "olmo-2-1b-instruct", "llama-3.2-1b-instruct")
GPUS = 8
# Memory of a GPU, GB -> an example of what an hour of it costs.
PRICES = {24: 0.5, 48: 1.0, 80: 2.0}


class Gpu(NamedTuple):
    """A kind of GPU, and an example of its price an hour."""

    gigabytes: int
    price: float


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The tables of docs/sizing.md.")
    parser.add_argument("--gpus", type=int, default=GPUS, help="of each kind")
    parser.add_argument("--gpu", action="append", metavar="GB=PRICE", help="memory, price an hour")
    parser.add_argument("--write", action="store_true", help="into docs/sizing.md")
    asked = parser.parse_args(words)
    gpus = [Gpu(int(gb), float(price)) for gb, price in (g.split("=") for g in asked.gpu or ())]
    made = tables(asked.gpus, gpus or [Gpu(*pair) for pair in PRICES.items()])
    if asked.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        print("\n\n".join(made.values()))


def tables(count: int, gpus: Sequence[Gpu]) -> dict[str, str]:
    """The tables by name."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [_cost(Path(folder), model, count, gpu) for model in MODELS for gpu in gpus]
    head = (
        "model", f"{count} GPUs of", "cells at a time", "GPU-hours", "until the end",
        "price an hour", "money",
    )  # fmt: skip
    return {"cost": _table(head, rows), "memory": memory_table()}


def filled(page: str, made: dict[str, str]) -> str:
    """The page with these tables in place of those between its marks."""
    for name, table in made.items():
        before, rest = page.split(BEGIN.format(name))
        _, after = rest.split(END.format(name))
        page = f"{before}{BEGIN.format(name)}\n\n{table}\n\n{END.format(name)}{after}"
    return page


# ---- cost


def _cost(folder: Path, model: str, count: int, gpu: Gpu) -> tuple[str, ...]:
    """What `plan` says of all the paper's grids for one model on some GPUs, as a row.

    Of cells that take several GPUs nothing is told: `plan` knows no gain of speed by them.
    """
    if wanting := _wanting(_cell(model), gpu):
        return (model, f"{gpu.gigabytes} GB", wanting, "", "", f"{gpu.price:g}", "")
    grids = list(_of_one_model(folder / f"{model}-{gpu.gigabytes}", model))
    place = ["--gpus", count, "--gpu-memory", gpu.gigabytes, "--price", gpu.price]
    command = [COMMAND, "plan", *grids, *place, "--store", folder / "none", "--json"]
    made = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True
    )
    cost: dict[str, Any] = json.loads(made.stdout)["cost"]
    return (
        model, f"{gpu.gigabytes} GB", str(cost["place"]["cells_at_once"]),
        _between(cost["gpu_hours"], 1), _between(cost["makespan_seconds"], 86400, " days"),
        f"{gpu.price:g}", _between(cost["money_for_all_until_the_end"], 1),
    )  # fmt: skip


def _wanting(cell: Cell, gpu: Gpu) -> str:
    """What `run` says that a cell needs where one such GPU does not hold it; else nothing."""
    memory = int(gpu.gigabytes * 1e9)
    try:
        packing.shares([cell], packing.Gpus(memory, memory))
    except InputError as error:
        found = re.search(
            r"give (`gpus: \d+`(?: and gradient_checkpointing)?) to spread", str(error)
        )
        return f"too small; {found[1]}" if found else "too small"
    return ""


def _of_one_model(folder: Path, model: str) -> Iterable[Path]:
    """The paper's grids for one model alone."""
    folder.mkdir()
    for path in SECTIONS:
        made = folder / path.name
        text = {"name": path.stem, "extends": str(path), "axes": {"model": [model]}}
        made.write_text(json.dumps(text), encoding="utf-8")
        yield made


def _between(estimate: dict[str, float], unit: float, name: str = "") -> str:
    value, low, high = (_round(estimate[key] / unit) for key in ("value", "low", "high"))
    return f"{value}{name} ({low} to {high})"


def _round(value: float) -> str:
    """Two digits: the rest is not known."""
    return f"{float(f'{value:.2g}'):,g}" if value < 100 else f"{float(f'{value:.2g}'):,.0f}"


# ---- memory


def memory_table() -> str:
    """What a cell of each model is predicted to hold of a GPU, at the paper's settings."""
    rows = []
    for cell in map(_cell, MODELS):
        made = predicted_bytes(cell)
        held = made.weights + made.optimizer + made.reference
        parts = (held, made.engine, made.gradients + made.activations, made.generation, made.peak)
        rows.append((cell.model, *map(_gb, parts), _gb(disk_bytes(cell))))
    head = (
        "model", "weights, moments, reference", "vLLM", "an update", "scoring", "most at once",
        "on disk",
    )  # fmt: skip
    return _table(head, rows)


def _cell(model: str) -> Cell:
    """A cell of a model as the paper's grids have it: its memory does not depend on the shape, for
    passes are bounded."""
    (path,) = (path for path in SECTIONS if path.stem == "minimalist")
    return next(cell for cell in load_grid(path).cells() if cell.model == model)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
