"""Predicts the memory of a training before it starts, by running it on fake tensors, which have a shape only.

Nothing is computed and no memory is taken; it takes 5 s of CPU for a step of SD 1.5. Not predicted: the libraries
themselves (0.6 GB on a CPU, 0.5 to 1 GB on a GPU), what an operation needs within itself (a tenth of a step on a CPU),
and what the allocator of a GPU leaves unused between its blocks.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.device import autocast, dtype_of
from trainer.models.families.model import LoadedBase, encode_latents
from trainer.models.quantization import BYTES_PER_WEIGHT, is_quantizable
from trainer.protocol.settings import Quantization
from trainer.protocol.training_settings import Precision

#: Tokens of a chunk of a caption, and T5's.
_CHUNK_TOKENS, _T5_TOKENS = 77, 256


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """What a training holds in memory at its peak, in bytes."""

    #: All weights that stay there: frozen ones in the precision of the training, trained ones as they are.
    weights: int
    #: The optimizer's state, and averages of the weights.
    optimizer: int
    #: Gradients, and what the forward pass keeps for the backward pass.
    step: int
    #: In place of a step: drawing samples, with the VAE in fp32.
    sampling: int = 0
    #: Before the weights are there: the VAE in fp32 while it encodes an image, or T5.
    encoding: int = 0

    @property
    def total(self) -> int:
        return max(self.encoding, self.weights + self.optimizer + max(self.step, self.sampling))


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What the memory of a training depends on, beside the model and the method."""

    precision: Precision
    #: Side of the square images, px.
    resolution: int
    #: Images in a step at once.
    images: int = 1
    #: What is kept for each trained weight: the optimizer's state, and averages.
    state_bytes: float = 0.0
    #: Activations are computed again in the backward pass instead of kept.
    is_checkpointed: bool = False
    #: Chunks of 75 tokens in the longest caption.
    chunks: int = 1
    #: A step has several micro-batches: all gradients are there while the next one runs.
    accumulates: bool = False
    #: Each gradient is freed as soon as its weight is changed.
    steps_in_backward: bool = False
    quantization: Quantization | None = None
    #: Of the denoiser's trained weights, once they are placed.
    trained_dtype: torch.dtype = torch.float32


def predict_memory(
    base: LoadedBase, trained: Mapping[str, nn.Parameter], settings: StepSettings, known: MemoryNeed | None = None
) -> MemoryNeed:
    """Predict the memory of a training, without samples: see `predict_sampling`.

    Args:
        base: With a method attached, at any precision; it is not changed.
        trained: The trained parameters by name.
        known: The prediction for the same step with other weights beside it; its peaks are taken over.
    """
    ids = {id(parameter) for parameter in trained.values()}
    own = {id(parameter) for parameter in base.denoiser.parameters()}
    weights = _bytes_of_denoiser(base.denoiser, ids, settings)
    if not ids <= own:
        weights += sum(4 * p.numel() for encoder in base.clip_encoders.values() for p in encoder.parameters())
    number = sum(parameter.numel() for parameter in trained.values())
    if known is None:
        step = _peak_of_step(base, trained, settings, trains_encoders=not ids <= own)
        known = MemoryNeed(weights=0, optimizer=0, step=step, encoding=_peak_of_encoding(base, settings.resolution))
    return replace(known, weights=int(weights), optimizer=int(number * settings.state_bytes))


def predict_sampling(base: LoadedBase, settings: StepSettings, *, images: int) -> int:
    """Predict what drawing `images` at once holds beside the weights: the denoiser with guidance, or the VAE."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        denoiser, vae = _as_fake(mode, base.denoiser, dtype_of(settings.precision)), _as_fake(mode, base.vae)
        fake = _with_parts(base, {base.denoiser_name: denoiser})
        noisy_BCHW, timestep_B, text = _inputs(base, settings, images=2 * images)
        with _LiveBytes(denoiser) as guided, autocast(torch.device("cpu"), settings.precision):
            fake.predict(noisy_BCHW, timestep_B, text)
        # One image at a time, as `draw_samples` does.
        with _LiveBytes(vae) as decoded:
            # Of the class: that of the module may be replaced by one of the original (`keep_vae_in_fp32`).
            type(vae).decode(vae, noisy_BCHW[:1])
    return 4 * _weights_of(base.vae) + int(max(guided.peak, decoded.peak))


def _peak_of_encoding(base: LoadedBase, resolution: int) -> int:
    """Return the memory of an image's encoding, or of T5 if that is more."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        vae = _as_fake(mode, base.vae)
        with _LiveBytes(vae) as live:
            encode_latents(vae, torch.empty(1, 3, resolution, resolution))
    t5 = base.text_encoders.get("text_encoder_3")
    t5_bytes = 0 if t5 is None else sum(p.numel() * p.element_size() for p in t5.parameters())
    return max(4 * _weights_of(base.vae) + int(live.peak), t5_bytes)


def _peak_of_step(
    base: LoadedBase, trained: Mapping[str, nn.Parameter], settings: StepSettings, *, trains_encoders: bool
) -> int:
    """Run forward and backward on fake tensors; returns the peak of what they hold beside the weights."""
    ids, gradients = {id(parameter) for parameter in trained.values()}, 0
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        wide = dtype_of(settings.precision)
        parts = {base.denoiser_name: _as_fake(mode, base.denoiser, wide, ids, settings.trained_dtype)}
        if trains_encoders:
            parts |= {name: _as_fake(mode, each, torch.float32, ids) for name, each in base.clip_encoders.items()}
        for name, part in parts.items():
            part.train()
            if settings.is_checkpointed:
                enable = "enable_gradient_checkpointing" if name == base.denoiser_name else None
                getattr(part, enable or "gradient_checkpointing_enable")()
        of_fakes = [parameter for part in parts.values() for parameter in part.parameters() if parameter.requires_grad]
        for parameter in of_fakes:
            if settings.accumulates:
                parameter.grad = torch.empty_like(parameter)
                gradients += parameter.numel() * parameter.element_size()
            if settings.steps_in_backward:
                parameter.register_post_accumulate_grad_hook(_free_gradient)
        fake = _with_parts(base, parts)
        noisy_BCHW, timestep_B, text = _inputs(base, settings, images=settings.images)
        with _LiveBytes(*parts.values(), known=[p.grad for p in of_fakes if p.grad is not None]) as live:
            with autocast(torch.device("cpu"), settings.precision):
                if trains_encoders:
                    words = "a " * (75 * settings.chunks)
                    text = {**text, **fake.encode_text([words] * settings.images)}
                prediction_BCHW = fake.predict(noisy_BCHW, timestep_B, text)
            loss = prediction_BCHW.float().square().mean()
            if loss.requires_grad:
                torch.autograd.backward(loss)
    return gradients + int(live.peak)


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _as_fake(
    mode: FakeTensorMode,
    module: Any,
    dtype: torch.dtype = torch.float32,
    trained: Iterable[int] = (),
    trained_dtype: torch.dtype = torch.float32,
) -> Any:
    """Copy a module without its numbers; frozen weights get `dtype`, and buffers fp32."""
    ids, fakes = set(trained), dict[int, Any]()

    def fake_of(tensor: Tensor, own_dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=own_dtype)

    # Made here, since copying real ones by `FakeCopyMode` takes a third of a prediction.
    with mode:
        for parameter in module.parameters():
            trains = id(parameter) in ids
            fake = fake_of(parameter, trained_dtype if trains else dtype)
            fakes[id(parameter)] = nn.Parameter(fake, requires_grad=trains)
        for buffer in module.buffers():
            fakes[id(buffer)] = fake_of(buffer, torch.float32 if buffer.is_floating_point() else buffer.dtype)
    with FakeCopyMode(mode):
        return copy.deepcopy(module, fakes)


def _with_parts(base: LoadedBase, parts: Mapping[str, Any]) -> LoadedBase:
    """Return the base with some of its modules replaced."""
    architecture: Any = base.architecture
    changes = {name: part for name, part in parts.items() if hasattr(architecture, name)}
    encoders = {name: part for name, part in parts.items() if name not in changes}
    if encoders:
        changes["text_encoders"] = {**base.text_encoders, **encoders}
    return replace(base, architecture=replace(architecture, **changes))


def _inputs(base: LoadedBase, settings: StepSettings, *, images: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    side, config = settings.resolution // base.vae_scale, base.denoiser.config
    noisy_BCHW = torch.empty(images, config.in_channels, side, side)
    timestep_B = torch.zeros(images, dtype=torch.long)
    if base.denoiser_name == "transformer":
        pooled = config.pooled_projection_dim
        text = {"caption_BTD": torch.empty(images, _CHUNK_TOKENS + _T5_TOKENS, config.joint_attention_dim)}
    else:
        text = {"caption_BTD": torch.empty(images, settings.chunks * _CHUNK_TOKENS, config.cross_attention_dim)}
        widths = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
        pooled = 0 if None in widths else widths[0] - 6 * widths[1]
    return noisy_BCHW, timestep_B, text | ({"pooled_BD": torch.empty(images, pooled)} if pooled else {})


def _bytes_of_denoiser(denoiser: nn.Module, trained: set[int], settings: StepSettings) -> float:
    """Return the bytes of all weights as they are placed; a quantized layer is widened while it runs."""
    wide, kind = dtype_of(settings.precision).itemsize, settings.quantization
    total, widest = 0.0, 0
    for name, layer in denoiser.named_modules():
        for key, parameter in layer.named_parameters(recurse=False):
            count = parameter.numel()
            if id(parameter) in trained:
                total += settings.trained_dtype.itemsize * count
            elif kind is not None and key == "weight" and is_quantizable(name, layer):
                total, widest = total + BYTES_PER_WEIGHT[kind] * count, max(widest, count)
            else:
                total += wide * count
    # In fp32 whatever the precision: SD 3's table of positions takes 0.2 GB.
    return total + wide * widest + 4 * sum(each.numel() for each in denoiser.buffers() if each.is_floating_point())


def _weights_of(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Counts the bytes of the storages that operations make, while they live; not those of modules and `known`."""

    def __init__(self, *modules: nn.Module, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self._known = [tensor.untyped_storage() for tensor in (*tensors, *known)]
        self._seen = {id(storage) for storage in self._known}
        self._bytes = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._bytes -= size
