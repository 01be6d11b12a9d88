"""Layers, blocks and parameters of a model by name: adapter targets, name patterns, and order from input to output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from fnmatch import translate
from functools import lru_cache

from torch import nn

from trainer.errors import BadSpecError
from trainer.protocol.settings import Method, MethodKind, Targets

#: The first four are in every attention; the others are the caption's projections in SD3's joint attention.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
_LINEAR = (*_ATTENTION, *_FEED_FORWARD, "proj_in", "proj_out")
_CONV = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
#: Timestep conditioning, in residual blocks and in SD3's blocks.
_TIMESTEP = ("time_emb_proj", "norm1.linear", "norm1_context.linear")

_ENDINGS = {
    Targets.ATTENTION: _ATTENTION,
    Targets.LINEAR: _LINEAR,
    Targets.CONV: _CONV,
    Targets.ALL: (*_LINEAR, *_CONV, *_TIMESTEP),
}
#: Lists of blocks. Layers outside of them (`conv_in`, SD3's last `proj_out`) are reached by a pattern only.
BODIES = ("down_blocks.", "mid_block.", "up_blocks.", "transformer_blocks.")
_TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj")


def denoiser_layers(denoiser: nn.Module, name: str, method: Method) -> list[str]:
    """Names of the linear and convolutional layers that `method` adapts in a denoiser called `name`.

    OFT leaves out convolutions larger than one pixel (see `_supports`).

    Raises:
        BadSpecError: there are none.
    """
    everything = dict(_layers(denoiser))
    targets = method.targets or Targets.ATTENTION
    if targets is Targets.PATTERN:
        chosen = [layer for layer in everything if matches(f"{name}.{layer}", method.pattern)]
        if not chosen:
            raise BadSpecError(
                f"No layer of the {name} matches {method.pattern}.",
                f"Similar names: {', '.join(_nearest(method.pattern, everything))}.",
            )
    else:
        inner = [layer for layer in everything if layer.startswith(BODIES)]
        chosen = [layer for layer in inner if _ends_with(layer, _ENDINGS[targets])]
    supported = [
        layer
        for layer in chosen
        if _supports(method.kind, everything[layer]) and size_of(method, f"{name}.{layer}", everything[layer])[0]
    ]
    if not supported:
        raise BadSpecError(
            f"The {name} has no layer that {method.kind} with the targets {targets} can adapt.",
            "Choose other targets, or another method.",
        )
    return supported


def text_encoder_layers(encoder: nn.Module, name: str, method: Method) -> list[str]:
    """Names of the attention layers of a CLIP text encoder called `name`, except those with the rank 0."""
    return [
        layer
        for layer, module in _layers(encoder)
        if _ends_with(layer, _TEXT_ENCODER) and size_of(method, f"{name}.{layer}", module)[0]
    ]


def size_of(method: Method, name: str, layer: nn.Module) -> tuple[int, float]:
    """Return rank and alpha of a layer, called `unet.up_blocks.1.…`; the rank 0 leaves it out.

    `layer` may already have its adapter.
    """
    for block in method.block_ranks:
        if matches(name, block.blocks):
            return block.rank, block.alpha or float(block.rank)
    base = getattr(layer, "base_layer", layer)
    if method.conv_rank is not None and isinstance(base, nn.Conv2d) and base.kernel_size != (1, 1):
        return method.conv_rank, method.conv_alpha or float(method.conv_rank)
    return method.rank, method.effective_alpha


def scale_of(method: Method, name: str, layer: nn.Module) -> float:
    """Return the factor of a layer's update: alpha / rank, or alpha / sqrt(rank)."""
    rank, alpha = size_of(method, name, layer)
    is_stabilized = method.rank_stabilized and method.kind in {MethodKind.LORA, MethodKind.DORA}
    return alpha / (rank**0.5 if is_stabilized else rank)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def _ends_with(layer: str, endings: Iterable[str]) -> bool:
    return any(f".{layer}".endswith(f".{ending}") for ending in endings)


def _supports(kind: MethodKind, layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether peft's untrained adapter of this kind leaves the layer's output unchanged.

    peft's OFT unfolds the input of a convolution, rotates it and folds it again. The fold sums overlaps, so a 3 x 3
    convolution gets up to nine times its input before any training (peft 0.21.2, `OFTRotationModule`).
    """
    is_larger_than_a_pixel = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    return not (kind is MethodKind.OFT and is_larger_than_a_pixel)


def _nearest(pattern: str, layers: Iterable[str]) -> list[str]:
    """The three closest names, closest first, with `*` for their numbers."""
    general = sorted({re.sub(r"\b\d+\b", "*", layer) for layer in layers})
    return sorted(general, key=lambda name: _similarity(pattern, name), reverse=True)[:3]


def _similarity(pattern: str, name: str) -> float:
    """How well the words of a pattern match those of a name, 0 to 1."""
    words = [word for word in re.split(r"[.*?]+", pattern) if word]
    best = (max(SequenceMatcher(None, word, part).ratio() for part in name.split(".")) for word in words)
    return sum(best) / max(1, len(words))


#: One block, although it contains lists of layers.
_WHOLE = frozenset({"mid_block"})


def blocks_of(name: str, module: nn.Module) -> list[str]:
    """Dotted prefixes (`unet.down_blocks.0`) of the blocks of `module`, called `name`, from input to output.

    A block is an element of a module list (`down_blocks`, `encoder.layers`, `transformer_blocks`), or what comes before
    and after the lists. Every parameter is in exactly one block, or in several where modules share it.
    """
    return list(_parts(name, module))


def matches(parameter_name: str, pattern: str) -> bool:
    """Whether `pattern` matches the name or a prefix of it that ends at a dot, with or without the module's name.

    `up_blocks.1` matches `unet.up_blocks.1.resnets.0.conv1.weight` but not `unet.up_blocks.10.…`. `*` matches any
    characters, dots included; `?` matches one.
    """
    means = _compiled(pattern).match
    _, _, without_module = parameter_name.partition(".")
    return bool(means(parameter_name) or means(without_module))


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(f"{translate(pattern)}|{translate(pattern + '.*')}")


def _parts(name: str, module: nn.Module) -> Iterator[str]:
    if name.rpartition(".")[2] in _WHOLE or not _is_deep(module):
        yield name
        return
    yield from (f"{name}.{own}" for own, _ in module.named_parameters(recurse=False))
    for child_name, child in _from_input_to_output(module):
        if isinstance(child, nn.ModuleList):
            yield from (f"{name}.{child_name}.{index}" for index, item in enumerate(child) if _has_parameters(item))
        else:
            yield from _parts(f"{name}.{child_name}", child)


def _is_deep(module: nn.Module) -> bool:
    return any(isinstance(part, nn.ModuleList) and _has_parameters(part) for part in module.modules())


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _from_input_to_output(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children with parameters, in the order in which they are called."""
    children = [(name, child) for name, child in module.named_children() if _has_parameters(child)]
    names = [name for name, _ in children]
    if "mid_block" in names and "up_blocks" in names:
        # diffusers' UNets register the middle block after the up blocks.
        middle = children.pop(names.index("mid_block"))
        children.insert([name for name, _ in children].index("up_blocks"), middle)
    return children
