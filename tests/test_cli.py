"""The command `banditgrid`: exit codes, messages, and what programs read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from grids import catalog
from grids.paths import Store, write_json
from orchestrator import cli

GRID = """
name: one
study: s
base: {rounds: 10}
axes: {model: [qwen2.5-0.5b-instruct], dataset: [gsm8k], advantage: [raw, grpo]}
seeds: [0, 1]
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def banditgrid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)
    for name in ("BANDITGRID_STORE", "BANDITGRID_MODELS", "BANDITGRID_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for catalogue in (catalog.MODELS, catalog.DATASETS):
        for name, spec in list(catalogue.items()):  # local copies are for one test
            monkeypatch.setitem(catalogue, name, spec)

    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["banditgrid", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        told = capsys.readouterr()
        return Ran(code, told.out, told.err)

    return run


def test_help_lists_the_commands(banditgrid: Callable[..., Ran]) -> None:
    ran = banditgrid("--help")
    assert ran.code == 0
    for name in ("plan", "run", "status", "ui", "tables", "schema"):
        assert name in ran.out


def test_plan_and_its_json(banditgrid: Callable[..., Ran], grid_file: Callable[..., Path]) -> None:
    path = grid_file(GRID)
    shown = banditgrid("plan", path)
    assert shown.code == 0 and "2 cells: 2 waiting" in shown.out
    told = json.loads(banditgrid("plan", path, "--json").out)
    assert [cell["seed"] for cell in told["cells"]] == [0, 1]
    assert {d["kind"] for d in told["dropped"]} == {"merged"}
    assert told["totals"]["rounds"] == 20


def test_bad_input_is_one_message_and_exit_code_2(
    banditgrid: Callable[..., Ran], grid_file: Callable[..., Path]
) -> None:
    ran = banditgrid("plan", grid_file(GRID.replace("seeds", "seedz")))
    assert ran.code == 2 and not ran.out
    assert "grid.yaml:6: seedz: unknown key" in ran.err and "did you mean 'seeds'" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan", "absent.yaml"), "absent.yaml: cannot be read"),
        (("plan", "absent.yaml", "--models", "nowhere"), "--models: no folder nowhere"),
        (("status",), "no store store"),
        (("ui",), "has no MLflow database"),
    ],
)
def test_what_is_absent_is_named(
    banditgrid: Callable[..., Ran], arguments: tuple[str, ...], told: str
) -> None:
    ran = banditgrid(*arguments)
    assert ran.code == 2 and told in ran.err


TINY = GRID.replace("qwen2.5-0.5b-instruct", "tiny-qwen2").replace("gsm8k", "tiny-sums")
REAL_DATA = GRID.replace("qwen2.5-0.5b-instruct", "tiny-qwen2").replace(
    "base: {", "base: {max_prompt: 32, max_response: 32, "
)
BAD_AT_THE_START = {
    "no hub and no copy of the data": (REAL_DATA, None, "local copy at ./data/gsm8k (another"),
    "no hub and no copy of the model": (
        GRID.replace("gsm8k", "tiny-sums").replace("base: {", "base: {max_prompt: 32, "),
        None,
        "local copy at ./models/qwen2.5-0.5b-instruct (another",
    ),
    "wrong columns": (
        REAL_DATA,
        [{"prompt": "1 + 1", "completion": "2"}],
        "wrong columns in row 1 of train: got prompt, completion; expected 'question' and one",
    ),
    "a batch larger than what is left of the train set": (
        REAL_DATA,
        [{"question": f"{i}", "answer": f"#### {i}"} for i in range(31)],
        "batch 32 is larger than the train set: gsm8k has 31 usable",
    ),
}


@pytest.mark.parametrize(
    ("grid", "rows", "told"), BAD_AT_THE_START.values(), ids=BAD_AT_THE_START.keys()
)
def test_what_only_the_files_tell_is_told_before_anything_is_written(
    banditgrid: Callable[..., Ran], grid_file: Callable[..., Path], tmp_path: Path,
    grid: str, rows: list[dict[str, str]] | None, told: str,
) -> None:  # fmt: skip
    if rows is not None:
        folder = tmp_path / "data" / "gsm8k"
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = banditgrid("run", grid_file(grid))
    assert ran.code == 2 and told in ran.err and ran.err.startswith("error: ")
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_store_below_a_file_cannot_be_written(
    banditgrid: Callable[..., Ran], grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ran = banditgrid("run", grid_file(GRID), "--store", tmp_path / "file" / "store")
    assert ran.code == 2
    assert "cannot be written" in ran.err and "--store" in ran.err


def test_an_absent_mlflow_server_leaves_nothing_half_written(
    banditgrid: Callable[..., Ran], grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    address = "http://127.0.0.1:9"
    ran = banditgrid("run", grid_file(TINY), "--tracking-uri", address)
    assert ran.code == 2 and address in ran.err
    assert not (tmp_path / "store").exists()


def test_an_absent_cluster_is_told_at_once(
    banditgrid: Callable[..., Ran], grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    ran = banditgrid("run", grid_file(GRID), "--address", "127.0.0.1:9")
    assert ran.code == 2 and "no Ray cluster answers at 127.0.0.1:9" in ran.err
    assert not (tmp_path / "store").exists()


def test_status_from_the_store_alone(
    banditgrid: Callable[..., Ran], grid_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = grid_file(GRID)
    first, second = (
        cell["key"] for cell in json.loads(banditgrid("plan", path, "--json").out)["cells"]
    )
    paths = Store(tmp_path / "store").study("s").cell(first)
    paths.directory.mkdir(parents=True)
    lines = [{"round": 0, "test/pass_at_1": 0.5}, {"round": 1, "update/loss": float("nan")}]
    paths.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    alone = json.loads(banditgrid("status", "--json").out)["cells"]
    assert [(row["key"], row["state"], row["round"]) for row in alone] == [(first, "unfinished", 1)]
    assert set(alone[0]) == {
        "study", "key", "label", "grids", "rounds", "state", "round", "test_pass", "reason",
        "seconds_ago", "host", "pid", "gpus", "rows_per_pass", "peak_rss_bytes", "peak_gpu_bytes",
        "beat_seconds_ago", "seconds_left", "failed_attempts", "leaving",
    }  # fmt: skip
    write_json(paths.failed, {"error": "RuntimeError: broken"})
    rows = json.loads(banditgrid("status", path, "--json").out)["cells"]
    assert [(row["key"], row["state"]) for row in rows] == [(first, "failed"), (second, "waiting")]
    assert rows[0]["test_pass"] == 0.5 and rows[0]["reason"] == "RuntimeError: broken"
    assert "1 failed, 1 waiting" in banditgrid("status", path).out


def test_schema_is_json(banditgrid: Callable[..., Ran], tmp_path: Path) -> None:
    assert json.loads(banditgrid("schema").out)["title"] == "banditgrid grid"
    assert banditgrid("schema", "--out", tmp_path / "schema.json").code == 0
    assert json.loads((tmp_path / "schema.json").read_text())["type"] == "object"
    assert banditgrid("schema", "--out", tmp_path / "none" / "schema.json").code == 2


def test_a_notice_before_there_are_cells_ends_a_run_as_ctrl_c_does(tmp_path: Path) -> None:
    """SIGUSR2 while the command still imports and plans; 130 is what batch scripts ask for."""
    (tmp_path / "grid.yaml").write_text(GRID)
    code = (
        "import signal, sys\n"
        "from orchestrator import cli\n"
        "class Notice:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'orchestrator.driver': signal.raise_signal(signal.SIGUSR2)\n"
        "sys.meta_path.insert(0, Notice())\n"
        "sys.argv = ['banditgrid', 'run', 'grid.yaml']\n"
        "cli.main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout) == (130, ""), ran.stderr
    assert "Traceback" not in ran.stderr and not (tmp_path / "store").exists()
