"""Which layers an adapter is put on, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from torch import nn

from trainer.errors import BadSpecError
from trainer.models.methods.blocks import matches
from trainer.protocol.settings import Method, MethodKind, Targets

#: The first four are of every attention; the rest is how SD3's joint attention calls those of the caption.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
_LINEAR = (*_ATTENTION, *_FEED_FORWARD, "proj_in", "proj_out")
_CONV = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
#: What tells a layer of the timestep: of a residual block, and of SD3's blocks.
_TIMESTEP = ("time_emb_proj", "norm1.linear", "norm1_context.linear")

_ENDINGS = {
    Targets.ATTENTION: _ATTENTION,
    Targets.LINEAR: _LINEAR,
    Targets.CONV: _CONV,
    Targets.ALL: (*_LINEAR, *_CONV, *_TIMESTEP),
}
#: The lists of blocks; what lies outside of them (`conv_in`, SD3's last `proj_out`) is only reached by a pattern.
_BODIES = ("down_blocks.", "mid_block.", "up_blocks.", "transformer_blocks.")
_TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj")


def denoiser_layers(denoiser: nn.Module, name: str, method: Method) -> list[str]:
    """Names of the linear and convolutional layers of a denoiser, called `name`, that `method` is put on.

    OFT leaves out convolutions that are larger than one pixel (see `_carries`).

    Raises:
        BadSpecError: there are none.
    """
    everything = dict(_layers(denoiser))
    targets = method.targets or Targets.ATTENTION
    if targets is Targets.PATTERN:
        chosen = [layer for layer in everything if matches(f"{name}.{layer}", method.pattern)]
        if not chosen:
            raise BadSpecError(
                f"No layer of the {name} has a name like {method.pattern}.",
                f"Such names are there: {', '.join(_nearest(method.pattern, everything))}.",
            )
    else:
        inner = [layer for layer in everything if layer.startswith(_BODIES)]
        chosen = [layer for layer in inner if _ends_with(layer, _ENDINGS[targets])]
    carried = [layer for layer in chosen if _carries(method.kind, everything[layer])]
    if not carried:
        raise BadSpecError(
            f"The {name} has no layer that {method.kind} with the targets {targets} can be put on.",
            "Choose other targets, or another method.",
        )
    return carried


def text_encoder_layers(encoder: nn.Module) -> list[str]:
    """Names of the attention layers of a CLIP text encoder."""
    return [layer for layer, _ in _layers(encoder) if _ends_with(layer, _TEXT_ENCODER)]


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def _ends_with(layer: str, endings: Iterable[str]) -> bool:
    return any(f".{layer}".endswith(f".{ending}") for ending in endings)


def _carries(kind: MethodKind, layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether peft's adapter of this kind leaves the layer as it is until it is trained.

    peft's OFT unfolds the input of a convolution, rotates, and folds it again: the fold adds up what overlaps, and so
    a 3 x 3 convolution gets up to nine times its input before anything is trained (peft 0.21.2, `OFTRotationModule`).
    """
    is_larger_than_a_pixel = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    return not (kind is MethodKind.OFT and is_larger_than_a_pixel)


def _nearest(pattern: str, layers: Iterable[str]) -> list[str]:
    """Three patterns that mean something, closest first: names with `*` for their numbers."""
    general = sorted({re.sub(r"\b\d+\b", "*", layer) for layer in layers})
    return sorted(general, key=lambda name: _likeness(pattern, name), reverse=True)[:3]


def _likeness(pattern: str, name: str) -> float:
    """How well the words of a pattern are found among those of a name, 0 to 1."""
    words = [word for word in re.split(r"[.*?]+", pattern) if word]
    best = (max(SequenceMatcher(None, word, part).ratio() for part in name.split(".")) for word in words)
    return sum(best) / max(1, len(words))
