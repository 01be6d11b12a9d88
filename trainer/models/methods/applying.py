"""Applies what was learned to a loaded base at a strength: 0 is the base, 1 is as trained, and between them weights are
interpolated.

For LoRA that is its scale. For the other kinds it is what A1111 and ComfyUI do with a strength: the base's weight plus
that share of the whole change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from trainer.errors import BadSpecError
from trainer.models.families.model import Family, LoadedBase
from trainer.models.methods.adapter_files import PEFT_PREFIX
from trainer.models.methods.adapters import attach_adapter, merged_layers, remove_adapter
from trainer.models.methods.inversion import Inversion, attach_inversion
from trainer.models.methods.kohya import (
    has_swapped_halves,
    kohya_keys,
    merged_weight,
    sd3_layers,
    with_text_model,
)
from trainer.models.methods.starting_files import by_layer_name, read_start
from trainer.models.methods.trained import Trained, Weights
from trainer.protocol.settings import Method
from trainer.protocol.text import _

#: The layers that files change.
_CHANGEABLE = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
#: What a change makes of its weights is kept in main memory for other strengths up to this size: enough for a LoRA of
#: the attention of SD 1 (374 MB, by its shapes).
_MOST_KEPT_BYTES = 512 * 2**20
#: A weight of the base in fp32, on the device that it is computed on.
Original: TypeAlias = Callable[[nn.Parameter], Tensor]


class WeightChange(Protocol):
    """A model that differs from the base in some of its weights."""

    def changed(self, base: LoadedBase, original: Original) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield the weights that it changes, each with what it becomes at full strength, in fp32.

        Raises:
            CheckpointError: The files do not fit the base.
            BadSpecError: As that, of a file from elsewhere.
        """


@dataclass(frozen=True, kw_only=True)
class AdapterChange:
    """An adapter that was trained here."""

    method: Method
    #: Reads its weights, given the adapter that they are for.
    weights: Callable[[Trained], Weights]

    def changed(self, base: LoadedBase, original: Original) -> Iterator[tuple[nn.Parameter, Tensor]]:
        trained = attach_adapter(base, self.method.exported)
        try:
            trained.load(self.weights(trained))
            for module in trained.modules.values():
                yield from merged_layers(module, original)
        finally:
            for module in trained.modules.values():
                remove_adapter(module)


@dataclass(frozen=True, kw_only=True)
class _FileLayer:
    """A layer by the name that a file has for it."""

    #: One layer of the base, or three that are one in the file, one after another.
    modules: tuple[nn.Module, ...]
    #: The two halves of its outputs are the other way around in the file.
    is_swapped: bool = False


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """An adapter from elsewhere: a file by the names of kohya, LyCORIS, diffusers or peft."""

    path: Path

    def changed(self, base: LoadedBase, original: Original) -> Iterator[tuple[nn.Parameter, Tensor]]:
        # peft's own files name no module: they are of the denoiser.
        tensors = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in read_start(self.path).items()}
        layers = by_layer_name(tensors)
        known = _layers_by_name(base)
        for name in layers:
            if name not in known:
                raise self._missing(name)
        for name, own in layers.items():
            bias = next((own.pop(end) for end in ("diff_b", "b_norm") if end in own), None)
            if "w_norm" in own:
                own = {"diff": own["w_norm"]}
            if own:
                yield from self._merged(name, known[name], "weight", own, original)
            if bias is not None:
                yield from self._merged(name, known[name], "bias", {"diff": bias}, original)

    def _missing(self, name: str) -> BadSpecError:
        return BadSpecError(
            _("{file} changes {layer}, which this base does not have.", file=self.path.name, layer=name),
            _("It was made for another model. Choose the base that it was trained on."),
        )

    def _merged(
        self, name: str, layer: _FileLayer, kind: str, change: Mapping[str, Tensor], original: Original
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield the weights (or biases) of a layer of the file, each with what it becomes."""
        parameters = [getattr(module, kind) for module in layer.modules]
        if any(parameter is None for parameter in parameters):
            raise self._missing(f"{name}.{kind}")
        weight = torch.cat([original(parameter) for parameter in parameters])
        try:
            merged = _swapped(merged_weight(_swapped(weight, layer), change), layer)
        except (RuntimeError, LookupError, ValueError) as error:
            raise BadSpecError(
                _(
                    "{file} does not fit this base: {layer} has {shape} weights here.",
                    file=self.path.name,
                    layer=name,
                    shape="×".join(map(str, weight.shape)),
                ),
                _("It was made for another model. Choose the base that it was trained on."),
            ) from error
        start = 0
        for parameter in parameters:
            yield parameter, merged[start : start + len(parameter)]
            start += len(parameter)


@dataclass(frozen=True, kw_only=True)
class ModelChange:
    """A whole model, or weights of one: between it and the base the weights are interpolated."""

    #: By module and name.
    weights: Callable[[], Weights]

    def changed(self, base: LoadedBase, original: Original) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for name, tensors in self.weights().items():
            parameters = dict(base.module(name).named_parameters())
            for own, tensor in tensors.items():
                weight = original(parameters[own])
                yield parameters[own], tensor.to(weight)


@dataclass(frozen=True, kw_only=True)
class WordChange:
    """A learned word (textual inversion): the weights stay, and the text encoders read the word in another way."""

    method: Method
    trigger: str
    weights: Callable[[Trained], Weights]

    @contextmanager
    def known(self, base: LoadedBase) -> Iterator[Inversion]:
        """Teach the base the word for a while."""
        inversion = attach_inversion(base, self.method, self.trigger)
        try:
            inversion.load(self.weights(inversion))
            yield inversion
        finally:
            inversion.detach()


Change: TypeAlias = AdapterChange | FileChange | ModelChange | WordChange


class ChangeableWeights:
    """The weights of a base on a device, with the change of one model at a time.

    The weights as they are stored stay memory-mapped, so that the base comes back to the bit.
    """

    def __init__(self, base: LoadedBase, device: torch.device, dtype: torch.dtype) -> None:
        self._base = base
        self._device = device
        self._dtype = dtype
        encoders = [p for encoder in base.text_encoders.values() for p in encoder.parameters()]
        self._stored: dict[int, Tensor] = {
            id(parameter): parameter.data for parameter in (*base.denoiser.parameters(), *encoders)
        }
        self._of_denoiser = {id(parameter) for parameter in base.denoiser.parameters()}
        self._changed: list[nn.Parameter] = []
        self._kept: tuple[WeightChange, list[tuple[nn.Parameter, Tensor]]] | None = None
        for parameter in base.denoiser.parameters():
            parameter.data = self._placed(parameter, parameter.data)
        for buffer in base.denoiser.buffers():
            buffer.data = buffer.data.float() if buffer.is_floating_point() else buffer.data
        base.denoiser.to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def apply(self, change: WeightChange | None, strength: float) -> None:
        """Give the base the change of a model, in place of that of the model before; None: the base alone."""
        self._restore()
        if self._kept is not None and self._kept[0] is not change:
            self._kept = None
        if change is None or strength == 0:
            return
        try:
            for parameter, full in self._at_full_strength(change, is_kept=strength != 1):
                value = full
                if strength != 1:
                    original = self._original(parameter)
                    value = torch.lerp(original, full.to(original.device), strength)
                self._changed.append(parameter)
                parameter.data = self._placed(parameter, value)
        except BaseException:
            self._restore()
            raise

    def _at_full_strength(self, change: WeightChange, *, is_kept: bool) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield what `change.changed` yields, and keep it if other strengths may follow."""
        if self._kept is not None:
            yield from self._kept[1]
            return
        kept, left = [], _MOST_KEPT_BYTES if is_kept else 0
        for parameter, full in change.changed(self._base, self._original):
            left -= full.nbytes
            if left >= 0:
                kept.append((parameter, full.cpu()))
            yield parameter, full
        self._kept = (change, kept) if left >= 0 else None

    def changes_text(self) -> bool:
        """True if the text encoders are not those of the base at the moment."""
        return any(id(parameter) not in self._of_denoiser for parameter in self._changed)

    def _restore(self) -> None:
        while self._changed:
            parameter = self._changed.pop()
            parameter.data = self._placed(parameter, self._stored[id(parameter)])

    def _original(self, parameter: nn.Parameter) -> Tensor:
        return self._stored[id(parameter)].to(parameter.device, torch.float32)

    def _placed(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Return a weight as it is computed with; those of text encoders stay on the CPU, and are widened there."""
        if id(parameter) not in self._of_denoiser:
            return value.cpu()
        layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
        placed: Tensor = value.to(self._device, self._dtype, memory_format=layout)
        return placed


def _swapped(weight: Tensor, layer: _FileLayer) -> Tensor:
    return torch.cat(weight.chunk(2)[::-1]) if layer.is_swapped else weight


def _layers_by_name(base: LoadedBase) -> Mapping[str, _FileLayer]:
    """Map the names that files have for the layers of a model to the layers.

    The UNet of SDXL goes by its original names in kohya's files, and by those of diffusers in some others'; the
    transformer of SD 3 as well.
    """
    known: dict[str, _FileLayer] = {}
    for name in (base.denoiser_name, *base.clip_encoders):
        layers = {path: layer for path, layer in base.module(name).named_modules() if isinstance(layer, _CHANGEABLE)}
        is_encoder = name.startswith("text_encoder")
        for path, key in kohya_keys(base, name, layers).items():
            dotted = with_text_model(path) if is_encoder else path
            names = {key, f"{name}.{path}", f"{name}.{dotted}"}
            if not is_encoder:
                names |= {f"lora_{name}_{path.replace('.', '_')}", path}
            known |= dict.fromkeys(names, _FileLayer(modules=(layers[path],)))
        if base.family is Family.SD3 and not is_encoder:
            blocks = len(base.denoiser.transformer_blocks)
            for key, paths in sd3_layers(blocks).items():
                if layers.keys() >= set(paths):
                    modules = tuple(layers[path] for path in paths)
                    known[key] = _FileLayer(modules=modules, is_swapped=has_swapped_halves(paths[0], blocks))
    return known
