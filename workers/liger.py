"""The GRPO loss of liger-kernel: head and loss in one, in chunks, where it computes ours.

Token weights go in as its mask, which its `dapo` loss multiplies every token's loss by; so every
aggregation is the same sum. It gives back one number and no log-probabilities. So it serves cells
whose loss is the policy's alone (no KL, no plug-in's loss) and whose ratio is 1, of which there is
nothing to journal; `grids.limits` refuses others. Nor does it know heads that scale or cap their
logits, which `check` refuses.

Leaves out passes without gradient, which take TRL's head in every cell.
"""

from __future__ import annotations

import functools
import json
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from grids.cell import Cell
from grids.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "liger_kernel"
# Of a model's config: what TRL's head does to logits and liger's does not.
ALTERED = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier",
    "logits_scaling",
)  # fmt: skip


def check(cell: Cell, folder: Path) -> None:
    """Raise `InputError` where the cell asks for liger's loss and cannot have it here."""
    if not cell.liger:
        return
    if find_spec(PACKAGE) is None:
        raise InputError(
            f"cell {cell.label}: liger: the package liger-kernel is not installed here; run "
            "`pip install 'banditgrid[liger]'`, or take `liger: false`"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if found := [name for name in ALTERED if config.get(name) not in (None, 1, 1.0)]:
        raise InputError(
            f"cell {cell.label}: liger: {cell.model} sets {', '.join(found)} in its config.json, "
            "which liger's loss does not compute; take `liger: false`"
        )


def add_loss(model: Any, cell: Cell) -> None:
    """Let `model(..., liger=inputs)` give the loss of a pass, as TRL lets it give log p.

    Through the model's own forward, so that whatever is wrapped around it (peft, shards, autocast)
    takes part.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    # The ratio is 1, so the clip cuts nothing. Its arithmetic alone could be compiled: not worth it
    loss_of = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, loss_type="dapo", temperature=cell.temperature,
        compiled=False, chunk_size=1 << 20,  # rows; it cuts tokens and words by itself
    )  # fmt: skip
    plain = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, liger: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> Any:
        if liger is None:
            return plain(*args, **kwargs)
        return _loss(self, loss_of, liger, cell)

    model.forward = MethodType(forward, model)


def loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The loss of a pass, as TRL's `_compute_loss` gives it."""
    made: Tensor = model(liger=inputs)
    return made


def _loss(model: Any, loss_of: Any, inputs: dict[str, Tensor], cell: Cell) -> Tensor:
    import torch

    ids_N_L = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask_N_L = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    length = inputs["completion_ids"].shape[1]
    device = ids_N_L.device.type
    half = torch.autocast(device, torch.bfloat16, enabled=cell.precision == "bf16")
    with half:
        out = model.base_model(input_ids=ids_N_L, attention_mask=mask_N_L, use_cache=False)
    hidden_N_T_H = out.last_hidden_state[:, -length - 1 : -1]
    if cell.precision == "bf16":
        hidden_N_T_H = hidden_N_T_H.bfloat16()
    head = model.get_output_embeddings()
    with torch.autocast(device, enabled=False):  # it casts the head to what the states are
        made: Tensor = loss_of(
            hidden_N_T_H, head.weight, inputs["completion_ids"], inputs["tool_mask"],
            inputs["advantages"], bias=head.bias, num_items_in_batch=inputs["num_items_in_batch"],
        )[0]  # fmt: skip
    return made
