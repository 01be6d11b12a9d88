"""Full fine-tuning: trains the model's own weights in fp32, and reloads the base where it is needed."""

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
from trainer.exchange.files import atomic_write
from trainer.models.base import load_base
from trainer.models.families.model import LoadedBase
from trainer.models.methods.checkpoint_file import FAMILIES, as_metadata, marks_of, write_checkpoint
from trainer.models.methods.layers import blocks_of, denoiser_layers, matches
from trainer.models.methods.readers import checkpoint_readers, readers_of
from trainer.models.methods.trained import ExportedFile, Weights
from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import Base, Method, MethodKind, Objective, Targets

#: Folder of the whole model in diffusers layout.
DIFFUSERS_FOLDER = "diffusers"


class FullTraining:
    """A `Trained`: weights of the denoiser, and all weights of the CLIP text encoders if those are trained."""

    def __init__(
        self,
        base: LoadedBase,
        parameters: Mapping[str, Mapping[str, nn.Parameter]],
        reload: Callable[[], LoadedBase],
        dtype: torch.dtype,
    ) -> None:
        self._base = base
        #: By module and name.
        self._parameters = parameters
        self._reload = reload
        self._dtype = dtype

    def widen(self) -> None:
        """Convert the trained weights to what they are trained in, if they still are as they are stored."""
        for name, part in self._parameters.items():
            for parameter in part.values():
                # Updates of 1e-6 are lost in half precision, unless it is rounded stochastically (`fused_backward`).
                parameter.data = parameter.data.to(self._dtype if name == self._base.denoiser_name else torch.float32)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {name: self._base.module(name) for name in self._parameters}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameters in self._parameters.items():
            yield from ((f"{name}.{own}", parameter) for own, parameter in parameters.items())

    @property
    def blocks(self) -> Sequence[str]:
        return [block for name, module in self.modules.items() for block in blocks_of(name, module)]

    def state(self) -> Weights:
        """Copy the weights: a schedule-free optimizer changes them in place before they are written."""
        return {
            name: {own: parameter.detach().to("cpu", copy=True).contiguous() for own, parameter in parameters.items()}
            for name, parameters in self._parameters.items()
        }

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: the weights do not fit this job.
        """
        given = {(name, own): t.shape for name, tensors in weights.items() for own, t in tensors.items()}
        expected = {(name, own): p.shape for name, mine in self._parameters.items() for own, p in mine.items()}
        for key in sorted(given.keys() | expected.keys()):
            if given.get(key) != expected.get(key):
                raise CheckpointError(
                    f"The weights do not fit this job (at {'.'.join(key)}).", "Start the job from the beginning."
                )
        self.widen()
        for name, parameters in self._parameters.items():
            for own, parameter in parameters.items():
                parameter.copy_(weights[name][own])

    def weights_from(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Raise CheckpointError: a whole model is a base."""
        raise CheckpointError(
            "A whole model does not start from a file.", "Set base.source to the model to start from."
        )

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Swap in the base's weights, reloaded from disk, for a while.

        The trained weights wait in host memory. On a GPU, one parameter at a time exists twice.
        """
        fresh = self._reload()
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for name, parameters in self._parameters.items():
                originals = dict(fresh.module(name).named_parameters())
                for own, parameter in parameters.items():
                    kept.append((parameter, parameter.data.to("cpu")))
                    parameter.data = _like(parameter.data, originals.pop(own).data)
            del fresh, originals
            yield
        finally:
            for parameter, trained in kept:
                parameter.data = trained.to(parameter.device)

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """Write the whole model in fp16: `diffusers/`, and for SD 1, 2 and XL one file for A1111 and ComfyUI."""
        path = write_folder(folder / DIFFUSERS_FOLDER, self._base)
        modules = (self._base.denoiser_name, *self._base.text_encoders)
        readers = readers_of(ExportFormat.DIFFUSERS, MethodKind.FULL, self._base.family)
        files = [ExportedFile(format=ExportFormat.DIFFUSERS, path=path, readers=readers, modules=modules)]
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
            readers = checkpoint_readers(self._base)
            files.append(ExportedFile(format=ExportFormat.CHECKPOINT, path=path, readers=readers, modules=modules))
        return files

    def export_epoch(self, folder: Path, name: str, epoch: int, metadata: Mapping[str, Any]) -> ExportedFile | None:
        """Return None: a whole model takes gigabytes; `training.keep_every_epochs` keeps checkpoints."""
        return None

    @contextmanager
    def as_exported(self) -> Iterator[None]:
        """Round the whole model to fp16, as in the files, for a while. A file that is loaded back must equal this model
        exactly; it differs from the trained one by the rounding. Run it by `widened_layers`."""
        modules = [self._base.denoiser, *self._base.clip_encoders.values()]
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(_with_tensors(module, lambda tensor: tensor.half()))
            yield


def attach_full(
    base: LoadedBase, method: Method, reload: Callable[[], LoadedBase], *, dtype: torch.dtype = torch.float32
) -> FullTraining:
    """Train the denoiser weights that `method` targets, and all weights of CLIP text encoders if it asks for that.

    They stay as they are stored until they are placed (`widen`): before, it is checked whether they will fit.

    Args:
        reload: Loads the untrained base again.
        dtype: Of the denoiser's trained weights; those of text encoders are fp32.

    Raises:
        BadSpecError: the targets match no layer.
    """
    parameters = {base.denoiser_name: _targeted(base, method)}
    if method.text_encoder:
        encoders = base.clip_encoders.items()
        parameters = {name: dict(encoder.named_parameters()) for name, encoder in encoders} | parameters
    for part in parameters.values():
        for parameter in part.values():
            parameter.requires_grad_(True)
    return FullTraining(base, parameters, reload, dtype)


def load_back(file: ExportedFile, revision_of: Base, objective: Objective) -> LoadedBase:
    """Load an exported model like any base; a single file takes its configuration from the folder beside it."""
    config = str(file.path.parent / DIFFUSERS_FOLDER) if file.format is ExportFormat.CHECKPOINT else None
    changes = {"source": str(file.path), "revision": None, "config": config, "vae": None}
    return load_base(revision_of.model_copy(update=changes), objective, as_stored=True)


def write_folder(folder: Path, base: LoadedBase) -> Path:
    """Write a whole model in diffusers layout, fp16, safetensors.

    transformers 5 dropped the prefix `text_model.` from CLIPTextModel's weights; older readers require it, so it is
    added.
    """
    pipeline = base.pipeline()
    with ExitStack() as stack:
        for module in (base.denoiser, base.vae, *base.text_encoders.values()):
            stack.enter_context(_with_tensors(module, lambda tensor: tensor.to("cpu", torch.float16).contiguous()))
        pipeline.save_pretrained(folder, safe_serialization=True)
    for name in base.text_encoders:
        path = folder / name / "model.safetensors"
        if name in base.clip_encoders and path.is_file():
            _write_with_text_model(path)
    return folder


def _write_with_text_model(path: Path) -> None:
    state = load_file(path)
    has_prefix = any(name.startswith("text_model.") for name in state)
    if not has_prefix:
        with atomic_write(path) as partial:
            save_file({f"text_model.{name}": tensor for name, tensor in state.items()}, partial, {"format": "pt"})


def _targeted(base: LoadedBase, method: Method) -> dict[str, nn.Parameter]:
    """The denoiser's trained parameters: all, those of the targeted layers, or those that match a pattern."""
    everything = dict(base.denoiser.named_parameters())
    if method.targets is None:
        return everything
    layers = denoiser_layers(base.denoiser, base.denoiser_name, method)
    if method.targets is Targets.PATTERN:
        # Norms too, unlike with adapters.
        return {n: p for n, p in everything.items() if matches(f"{base.denoiser_name}.{n}", method.pattern)}
    return {name: p for name, p in everything.items() if name.rpartition(".")[0] in set(layers)}


def _like(data: Tensor, original: Tensor) -> Tensor:
    """Return `original` on the device, in the dtype and with the strides of `data`; other strides round differently."""
    moved = original.to(data.device, data.dtype)
    return moved if moved.stride() == data.stride() else torch.empty_like(data).copy_(moved)


@contextmanager
def _with_tensors(module: nn.Module, changed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace all floating-point tensors of a module for a while, then restore the same objects."""
    tensors = [t for t in chain(module.parameters(), module.buffers()) if t.is_floating_point()]
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = changed(tensor.data)
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data
