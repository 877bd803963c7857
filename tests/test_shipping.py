"""What travels to a cluster: grids that mean the same on the other side, and equal packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from grids.errors import InputError
from grids.grid import Grid
from grids.load import load_grid, resolved
from orchestrator import launch
from orchestrator.shipping import PACKAGES, Order, Shipped, command, packed
from tests.conftest import GRIDS, ROOT

GRID = """
name: one
study: s
about: "1e-6"
base: {rounds: 2, lr: 1e-6, clip: off, eval: {every: 2, test_questions: 8, train_questions: 0}}
axes: {model: [tiny-qwen2], dataset: [tiny-sums]}
"""


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_grid_means_the_same_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.yaml").write_text(resolved(path), encoding="utf-8")
    grid, alone = load_grid(path), load_grid(tmp_path / "alone.yaml")
    assert alone.extends is None
    assert alone.model_dump(exclude={"extends"}) == grid.model_dump(exclude={"extends"})
    assert alone.expansion == grid.expansion
    assert [c.key for c in alone.cells()] == [c.key for c in grid.cells()]
    assert alone.contrasts == grid.contrasts


def test_words_that_look_like_numbers_stay_words(grid_file: Callable[..., Path]) -> None:
    path = grid_file(GRID + "section: 'off'\n")
    text = resolved(path)
    again = load_grid(grid_file(text, "again.yaml"))
    assert again.about == "1e-6" and again.section == "off"
    assert again.base["lr"] == 1e-6 and again.base["clip"] == "off"
    assert "é ü" in resolved(grid_file(GRID.replace("1e-6", "é ü", 1)))


def test_paths_of_local_copies_become_absolute(grid_file: Callable[..., Path]) -> None:
    path = grid_file("models: {mine: {path: here/mine}}\n" + GRID)
    assert f"path: {path.parent}/here/mine" in resolved(path)


def shipped(path: Path) -> Shipped:
    return Shipped.of(load_grid(path), path)


def order(*grids: Shipped) -> Order:
    return Order("s", grids, "/shared/store")


def test_a_digest_is_of_all_that_a_grid_asks_for(
    grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    first = order(shipped(grid_file(GRID)))
    assert first.digests == order(shipped(grid_file(GRID, "other.yaml"))).digests
    assert (
        first.digests != order(shipped(grid_file(GRID.replace("rounds: 2", "rounds: 4")))).digests
    )
    assert first.digests != replace(first, models="/shared/models").digests
    assert first.digests == replace(first, slots=3, tracking_uri="http://mlflow:5000").digests


def test_a_digest_is_of_the_content_of_a_local_copy(
    grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        copy.joinpath(name).write_text('{"question": "1+1", "answer": "#### 2"}\n' * 16)
    path = grid_file(
        GRID.replace("dataset: [tiny-sums]", "dataset: [mine]")
        + f"datasets: {{mine: {{path: {copy}, answer_after: '####'}}}}\n"
    )
    before = shipped(path).digest
    copy.joinpath("train.jsonl").write_text('{"question": "1+2", "answer": "#### 3"}\n' * 16)
    assert shipped(path).digest != before


def test_equal_content_makes_one_package(grid_file: Callable[..., Path]) -> None:
    from ray._private.runtime_env.packaging import get_uri_for_directory

    def uri(*grids: Shipped) -> tuple[str, str]:
        with packed(grids) as parcel:
            return get_uri_for_directory(str(parcel.folder), include_gitignore=True), parcel.code

    one = shipped(grid_file(GRID))
    first, again, wider = (
        uri(one),
        uri(one),
        uri(one, shipped(grid_file(GRID.replace("one", "two")))),
    )
    assert first == again and first[0] != wider[0] and first[1] == wider[1]


def test_a_package_holds_code_data_and_grids_and_no_caches(grid_file: Callable[..., Path]) -> None:
    one = shipped(grid_file(GRID))
    with packed([one]) as parcel:
        files = {str(p.relative_to(parcel.folder)) for p in parcel.folder.rglob("*") if p.is_file()}
        assert parcel.folder.joinpath(one.path).read_text(encoding="utf-8") == one.text
        assert parcel.bytes == sum((parcel.folder / name).stat().st_size for name in files)
        assert parcel.bytes < 8e6
    assert not parcel.folder.exists()
    assert {name.split("/")[0] for name in files} == {*PACKAGES, "submitted"}
    assert {"grids/demo.yaml", "grids/schema.json", "analysis/templates/style.css"} <= files
    assert "workers/embedded/models/tiny-qwen2/model.safetensors" in files
    assert not [name for name in files if "__pycache__" in name or "/." in name]


def test_travelled_code_loads_its_grids_from_where_it_is(
    grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Of the package, not of an installed banditgrid; embedded models keep their keys."""
    one = shipped(grid_file(GRID))
    script = (
        "import grids, sys; from grids.load import load_grid\n"
        "print(grids.__file__); print(*[c.key for c in load_grid(sys.argv[1]).cells()])"
    )
    with packed([one]) as parcel:
        ran = subprocess.run(
            [sys.executable, "-c", script, one.path], cwd=parcel.folder, text=True,
            capture_output=True, check=True,
        )  # fmt: skip
        file, keys = ran.stdout.splitlines()
        assert file == str(parcel.folder / "grids" / "__init__.py")
    assert keys.split() == [cell.key for cell in one.grid.cells()]


def test_the_entrypoint_is_one_line_of_shell(grid_file: Callable[..., Path]) -> None:
    grid: Grid = load_grid(grid_file(GRID))
    made = Order(
        "s", [Shipped(grid, "")], "/a b/store", models="/m", slots=2, attempts=5,
        tracking_uri="http://mlflow:5000", gpus=8, gpu_memory=24.0,
    )  # fmt: skip
    assert made.entrypoint == (
        "python3 -m orchestrator.launch run submitted/s/one.yaml --address auto "
        "--store '/a b/store' --models /m --tracking-uri http://mlflow:5000 --slots 2 --attempts 5 "
        "--gpus 8 --gpu-memory 24.0"
    )
    assert command("logs", "a;b").endswith(" logs 'a;b'")


@pytest.mark.parametrize(
    "uri",
    ["http://me:hunter2@mlflow:5000", "http://me@mlflow:5000", "https://hunter2:@host",
     "postgresql://host/db?password=hunter2", "http://mlflow:5000/?access_token=hunter2"],
)  # fmt: skip
def test_no_secret_travels_in_an_address(uri: str) -> None:
    with pytest.raises(InputError) as told:
        Order("s", [], "/store", tracking_uri=uri)
    assert "MLFLOW_TRACKING_PASSWORD on the nodes" in str(told.value)
    assert "hunter2" not in str(told.value)


def test_a_node_without_what_the_code_needs_is_told_once() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {launch.START}"
    ran = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert "lacks mlflow, pydantic, ray" in ran.stderr


def test_rays_python_is_sought_among_the_processes_above() -> None:
    assert launch.rays_python(os.getpid()) is None
    stand_in = f"import os, time; os.write(1, b'x'); time.sleep(60)  # {launch.NAMED}"
    worker = f"{launch.NAMED}{sys.executable} worker.py"
    with subprocess.Popen(
        [sys.executable, "-c", stand_in, worker], stdout=subprocess.PIPE
    ) as raylet:
        assert raylet.stdout is not None and raylet.stdout.read(1) == b"x"
        assert launch.rays_python(raylet.pid) == sys.executable
        raylet.kill()
