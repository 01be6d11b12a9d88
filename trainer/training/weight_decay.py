"""Which parameters get weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from torch import nn

Named: TypeAlias = list[tuple[str, nn.Parameter]]

#: Parts of names, as peft gives them: magnitudes of DoRA and factors of (IA)³, which would be drawn to 0 and not to
#: what leaves the base as it is.
_SCALES = ("lora_magnitude_vector", "ia3_l")


def split_decay(named: Iterable[tuple[str, nn.Parameter]], modules: Iterable[nn.Module]) -> tuple[Named, Named]:
    """Those that get weight decay, and those that do not, each in its order.

    None for norms, biases and all else of one dimension, embeddings (so no new word either), magnitudes and factors.
    `modules` hold the parameters; they tell which are embeddings.
    """
    embeddings = {
        id(parameter)
        for module in modules
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    }
    with_decay: Named = []
    without: Named = []
    for name, parameter in named:
        is_decayed = id(parameter) not in embeddings and _is_weight(name, parameter)
        (with_decay if is_decayed else without).append((name, parameter))
    return with_decay, without


def _is_weight(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not any(part in name for part in _SCALES)
