"""What lets vLLM serve, in the trainer's process, the model that the trainer trains.

- Where vLLM has no class of its own for a model it takes transformers', and changes that class for
  good; `apart` keeps the change to vLLM's own models.
- Its CPU build packs the weights of linear layers and throws the originals away, so that no new
  ones could be loaded, its attention knows few head sizes, and its start breaks on what other
  libraries have loaded; `prepare` changes these.

Each is tested against the installed version. Leaves out the engine (`vllm_engine.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

CPU_SETTINGS: dict[str, Any] = {
    "enforce_eager": True,  # compiling takes longer than small cells do
    # The kernel that turns queries and keys by their places writes beyond odd head sizes in bf16.
    "compilation_config": {"custom_ops": ["-rotary_embedding"]},
}


class _Changed(NamedTuple):
    """What vLLM puts in place of a class's own."""

    init: Callable[..., None]
    call: Callable[..., Any]


_changed: dict[type, _Changed] = {}


@contextmanager
def apart(model: Any) -> Iterator[None]:
    """Within it vLLM may change the classes of the model; after it the change holds for the models
    that vLLM made, and all others of the class are made and called as if there were no vLLM."""
    classes = {type(m) for m in model.modules() if isinstance(m, PreTrainedModel)}
    own = {cls: _Changed(cls.__init__, cls.__call__) for cls in classes}
    for cls in classes & set(_changed):
        _put(cls, _changed[cls])
    try:
        yield
    finally:
        for cls, before in own.items():
            if cls.__call__ is not before.call and cls not in _changed:
                _changed[cls] = _Changed(cls.__init__, cls.__call__)
                before = before._replace(call=_either(_changed[cls].call, before.call))
            _put(cls, before)


def _put(cls: Any, made: _Changed) -> None:
    cls.__init__, cls.__call__ = made


def _either(theirs: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, *args: Any, **options: Any) -> Any:
        made_by_vllm = "do_not_compile" in vars(self)  # set by vLLM's __init__
        return (theirs if made_by_vllm else own)(self, *args, **options)

    return __call__


@lru_cache(maxsize=1)
def prepare() -> None:
    """Change vLLM's CPU build, once a process; does nothing where vLLM runs on a GPU."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _keep_weights()
        _pad_heads()
        _look_gently()


def _keep_weights() -> None:
    from vllm.model_executor.layers import utils

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = linear

    utils.dispatch_cpu_unquantized_gemm = plain


def _look_gently() -> None:
    """At its start it looks into every module of the process for kernels. An object of another
    library that does not bear to be looked at (Flask's `request`, where a plug-in or a test loaded
    it) is none."""
    from vllm.triton_utils import dispatcher

    def bears(value: object, name: str) -> bool:
        try:
            return hasattr(value, name)
        except Exception:
            return False

    dispatcher.hasattr = bears


def _pad_heads() -> None:
    """Heads of a size that the attention lacks become wider by zeros: these add nothing to the
    scores, whose scale is given apart, and their outputs are cut off."""
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    known = sorted(CPUAttentionBackend.get_supported_head_sizes())
    begin, attend = Attention.__init__, Attention.forward

    def __init__(self: Any, num_heads: int, head_size: int, *args: Any, **options: Any) -> None:
        wide = next((size for size in known if size >= head_size), head_size)
        begin(self, num_heads, wide, *args, **options)
        self.own_head_size = head_size

    def forward(self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any) -> Tensor:
        own, wide = self.own_head_size, self.head_size
        if own == wide:
            return attend(self, query, key, value, *args)
        made = attend(self, *(_wider(x, own, wide) for x in (query, key, value)), *args)
        return made.view(len(made), -1, wide)[..., :own].flatten(1)

    Attention.__init__, Attention.forward = __init__, forward


def _wider(states_N_H: Tensor, own: int, wide: int) -> Tensor:
    return pad(states_N_H.view(len(states_N_H), -1, own), (0, wide - own)).flatten(1)
