"""Predicts the memory of a training before it starts, by running a step on fake tensors, which have a shape only.

Nothing is computed and no memory is taken; it takes 5 s of CPU for SD 1.5. Not predicted: the libraries themselves
(0.6 GB on a CPU, 0.5 to 1 GB on a GPU), and what the allocator of a GPU leaves unused between its blocks.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.device import autocast, dtype_of
from trainer.models.families.model import LoadedBase
from trainer.protocol.training_settings import Precision


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """What a training holds in memory at its peak, in bytes."""

    #: All weights that stay there: frozen ones in the precision of the training, trained ones in fp32.
    weights: int
    #: The optimizer's state, and averages of the weights.
    optimizer: int
    #: Gradients, and what the forward pass keeps for the backward pass.
    step: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.step


def predict_memory(
    base: LoadedBase,
    trained: Mapping[str, nn.Parameter],
    *,
    precision: Precision,
    resolution: int,
    images: int,
    state_bytes: float,
    is_checkpointed: bool = False,
) -> MemoryNeed:
    """Predict the memory of a step with `images` square images of `resolution` px at once.

    Args:
        base: With a method attached, at any precision; it is not changed.
        trained: The trained parameters by name.
        state_bytes: What is kept for each trained weight: the optimizer's state, and averages.
        is_checkpointed: Activations are computed again in the backward pass instead of kept.
    """
    ids = {id(parameter) for parameter in trained.values()}
    frozen_bytes = torch.empty((), dtype=dtype_of(precision)).element_size()
    weights = sum(p.numel() * (4 if id(p) in ids else frozen_bytes) for p in base.denoiser.parameters())
    own = {id(parameter) for parameter in base.denoiser.parameters()}
    encoders = sum(p.numel() for p in trained.values() if id(p) not in own)
    if encoders:
        weights += sum(4 * p.numel() for encoder in base.clip_encoders.values() for p in encoder.parameters())
    number = sum(parameter.numel() for parameter in trained.values())
    step = _peak_of_step(base, ids, precision, resolution, images, is_checkpointed=is_checkpointed)
    return MemoryNeed(weights=weights, optimizer=int(number * state_bytes), step=step + 4 * encoders)


def _peak_of_step(
    base: LoadedBase, trained: set[int], precision: Precision, resolution: int, images: int, *, is_checkpointed: bool
) -> int:
    """Run forward and backward on fake tensors; returns the peak of what they hold beside the weights."""
    is_trained = [id(parameter) in trained for parameter in base.denoiser.parameters()]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with FakeCopyMode(mode):
            denoiser = copy.deepcopy(base.denoiser)
        for parameter, trains in zip(denoiser.parameters(), is_trained, strict=True):
            parameter.data = parameter.data.to(torch.float32 if trains else dtype_of(precision))
            parameter.requires_grad_(trains)
        denoiser.train()
        if is_checkpointed:
            denoiser.enable_gradient_checkpointing()
        fake = replace(base, architecture=replace(base.architecture, **{base.denoiser_name: denoiser}))  # type: ignore[type-var]
        noisy_BCHW, timestep_B, text = _inputs(base, resolution, images)
        with _LiveBytes([*denoiser.parameters(), *denoiser.buffers()]) as live:
            with autocast(torch.device("cpu"), precision):
                prediction_BCHW = fake.predict(noisy_BCHW, timestep_B, text)
            loss = prediction_BCHW.float().square().mean()
            if loss.requires_grad:
                torch.autograd.backward(loss)
    peak: int = live.peak
    return peak


def _inputs(base: LoadedBase, resolution: int, images: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    side, config = resolution // base.vae_scale, base.denoiser.config
    noisy_BCHW = torch.empty(images, config.in_channels, side, side)
    timestep_B = torch.zeros(images, dtype=torch.long)
    if base.denoiser_name == "transformer":
        pooled = config.pooled_projection_dim
        text = {"caption_BTD": torch.empty(images, 77 + 256, config.joint_attention_dim)}
    else:
        text = {"caption_BTD": torch.empty(images, 77, config.cross_attention_dim)}
        widths = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
        pooled = 0 if None in widths else widths[0] - 6 * widths[1]
    return noisy_BCHW, timestep_B, text | ({"pooled_BD": torch.empty(images, pooled)} if pooled else {})


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Counts the bytes of the storages that operations make, while they live; those of `known` tensors do not count."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen = {id(storage) for storage in self._known}
        self._bytes = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
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
