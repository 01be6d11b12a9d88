"""The shipped tiny Stable Diffusion: its size, loading it with diffusers, and prompt adherence."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

FOLDER = Path(__file__).parents[2] / "trainer" / "models" / "tiny"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def _samples(pipeline: StableDiffusionPipeline, prompt: str, count: int = 3) -> npt.NDArray[np.float32]:
    """Draw images (count, 64, 64, 3) in 0..1, from the same noise for each prompt."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    output = pipeline(
        [prompt] * count, num_inference_steps=15, guidance_scale=4.0, generator=generators, output_type="np"
    )
    images: npt.NDArray[np.float32] = output.images
    return images


def test_the_folder_is_under_20_mb() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 20e6


def test_it_loads_as_a_stable_diffusion_pipeline(pipeline: StableDiffusionPipeline) -> None:
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    assert pipeline.safety_checker is None
    assert pipeline.feature_extractor is None
    assert pipeline.vae_scale_factor * pipeline.unet.config.sample_size == 64
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}


def test_the_text_encoder_has_the_prefix_that_older_readers_need() -> None:
    with safe_open(FOLDER / "text_encoder" / "model.safetensors", "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118


@pytest.mark.slow
def test_the_color_in_the_prompt_is_the_color_in_the_image(pipeline: StableDiffusionPipeline) -> None:
    red = _samples(pipeline, "a big red circle in the middle on a white background")[:, 24:40, 24:40].mean(
        axis=(0, 1, 2)
    )
    blue = _samples(pipeline, "a big blue circle in the middle on a white background")[:, 24:40, 24:40].mean(
        axis=(0, 1, 2)
    )
    assert red[0] - blue[0] > 0.3
    assert blue[2] - red[2] > 0.3


@pytest.mark.slow
def test_the_background_in_the_prompt_is_the_background_in_the_image(pipeline: StableDiffusionPipeline) -> None:
    white = _samples(pipeline, "a small red star in the middle on a white background")[:, :, :6].mean()
    black = _samples(pipeline, "a small red star in the middle on a black background")[:, :, :6].mean()
    assert white - black > 0.4


@pytest.mark.slow
@pytest.mark.xfail(
    reason="the shipped weights do not distinguish left from right reliably; recipes/tiny/README.md", strict=False
)
def test_the_position_in_the_prompt_is_the_position_in_the_image(pipeline: StableDiffusionPipeline) -> None:
    def center_x(prompt: str) -> float:
        ink = 1 - _samples(pipeline, prompt).mean(axis=(0, -1))
        ink = np.clip(ink - np.median(ink), 0, None)
        return float((ink.sum(axis=0) * np.arange(64)).sum() / ink.sum())

    left, right = (center_x(f"a black square at the {side} on a white background") for side in ("left", "right"))
    assert left < 28
    assert right > 36
