"""orchestrator.packing: fractions of a GPU from predicted memory, and what a cluster has."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from grids.cell import Cell
from grids.errors import InputError
from grids.grid import Grid
from orchestrator.cluster import _resources
from orchestrator.packing import (
    MARGIN,
    Gpus,
    check_cores,
    check_nodes,
    share,
    shares,
    visible_gpus,
)
from tests.conftest import ROOT
from workers.footprint import predicted_bytes
from workers.memory import CONTEXT_BYTES

H100 = Gpus(80 * 10**9, 80 * 10**9)
RAY = str(Path(sys.executable).with_name("ray"))


def paper(**settings: object) -> Cell:
    return Cell(**{"model": "qwen2.5-0.5b-instruct", "dataset": "gsm8k"} | settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("peak", "gpu", "fraction"),
    [
        (0, 80e9, 0.05),
        (10e9, 80e9, 0.20),  # 11.5 + 0.63 of 80 = 0.152
        (40e9, 80e9, 0.60),
        (69e9, 80e9, 1.0),
        (79e9, 80e9, 1.0),  # the margin is lost, and it is tried
    ],
)
def test_a_share_is_rounded_up_with_its_margin(peak: float, gpu: float, fraction: float) -> None:
    assert share(int(peak), int(gpu)) == fraction
    assert fraction == 1.0 or fraction * gpu >= peak * (1 + MARGIN) + CONTEXT_BYTES


def test_shares_are_whole_steps_so_that_twenty_fill_a_gpu() -> None:
    tiny = Cell(model="tiny-qwen2", dataset="tiny-sums")
    assert shares([tiny], H100) == {tiny.key: 0.05}
    assert all(share(n * 10**9, H100.smallest) * 20 % 1 == 0 for n in range(80))


def test_a_cells_own_share_goes_before_its_models_and_both_before_the_prediction() -> None:
    grid = Grid.model_validate(
        {
            "name": "g",
            "base": {"dataset": "tiny-sums", "batch": 8},
            "axes": {"model": ["half", "tiny-qwen2"]},
            "models": {
                "half": {"path": str(ROOT / "workers/embedded/models/tiny-qwen2"),
                         "defaults": {"gpus": 0.5, "micro_batch": 4}, "context": 2048},
            },
        }
    )  # fmt: skip
    half, predicted = grid.cells()
    assert shares([half, predicted], H100) == {half.key: 0.5, predicted.key: 0.05}
    own = half.model_copy(update={"gpus": 0.3})
    assert own.key == half.key and shares([own], H100) == {half.key: 0.3}


def test_where_no_gpu_tells_its_memory_a_cell_takes_one_whole() -> None:
    cells = [paper(), paper(seed=1, gpus=0.25)]
    assert list(shares(cells, None).values()) == [1.0, 0.25]


def test_a_cell_that_no_gpu_holds_is_told_with_what_to_lower() -> None:
    cells = [paper(model="llama-3.2-1b-instruct"), paper(model="llama-3.2-1b-instruct", seed=1)]
    with pytest.raises(InputError) as error:
        shares([paper(), *cells], Gpus(40 * 10**9, 40 * 10**9))
    told = str(error.value)
    assert "llama-3.2-1b-instruct gsm8k (32,1,0) raw s0 (and 1 more)" in told
    needed = (predicted_bytes(cells[0]).peak + CONTEXT_BYTES) / 1e9
    assert f"need {needed:.1f} GB" in told and "largest has 40.0 GB" in told
    assert all(name in told for name in ("rows_per_pass", "kl off", "gpus: 1"))
    assert "smallest" not in told and "\n" not in told
    tried = [cell.model_copy(update={"gpus": 1.0}) for cell in cells]
    assert set(shares(tried, Gpus(40 * 10**9, 40 * 10**9)).values()) == {1.0}


def test_a_cell_takes_as_many_gpus_as_it_asks_for_and_is_told_how_many_would_do() -> None:
    large = {"parameters": 7.6e9, "hub": "none/seven", "name": "seven", "revision": ""}
    spec = paper().model_spec.model_copy(update=large)
    settings = {"model_spec": spec, "precision": "fp32"}
    with pytest.raises(InputError, match="give `gpus: 4` and gradient_checkpointing to spread it"):
        shares([paper().model_copy(update=settings)], H100)
    cell = paper().model_copy(update=settings | {"gradient_checkpointing": True})
    with pytest.raises(InputError, match="give `gpus: 4` to spread it over GPUs of one node"):
        shares([cell], H100)
    spread = cell.model_copy(update={"gpus": 8.0})
    assert spread.key == cell.key and spread.processes == 8
    assert shares([spread], H100) == {cell.key: 8.0}
    alone, each = predicted_bytes(cell), predicted_bytes(spread)
    assert each.optimizer == alone.optimizer // 8 and each.gradients == alone.gradients // 8
    assert alone.weights // 8 <= each.weights < alone.weights
    # what is put together for a pass or to generate comes on top, of fewer rows
    assert 0 < each.generation - 4 * int(7.6e9) < alone.generation
    assert each.peak * (1 + MARGIN) + CONTEXT_BYTES <= H100.smallest < alone.peak


def test_more_gpus_than_a_node_has_are_refused_before_anything_starts() -> None:
    cells = [paper(), paper(seed=1, gpus=4), paper(seed=2, gpus=8)]
    check_nodes(cells, 8)
    with pytest.raises(InputError, match="s2 .and 1 more.: gpus: 8, but the largest node .* has 2"):
        check_nodes(cells, 2)
    check_nodes([paper(), paper(gpus=0.5)], 0)  # nodes come later


def test_without_a_gpu_each_process_takes_a_core() -> None:
    cells = [paper(), paper(seed=1, gpus=3)]
    check_cores(cells, 3)
    check_cores([paper(gpus=0.5)], 0)
    with pytest.raises(InputError, match="s1: gpus: 3, and without a GPU .* there are 2 on a node"):
        check_cores(cells, 2)
    asked = [
        _resources({"gpus": gpus, "cell": cells[1].model_dump_json()}).required_resources
        for gpus in (None, 3.0)
    ]
    assert asked == [{"CPU": 3}, {"CPU": 1, "GPU": 3}]


def test_shares_are_of_the_smallest_gpu_of_a_mixed_cluster() -> None:
    cell = paper()
    mixed = Gpus(40 * 10**9, 80 * 10**9)
    (of_mixed,), (of_large,) = (shares([cell], g).values() for g in (mixed, H100))
    assert of_mixed > of_large
    with pytest.raises(InputError, match="largest has 80.0 GB and the smallest 10.0 GB"):
        shares([cell], Gpus(10 * 10**9, 80 * 10**9))


def test_the_paper_fits_on_one_gpu_of_80_gb() -> None:
    """As reckoned here; no GPU was at hand to measure it."""
    from grids.load import load_grids

    grids = load_grids(sorted((ROOT / "grids/paper").glob("*.yaml")))
    cells = [cell for grid in grids for cell in grid.cells()]
    for engine, most in (("transformers", 0.95), ("vllm", 1.0)):
        served = [cell.model_copy(update={"engine": engine}) for cell in cells]
        found = shares(served, H100)
        assert 0.05 < min(found.values()) and max(found.values()) <= most


def test_an_engine_takes_a_larger_share_and_is_named_where_it_takes_most() -> None:
    plain, served = paper(), paper(engine="vllm")
    assert shares([served], H100)[served.key] > shares([plain], H100)[plain.key]
    with pytest.raises(InputError, match="engine: transformers"):
        shares([served], Gpus(20 * 10**9, 20 * 10**9))
    with pytest.raises(InputError) as error:
        shares([plain], Gpus(10 * 10**9, 10 * 10**9))
    assert "engine" not in str(error.value)


def test_a_machine_tells_the_gpus_that_it_sees() -> None:
    import torch

    assert len(visible_gpus()) == torch.cuda.device_count()


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray head that says that it has a GPU."""
    folder = Path("/tmp") / f"bgp{os.getpid()}"  # a socket's path is short
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        RAY, "start", "--head", "--num-cpus=1", "--num-gpus=1",
        f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}",
        "--node-ip-address=127.0.0.1", "--block",
    ]  # fmt: skip
    head = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert head.stdout is not None
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    yield f"127.0.0.1:{port}"
    family = psutil.Process(head.pid).children(recursive=True)
    for process in (psutil.Process(head.pid), *family):
        process.kill()
    head.wait()
    shutil.rmtree(folder, ignore_errors=True)


ASK = """
import json, sys, ray
from orchestrator.packing import gpu_bytes, shares
from grids.cell import Cell
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
assert ray.cluster_resources()["GPU"] == 1
found = gpu_bytes()
cell = Cell(model="tiny-qwen2", dataset="tiny-sums")
print(json.dumps([found, shares([cell], found)[cell.key]]))
"""


@pytest.mark.slow
def test_a_cluster_whose_gpus_nobody_sees_tells_no_memory(fake: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, fake], capture_output=True, text=True, check=True,
        cwd=ROOT, env=env, timeout=120,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [None, 1.0]
