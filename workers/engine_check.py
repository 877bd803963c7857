"""Whether vLLM can serve a cell here: it is installed, and its version and those beside it fit.

Read from the metadata of what is installed; imports neither vLLM nor torch. Leaves out the engine
itself (`vllm_engine.py`) and a model's files (`models.py`).
"""

from __future__ import annotations


class EngineError(RuntimeError):
    """An engine that died while it generated, or that could not start. The cell goes on with a
    fresh one: see `orchestrator.queue`."""
