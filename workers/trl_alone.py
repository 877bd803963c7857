"""TRL's trainer without vLLM: all modules take TRL's names from here.

Where vLLM is installed TRL imports it beside its trainer, whatever the engine: five seconds and two
hundred megabytes, and an error where vLLM is broken. The engine imports it when it is wanted.
"""

from __future__ import annotations

from typing import Any

from trl import import_utils


def _absent(*_: Any, **__: Any) -> bool:
    return False


_found = import_utils.is_vllm_available
import_utils.is_vllm_available = _absent
try:
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import add_fused_lm_head
    from trl.trainer.utils import disable_dropout_in_model
finally:
    import_utils.is_vllm_available = _found

__all__ = ["GRPOConfig", "GRPOTrainer", "add_fused_lm_head", "disable_dropout_in_model"]
