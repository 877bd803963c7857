"""`python -m workers.trying`: imports plug-ins and tries their functions on a few numbers.

One JSON object a line on standard input: registry, name, cell. Exit code 2 with one message on
standard error where a function cannot be had, or returns what it must not: so that a mistake ends a
run before it begins. Leaves out what only real cells can tell.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from grids.cell import Cell
from grids.errors import InputError
from workers.advantages import Context
from workers.plugins import function


def try_function(cell: Cell, registry: str, name: str) -> None:
    """Raise `InputError` where the function cannot be had, or does not do what its kind must."""
    call = function(cell, registry, name)
    if registry == "ADVANTAGES":
        for rewards_P_G, mask_P_G in _groups(cell):
            call(rewards_P_G, mask_P_G, context=_context(cell, rewards_P_G, mask_P_G))
    elif registry == "LOSSES":
        _try_loss(call)
    elif registry == "AGGREGATIONS":
        mask_N_T = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        call(mask_N_T, cell.micro_batch, cell.max_response)
    elif registry == "KLS":
        log_p_N_T = torch.log(torch.tensor([[0.5, 0.2], [0.9, 0.1]]))
        call(log_p_N_T, log_p_N_T.flip(0))
    elif registry == "GRADERS":
        _try_grader(call)
    elif registry == "REWARDS":
        _try_reward(call, name)


def _groups(cell: Cell) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rewards and masks: mixed, constant, with an empty place, and of one where the cell has it."""
    size = cell.rollouts + cell.replay
    rewards_P_G = (torch.arange(3 * size).reshape(3, size) % 2).double()
    rewards_P_G[1] = 1.0
    mask_P_G = torch.ones_like(rewards_P_G, dtype=torch.bool)
    lacking_P_G = mask_P_G.clone()
    lacking_P_G[0, 1:] = False
    return [(rewards_P_G, mask_P_G), (rewards_P_G.where(lacking_P_G, torch.nan), lacking_P_G)]


def _context(cell: Cell, rewards_P_G: torch.Tensor, mask_P_G: torch.Tensor) -> Context:
    fresh_P_G = (torch.arange(rewards_P_G.shape[1]) < cell.rollouts).expand_as(mask_P_G)
    return Context(
        singleton=cell.singleton, fresh_P_G=fresh_P_G, ages_P_G=torch.zeros_like(rewards_P_G),
        lengths_P_G=torch.full_like(rewards_P_G, 8.0), questions_P=("a", "b", "c"),
        history_P=torch.full((3,), torch.nan, dtype=torch.float64),
    )  # fmt: skip


def _try_loss(call: Any) -> None:
    log_p_N_T = torch.log(torch.tensor([[0.5, 0.2], [0.9, 0.1]])).requires_grad_()
    advantages_N_1 = torch.tensor([[1.0], [-0.5]])
    losses_N_T = call(log_p_N_T, log_p_N_T.detach() - 0.1, advantages_N_1, low=0.2, high=0.2)
    if not losses_N_T.requires_grad:
        raise InputError("a plug-in's loss has no gradient with respect to log_p_N_T: use it")


def _try_grader(call: Any) -> None:
    """What it returns; that it raises on this gold says nothing of a data set's own."""
    try:
        call("The answer is 4. #### 4", "4")
    except InputError:
        raise
    except Exception:  # anybody's code
        return


def _try_reward(call: Any, name: str) -> None:
    from workers.grading import Grade
    from workers.rewards import Answered

    context = Answered(text="2 + 2 = 4. #### 4", question="2 + 2?", gold="4", solution="2 + 2 = 4")
    for correct in (True, False):
        grade = Grade(correct=correct, parsed=True, answer="4", score=float(correct))
        try:
            value = float(call(grade, context=context))
        except Exception as error:  # anybody's code
            raise InputError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
        if not 0 <= value <= 1:  # NaN fails too
            raise InputError(f"reward {name!r} returned {value}; a reward is a number in [0, 1]")


def main() -> None:
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            cell = Cell.model_validate_json(asked["cell"])
            try_function(cell, asked["registry"], asked["name"])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
