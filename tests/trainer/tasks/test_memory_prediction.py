"""The predicted memory is what torch's allocator hands out, for all that a job does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainer.random_base import make_random_sdxl, store_in_half
from trainer.models.base import load_base
from trainer.models.families.model import LoadedBase
from trainer.models.methods.adapters import attach_adapter
from trainer.protocol.settings import Base, Method, Quantization, Samples, Targets
from trainer.protocol.training_settings import Precision
from trainer.tasks.drawing import draw_samples, plan_samples
from trainer.tasks.memory_prediction import MemoryNeed, StepSettings, predict_memory, predict_sampling

STEP = StepSettings(precision=Precision.FP32, resolution=64, images=4)


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return load_base(Base())


@pytest.fixture(scope="module")
def need(base: LoadedBase) -> MemoryNeed:
    """A prediction takes seconds of CPU."""
    return predict_memory(base, {}, STEP)


def allocated(work: Callable[[], object]) -> int:
    """Return the peak of what torch's allocator hands out while `work` runs."""
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        work()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def text_of(base: LoadedBase, images: int) -> dict[str, torch.Tensor]:
    return {"caption_BTD": torch.randn(images, 77, base.denoiser.config.cross_attention_dim)}


def test_samples_and_encoding_are_predicted(base: LoadedBase, need: MemoryNeed) -> None:
    vae_bytes = sum(4 * parameter.numel() for parameter in base.vae.parameters())
    side = base.resolution // base.vae_scale
    noisy, timestep, text = torch.randn(8, 4, side, side), torch.zeros(8, dtype=torch.long), text_of(base, 8)
    guided = allocated(lambda: base.predict(noisy, timestep, text))
    decoded = allocated(lambda: base.vae.decode(noisy[:1]))
    encoded = allocated(lambda: base.vae.encode(torch.randn(1, 3, 64, 64)))

    assert predict_sampling(base, STEP, images=4) - vae_bytes == pytest.approx(max(guided, decoded), rel=0.15)
    assert need.encoding - vae_bytes == pytest.approx(encoded, rel=0.15)


def all_trained(base: LoadedBase) -> dict[str, nn.Parameter]:
    return dict(base.denoiser.named_parameters())


@pytest.mark.slow
def test_gradients_are_there_when_a_step_has_several_parts_and_gone_when_it_changes_weights(base: LoadedBase) -> None:
    trained = all_trained(base)
    gradients = sum(4 * parameter.numel() for parameter in trained.values())
    # With small activations, so that the gradients are most of it.
    step = replace(STEP, images=1, is_checkpointed=True)
    once = predict_memory(base, trained, step).step
    assert once == pytest.approx(gradients, rel=0.2)
    again = predict_memory(base, trained, replace(step, accumulates=True)).step
    assert again > once + 0.05 * gradients
    assert predict_memory(base, trained, replace(step, steps_in_backward=True)).step < 0.5 * once


def test_long_captions_and_fewer_bits_count(base: LoadedBase, need: MemoryNeed) -> None:
    assert predict_memory(base, {}, replace(STEP, chunks=3)).step > need.step
    # Weights do not depend on the step.
    int8, nf4 = (
        predict_memory(base, {}, replace(STEP, quantization=kind), need).weights
        for kind in (Quantization.INT8, Quantization.NF4)
    )
    assert nf4 < int8 < 0.5 * need.weights


@pytest.fixture(scope="module")
def stored_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_random_sdxl(tmp_path_factory.mktemp("sdxl") / "model")
    store_in_half(folder)
    return folder


@pytest.mark.slow
def test_trained_text_encoders_are_part_of_the_step(stored_sdxl: Path) -> None:
    base = load_base(Base(source=str(stored_sdxl)), as_stored=True)
    step = StepSettings(precision=Precision.BF16, resolution=64, images=4)

    def need(*, text_encoder: bool) -> MemoryNeed:
        fresh = load_base(Base(source=str(stored_sdxl)), as_stored=True)
        method = Method(rank=4, alpha=4, targets=Targets.ATTENTION, text_encoder=text_encoder)
        return predict_memory(fresh, dict(attach_adapter(fresh, method).named_parameters()), step)

    alone, both = need(text_encoder=False), need(text_encoder=True)
    encoders = sum(4 * p.numel() for encoder in base.clip_encoders.values() for p in encoder.parameters())
    assert both.weights > alone.weights + encoders
    assert both.step > alone.step
    # Its VAE decodes by a function of its own, in fp32 from weights in half precision.
    assert predict_sampling(base, step, images=1) > 0


def test_the_total_is_the_largest_of_what_follows_one_another() -> None:
    need = MemoryNeed(weights=5, optimizer=1, step=2, sampling=3, encoding=4)
    assert need.total == 9
    assert replace(need, encoding=20).total == 20
    assert replace(need, step=7).total == 13


def test_trained_weights_count_as_they_are_trained_and_tables_in_fp32(stored_sdxl: Path) -> None:
    base = load_base(Base(source=str(stored_sdxl)), as_stored=True)
    step = StepSettings(precision=Precision.BF16, resolution=64)
    trained, number = all_trained(base), sum(p.numel() for p in base.denoiser.parameters())
    # Stored in fp16: what counts is not what they are now.
    assert next(base.denoiser.parameters()).dtype is torch.float16
    # What the step takes is of no matter here, and takes seconds to predict.
    known = MemoryNeed(weights=0, optimizer=0, step=1)

    assert predict_memory(base, trained, step, known).weights == 4 * number
    halved = predict_memory(base, trained, replace(step, trained_dtype=torch.bfloat16), known)
    assert halved.weights == 2 * number
    base.denoiser.register_buffer("table", torch.zeros(1000, dtype=torch.float16))
    assert predict_memory(base, trained, step, halved) == replace(halved, weights=4 * number + 4000)


def test_samples_are_decoded_one_at_a_time(base: LoadedBase) -> None:
    decoded: list[int] = []
    handle = base.vae.decoder.register_forward_pre_hook(lambda _decoder, inputs: decoded.append(len(inputs[0])))
    captions = text_of(base, 1)
    try:
        draw_samples(
            base,
            plan_samples(["a"], Samples(steps=1)),
            Samples(steps=1),
            resolution=64,
            embed=lambda texts: {"caption_BTD": captions["caption_BTD"].repeat(len(texts), 1, 1)},
            device=torch.device("cpu"),
        )
    finally:
        handle.remove()

    assert decoded == [1, 1, 1, 1]
