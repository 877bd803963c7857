"""verl's settings in TRL's names.

Leaves out the trainer that uses them (`trainer.py`), which says why the loss is TRL's `dapo`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from grids.cell import Cell
from workers.losses import clip_bounds
from workers.trl_alone import GRPOConfig


@dataclass
class OneRolloutConfig(GRPOConfig):
    """GRPOConfig that takes one rollout a query; its parent asks for two."""

    def __post_init__(self) -> None:
        rollouts = int(self.num_generations)  # type: ignore[has-type]
        if rollouts == 1:
            # Any divisor above one passes the parent's checks, which is all that it is used for.
            self.num_generations = int(self.generation_batch_size or 2)
        super().__post_init__()
        self.num_generations = rollouts
        self._n_gpu = min(1, self.n_gpu)  # a cell is one process on one GPU, however many there are


def trainer_settings(cell: Cell, start: int, output_dir: str) -> OneRolloutConfig:
    """The rounds after `start` of a cell, as TRL is told of them: what it takes for a batch is the
    fresh rollouts of one update, which `BanditTrainer` takes in passes of its own."""
    low, high, dual = clip_bounds(cell)
    return OneRolloutConfig(
        output_dir=output_dir,
        num_generations=cell.rollouts,
        generation_batch_size=cell.generated_per_step,
        per_device_train_batch_size=cell.generated_per_step // cell.updates_per_round,
        gradient_accumulation_steps=1,
        max_steps=(cell.rounds - start) * cell.updates_per_round,
        # the optimiser
        learning_rate=cell.lr, lr_scheduler_type="constant", warmup_steps=0, optim="adamw_torch",
        weight_decay=cell.weight_decay, adam_beta1=cell.adam_beta1, adam_beta2=cell.adam_beta2,
        max_grad_norm=cell.max_grad_norm,
        # the loss; the KL and its reference are ours
        loss_type="dapo", beta=0.0,
        use_bias_correction_kl=False, scale_rewards="none",
        epsilon=low, epsilon_high=high,
        delta=dual, temperature=cell.temperature,
        vllm_importance_sampling_correction=False, mask_truncated_completions=False,
        max_completion_length=cell.max_response, disable_dropout=True, entropy_coef=0.0,
        # how it is computed
        bf16=cell.precision == "bf16", use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=cell.gradient_checkpointing, seed=cell.seed,
        # TRL's own order, files and reports are not used
        shuffle_dataset=False, remove_unused_columns=False, dataloader_num_workers=0,
        dataloader_pin_memory=False, save_strategy="no", eval_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
