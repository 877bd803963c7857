"""liger's loss: loss, gradient and journal of ours where it is allowed, and one word where not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from grids import outcome
from grids.catalog import MODELS
from grids.errors import InputError
from grids.paths import CellPaths, read_lines
from tests.trainers import build_trainer, hand_made, move, update
from workers import liger
from workers.losses import AGGREGATIONS
from workers.preflight import check
from workers.run import run_cell

pytest.importorskip("liger_kernel")

ADVANTAGES = [0.5, -1.5, 0.25, 1.0]
CASES: dict[str, dict[str, Any]] = {
    **{name: {"aggregation": name} for name in AGGREGATIONS},
    **{name: {"model": name} for name in ("tiny-llama", "tiny-olmo2")},
    "passes": {"rows_per_pass": 1},
    "temperature": {"temperature": 0.7},
    "adapters": {"lora_rank": 4},
    "checkpointed": {"gradient_checkpointing": True},
    "half": {"precision": "bf16"},
}


def trained_gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_are_those_of_the_ordinary_loss(tiny, tmp_path, settings):
    made = []
    for turned_on in (False, True):
        cell = tiny(batch=4, micro_batch=2, kl="off", liger=turned_on, **settings)
        trainer = build_trainer(cell, tmp_path)
        move(trainer.policy.model)
        if cell.gradient_checkpointing:
            trainer.policy.model.gradient_checkpointing_enable()
        loss = update(trainer, hand_made(trainer, ADVANTAGES, off_policy=False))
        made.append((loss.item(), trained_gradient(trainer.policy.model)))
    (ours, expected), (theirs, found) = made
    half = settings.get("precision") == "bf16"
    assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-6)
    assert expected.norm() > 0
    assert (found - expected).norm() / expected.norm() < (0.01 if half else 1e-5)


def test_training_with_it_is_training_without(tiny, tmp_path):
    lines, moved = [], []
    for turned_on in (False, True):
        cell = tiny(kl="off", rollouts=2, advantage="grpo", lr=1e-4, liger=turned_on)
        paths = CellPaths(tmp_path / str(turned_on))
        run_cell(cell, paths.directory, lambda progress: None, tmp_path / "shared")
        lines.append(read_lines(paths.journal))
        moved.append(torch.load(paths.checkpoint / "000004" / "optimizer.pt", weights_only=True))
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert lines[1][2][outcome.CLIP_SHARE] == 0 and lines[1][2][outcome.ENTROPY] > 0
    assert len(moved[0]["state"]) == len(moved[1]["state"])


def test_an_engines_own_log_probabilities_are_held_against_the_trainers(tiny, tmp_path):
    """Of rows that vLLM sampled: the trainer's come from a pass of their own."""
    told = []
    for turned_on in (False, True):
        trainer = build_trainer(tiny(kl="off", engine="vllm", liger=turned_on), tmp_path)
        rows = hand_made(trainer, ADVANTAGES, off_policy=True)
        rows = [replace(row, log_engine_T=row.log_old_T, log_old_T=None) for row in rows]
        update(trainer, trainer._completed(rows, later=False))
        told.append({k: v for k, v in trainer.round.metrics.items() if k != outcome.LOSS})
    assert told[0].keys() == told[1].keys() >= {outcome.ENGINE_GAP, outcome.CLIP_SHARE}
    for name, value in told[0].items():
        assert told[1][name] == pytest.approx(value, rel=1e-4), name


def test_it_is_no_part_of_the_key(tiny):
    assert tiny(kl="off", liger=True).key == tiny(kl="off").key


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "kl: off"),
        ({"kl": "off", "updates_per_round": 2}, "updates_per_round: 1"),
        ({"kl": "off", "replay": 2, "replay_mode": "train"}, "replay_mode: baseline"),
    ],
)
def test_where_it_would_compute_something_else_it_is_refused(tiny, settings, why):
    with pytest.raises(ValidationError, match="liger: .*" + why):
        tiny(liger=True, **settings)


def test_a_head_that_scales_its_logits_is_refused(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODELS["tiny-qwen2"].path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0}))
    spec = MODELS["tiny-qwen2"].model_copy(update={"path": str(folder)})
    with pytest.raises(InputError, match="final_logit_softcapping .*liger: false"):
        check([tiny(kl="off", liger=True, model_spec=spec)])
    check([tiny(kl="off", model_spec=spec)])


def test_without_the_package_one_message_tells_what_to_do(tiny, monkeypatch):
    monkeypatch.setattr(liger, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"liger-kernel is not installed.*banditgrid\[liger\]"):
        check([tiny(kl="off", liger=True)])
    check([tiny(kl="off")])
