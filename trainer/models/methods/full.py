"""Full fine-tuning: the model's own weights are trained, in fp32, and the base is read again where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import CheckpointError
from trainer.models.base import load_base
from trainer.models.families.model import BaseModel
from trainer.models.methods.blocks import blocks_of, matches
from trainer.models.methods.checkpoint_file import FAMILIES, marks_of, write_checkpoint
from trainer.models.methods.single_file import as_metadata
from trainer.models.methods.targets import denoiser_layers
from trainer.models.methods.trained import ExportedFile, Weights
from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import Base, Method, Objective, Targets

#: Text encoders that can be trained; T5 is larger than all the rest, and nobody trains it.
_CLIP = ("text_encoder", "text_encoder_2")
#: Folder of the whole model in diffusers layout.
DIFFUSERS_FOLDER = "diffusers"


class FullTraining:
    """A `Trained`: weights of the denoiser, and all of the CLIP text encoders where those are trained too."""

    def __init__(
        self, base: BaseModel, parameters: Mapping[str, Mapping[str, nn.Parameter]], reload: Callable[[], BaseModel]
    ) -> None:
        self._base = base
        #: By module, under their names in it.
        self._parameters = parameters
        self._reload = reload

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {name: module_of(self._base, name) for name in self._parameters}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameters in self._parameters.items():
            yield from ((f"{name}.{own}", parameter) for own, parameter in parameters.items())

    @property
    def blocks(self) -> Sequence[str]:
        return [block for name, module in self.modules.items() for block in blocks_of(name, module)]

    def state(self) -> Weights:
        """Copies: an optimizer that averages in place may change the weights before they are written."""
        return {
            name: {own: parameter.detach().to("cpu", copy=True).contiguous() for own, parameter in parameters.items()}
            for name, parameters in self._parameters.items()
        }

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Put back what `state` gave.

        Raises:
            CheckpointError: the weights are of another job.
        """
        given = {(name, own): t.shape for name, tensors in weights.items() for own, t in tensors.items()}
        expected = {(name, own): p.shape for name, mine in self._parameters.items() for own, p in mine.items()}
        for place in sorted(given.keys() | expected.keys()):
            if given.get(place) != expected.get(place):
                raise CheckpointError(f"The weights do not fit this job (at {'.'.join(place)}).", "Start it anew.")
        for name, parameters in self._parameters.items():
            for own, parameter in parameters.items():
                parameter.copy_(weights[name][own])

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """The weights of the base, read anew, in the place of those that are trained.

        These wait in the memory of the host; on a GPU one parameter is there twice at a time.
        """
        fresh = self._reload()
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for name, parameters in self._parameters.items():
                originals = dict(module_of(fresh, name).named_parameters())
                for own, parameter in parameters.items():
                    kept.append((parameter, parameter.data.to("cpu")))
                    parameter.data = _like(parameter.data, originals.pop(own).data)
            del fresh, originals
            yield
        finally:
            for parameter, trained in kept:
                parameter.data = trained.to(parameter.device)

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """The whole model in fp16: `diffusers/`, and for SD 1, 2 and XL one file for A1111 and ComfyUI."""
        path = write_folder(folder / DIFFUSERS_FOLDER, self._base)
        files = [ExportedFile(format=ExportFormat.DIFFUSERS, path=path)]
        if self._base.family.value in FAMILIES:
            path = write_checkpoint(
                folder / f"{name}.safetensors",
                self._base.family.value,
                self._base.denoiser,
                self._base.vae,
                self._base.text_encoders,
                as_metadata(metadata),
                marks=marks_of(self._base),
            )
            files.append(ExportedFile(format=ExportFormat.CHECKPOINT, path=path))
        return files

    @contextmanager
    def as_exported(self) -> Iterator[None]:
        """The whole model with weights as the files have them, rounded to fp16: what a file that is loaded back must
        predict to the last digit, while it may differ from the trained model by all that fp16 cannot tell apart."""
        clip = [encoder for name, encoder in self._base.text_encoders.items() if name in _CLIP]
        modules = [self._base.denoiser, *clip]
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(_with_tensors(module, lambda tensor: tensor.half().float()))
            yield


def attach_full(base: BaseModel, method: Method, reload: Callable[[], BaseModel]) -> FullTraining:
    """Train the weights of the denoiser that `method` targets, and all of the CLIP text encoders if it says so.

    `reload` reads the base again, as it was.

    Raises:
        BadSpecError: no layer is meant by the targets.
    """
    parameters = {base.denoiser_name: _chosen(base, method)}
    if method.text_encoder:
        encoders = {name: base.text_encoders[name] for name in _CLIP if name in base.text_encoders}
        parameters = {name: dict(encoder.named_parameters()) for name, encoder in encoders.items()} | parameters
    for parameter in chain.from_iterable(part.values() for part in parameters.values()):
        # Steps of 1e-6 are lost in half precision.
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return FullTraining(base, parameters, reload)


def module_of(base: BaseModel, name: str) -> nn.Module:
    """A part of a model by its name in files: `unet`, `transformer`, `text_encoder`, …"""
    module: nn.Module = base.denoiser if name == base.denoiser_name else base.text_encoders[name]
    return module


def load_back(file: ExportedFile, revision_of: Base, objective: Objective) -> BaseModel:
    """An exported model, loaded as anybody's would be; the folder beside the single file says how it is built."""
    config = str(file.path.parent / DIFFUSERS_FOLDER) if file.format is ExportFormat.CHECKPOINT else None
    changes = {"source": str(file.path), "revision": None, "config": config}
    return load_base(revision_of.model_copy(update=changes), objective)


def write_folder(folder: Path, base: BaseModel) -> Path:
    """A whole model in diffusers layout, fp16, safetensors.

    transformers 5 has no `text_model.` in front of the layers of a CLIPTextModel, and readers that are older know no
    other names: it is put there.
    """
    pipeline = base.pipeline()
    with ExitStack() as stack:
        for module in (base.denoiser, base.vae, *base.text_encoders.values()):
            stack.enter_context(_with_tensors(module, lambda tensor: tensor.to("cpu", torch.float16).contiguous()))
        pipeline.save_pretrained(folder, safe_serialization=True)
    for name in base.text_encoders:
        path = folder / name / "model.safetensors"
        if name in _CLIP and path.is_file():
            _write_with_text_model(path)
    return folder


def _write_with_text_model(path: Path) -> None:
    state = load_file(path)
    has_prefix = any(name.startswith("text_model.") for name in state)
    if not has_prefix:
        part = path.with_suffix(".part")
        save_file({f"text_model.{name}": tensor for name, tensor in state.items()}, part, {"format": "pt"})
        part.replace(path)


def _chosen(base: BaseModel, method: Method) -> dict[str, nn.Parameter]:
    """The parameters of the denoiser that are trained: all, those of the targeted layers, or those of a pattern."""
    everything = dict(base.denoiser.named_parameters())
    if method.targets is None:
        return everything
    layers = denoiser_layers(base.denoiser, base.denoiser_name, method)
    if method.targets is Targets.PATTERN:
        # Norms too, which are no layers to put an adapter on.
        return {n: p for n, p in everything.items() if matches(f"{base.denoiser_name}.{n}", method.pattern)}
    return {name: p for name, p in everything.items() if name.rpartition(".")[0] in set(layers)}


def _like(data: Tensor, original: Tensor) -> Tensor:
    """`original` on the device and in the layout of `data`: another layout rounds otherwise."""
    moved = original.to(data.device)
    return moved if moved.stride() == data.stride() else torch.empty_like(data).copy_(moved)


@contextmanager
def _with_tensors(module: nn.Module, changed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """All floats of a module changed for a while; its own are back, the very same, afterwards."""
    tensors = [t for t in chain(module.parameters(), module.buffers()) if t.is_floating_point()]
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = changed(tensor.data)
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data
