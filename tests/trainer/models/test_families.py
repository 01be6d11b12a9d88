"""Each family does what its diffusers pipeline does, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.random_base import make_random_base, make_random_sd3, make_random_sdxl
from trainer.errors import BadSpecError, MissingModelError
from trainer.models.base import BaseModel, Family, load_base
from trainer.protocol.settings import Base, Objective, Prediction

Load = Callable[..., BaseModel]

_MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd1": make_random_base,
    "sdxl": make_random_sdxl,
    "sd3": make_random_sd3,
    "sd3 with t5": lambda folder: make_random_sd3(folder, has_t5=True),
}
_CAPTIONS = ["a red egg, on a table", ""]
_CALL = {"height": 64, "width": 32, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name.replace(" ", "-")) for name, make in _MAKERS.items()}


@pytest.fixture(params=_MAKERS)
def load(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Load:
    """Loads each family in turn."""

    def load_it(clip_skip: int = 1, **objective: Any) -> BaseModel:
        source = str(folders[request.param])
        return load_base(Base(source=source, clip_skip=clip_skip), Objective(**objective))

    return load_it


def latents_like(base: BaseModel, seed: int = 0) -> Tensor:
    shape = (2, base.denoiser.config.in_channels, 16, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quiet_pipeline(base: BaseModel) -> Any:
    pipeline = base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encoded_by_diffusers(base: BaseModel, clip_skip: int | None) -> dict[str, Tensor]:
    pipeline = base.pipeline()
    if base.family is Family.SD1:
        # diffusers 0.42 reads `text_model`, which transformers' bare text model has no longer.
        vars(base.text_encoder)["text_model"] = base.text_encoder
        caption_BTD, _ = pipeline.encode_prompt(_CAPTIONS, "cpu", 1, False, clip_skip=clip_skip)
        return {"caption_BTD": caption_BTD}
    prompts = {"prompt": _CAPTIONS, "prompt_2": None}
    if base.family is Family.SD3:
        prompts["prompt_3"] = None
    caption_BTD, _, pooled_BD, _ = pipeline.encode_prompt(
        **prompts, do_classifier_free_guidance=False, clip_skip=clip_skip
    )
    return {"caption_BTD": caption_BTD, "pooled_BD": pooled_BD}


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_captions_are_read_as_the_pipeline_reads_them(load: Load, clip_skip: int) -> None:
    base = load(clip_skip=clip_skip)

    text = base.encode_text(_CAPTIONS)

    expected = encoded_by_diffusers(base, None if clip_skip == 1 else clip_skip - 1)
    assert text.keys() == expected.keys()
    assert all(torch.equal(text[name], expected[name]) for name in text)


def test_clip_skip_reads_another_layer(load: Load) -> None:
    last, earlier = (load(clip_skip=skip).encode_text(_CAPTIONS)["caption_BTD"] for skip in (1, 2))

    assert last.shape == earlier.shape
    assert not torch.equal(last, earlier)


def test_a_clip_skip_beyond_the_first_layer_is_refused(load: Load) -> None:
    with pytest.raises(BadSpecError, match="Take 2 at most"):
        load(clip_skip=3)


def test_the_denoiser_is_called_as_the_pipeline_calls_it(load: Load) -> None:
    base = load()
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(_module: Any, positional: Any, named: dict[str, Any], output: Any) -> None:
        sample = positional[0] if positional else named["hidden_states"]
        timestep = positional[1] if len(positional) > 1 else named["timestep"]
        calls.append((sample, timestep.reshape(-1), output[0]))

    hook = base.denoiser.register_forward_hook(record, with_kwargs=True)
    quiet_pipeline(base)(_CAPTIONS[0], guidance_scale=1.0, output_type="latent", **_CALL)
    hook.remove()

    text = base.encode_text(_CAPTIONS[:1])
    assert len(calls) == 3
    with torch.no_grad():
        for sample, timestep, output in calls:
            # As the denoiser reads it: the steps of a sampler are not all steps of the training's table.
            assert torch.equal(base.architecture.predict(sample, timestep, text), output)


def test_pictures_from_embeddings_are_those_from_the_text(load: Load) -> None:
    base = load()
    prompt, negative = ["a red egg", "a blue egg"], ["grey", ""]

    def draw(**arguments: Any) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        options = {"guidance_scale": 4.0, "output_type": "np", "generator": generators, **_CALL}
        return quiet_pipeline(base)(**arguments, **options).images

    with torch.no_grad():
        embedded = base.sampling_arguments(base.encode_text(prompt), base.encode_text(negative))

    from_text = draw(prompt=prompt, negative_prompt=negative)
    assert np.array_equal(draw(**embedded), from_text)
    assert from_text.shape == (2, 64, 32, 3)
    assert from_text.std() > 0


def test_pictures_are_drawn_by_a_quick_sampler_of_the_pipelines_own(load: Load) -> None:
    base = load()

    scheduler = base.pipeline().scheduler
    scheduler.set_timesteps(3)

    flow, other = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
    assert type(scheduler).__name__ == (flow if base.family is Family.SD3 else other)
    # The timesteps of a drawing are not those of the next one, or of the training.
    assert len(base.noise_schedule.timesteps) == 1000
    assert len(base.pipeline().scheduler.timesteps) == 1000


def test_pictures_are_encoded_as_the_pipeline_decodes_them(load: Load) -> None:
    base = load()
    pixels_BCHW = torch.rand((2, 3, 64, 32), generator=torch.Generator().manual_seed(1)) * 2 - 1

    latents_BCHW = base.encode_pixels(pixels_BCHW)

    mode_BCHW = base.vae.encode(pixels_BCHW).latent_dist.mode()
    config = base.vae.config
    # The pipelines' own way back: SD 3's adds the shift, the others have none.
    back_BCHW = latents_BCHW / config.scaling_factor + (config.shift_factor or 0.0)
    assert torch.allclose(back_BCHW, mode_BCHW, atol=1e-6)
    assert latents_BCHW.shape == (2, base.denoiser.config.in_channels, 16, 8)


def alpha_bars(*, is_rescaled: bool = False) -> list[float]:
    """The table of SD 1, 2 and XL, one product at a time in double precision."""
    roots = [0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999 for t in range(1000)]
    table, product = [], 1.0
    for root in roots:
        product *= 1 - root * root
        table.append(product)
    if is_rescaled:
        # Lin et al. 2023, algorithm 1: sqrt(alpha_bar) shifted to end at 0 and scaled to begin as before.
        square_roots = [value**0.5 for value in table]
        first, last = square_roots[0], square_roots[-1]
        table = [((value - last) * first / (first - last)) ** 2 for value in square_roots]
    return table


def expected_shares(base: BaseModel, timestep: int, *, is_rescaled: bool = False) -> tuple[float, float]:
    """What picture and noise count at a timestep."""
    if base.family is Family.SD3:
        share = (timestep + 1) / 1000
        sigma = 3 * share / (1 + 2 * share)
        return 1 - sigma, sigma
    alpha_bar = alpha_bars(is_rescaled=is_rescaled)[timestep]
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def test_noise_targets_and_snr_are_the_formulas(load: Load) -> None:
    base = load()
    latents_BCHW, noise_BCHW = latents_like(base), latents_like(base, 1)

    for timestep in (0, 17, 500, 998):
        timestep_B = torch.full((2,), timestep)
        picture, noise = expected_shares(base, timestep)
        noisy_BCHW = base.add_noise(latents_BCHW, noise_BCHW, timestep_B)
        assert torch.allclose(noisy_BCHW, picture * latents_BCHW + noise * noise_BCHW, atol=1e-4)
        target_BCHW = noise_BCHW - latents_BCHW if base.family is Family.SD3 else noise_BCHW
        assert torch.equal(base.target(latents_BCHW, noise_BCHW, timestep_B), target_BCHW)
        assert base.snr(timestep_B).tolist() == pytest.approx(2 * [(picture / noise) ** 2], rel=1e-3)
    assert base.schedule_steps == 1000


def test_each_picture_has_its_own_timestep(load: Load) -> None:
    base = load()
    latents_BCHW, noise_BCHW = latents_like(base), latents_like(base, 1)

    together = base.add_noise(latents_BCHW, noise_BCHW, torch.tensor([10, 900]))

    for place, timestep in enumerate((10, 900)):
        one = slice(place, place + 1)
        alone = base.add_noise(latents_BCHW[one], noise_BCHW[one], torch.tensor([timestep]))
        assert torch.equal(together[one], alone)


def test_a_flow_model_is_told_its_shifted_time(folders: dict[str, Path]) -> None:
    base = load_base(Base(source=str(folders["sd3"])))
    told: list[Tensor] = []
    hook = base.denoiser.register_forward_pre_hook(
        lambda _module, _positional, named: told.append(named["timestep"]), with_kwargs=True
    )

    base.predict(latents_like(base), torch.tensor([0, 999]), base.encode_text(_CAPTIONS))
    hook.remove()

    assert told[0].tolist() == pytest.approx([1000 * 3 * 0.001 / 1.002, 1000])


def test_the_velocity_is_the_formula(folders: dict[str, Path]) -> None:
    base = load_base(Base(source=str(folders["sdxl"])), Objective(prediction=Prediction.V_PREDICTION))
    latents_BCHW, noise_BCHW = latents_like(base), latents_like(base, 1)

    target_BCHW = base.target(latents_BCHW, noise_BCHW, torch.full((2,), 500))

    picture, noise = expected_shares(base, 500)
    assert base.prediction_type == "v_prediction"
    assert base.sampler.config.prediction_type == "v_prediction"
    assert torch.allclose(target_BCHW, picture * noise_BCHW - noise * latents_BCHW, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_zero_terminal_snr_ends_in_noise_alone(folders: dict[str, Path], family: str) -> None:
    objective = Objective(prediction=Prediction.V_PREDICTION, zero_terminal_snr=True)
    base = load_base(Base(source=str(folders[family])), objective)
    latents_BCHW, noise_BCHW = latents_like(base), latents_like(base, 1)
    last_B, middle_B = torch.full((2,), 999), torch.full((2,), 500)

    assert base.noise_schedule.alphas_cumprod[-1] == 0
    assert base.snr(last_B).tolist() == [0, 0]
    assert torch.equal(base.add_noise(latents_BCHW, noise_BCHW, last_B), noise_BCHW)
    # With nothing left of the picture the velocity is the picture, the other way round.
    assert torch.equal(base.target(latents_BCHW, noise_BCHW, last_B), -latents_BCHW)
    picture, noise = expected_shares(base, 500, is_rescaled=True)
    noisy_BCHW = base.add_noise(latents_BCHW, noise_BCHW, middle_B)
    assert torch.allclose(noisy_BCHW, picture * latents_BCHW + noise * noise_BCHW, atol=1e-4)


def test_the_sampler_finds_the_picture_from_noise_alone(folders: dict[str, Path]) -> None:
    """A denoiser that knows the one picture there is, on the rescaled schedule, from its very last step."""
    objective = Objective(prediction=Prediction.V_PREDICTION, zero_terminal_snr=True)
    base = load_base(Base(source=str(folders["sd1"])), objective)
    sampler = base.pipeline().scheduler
    picture_BCHW, state_BCHW = latents_like(base), latents_like(base, 1)
    sampler.set_timesteps(8)
    assert int(sampler.timesteps[0]) == 999

    for timestep in sampler.timesteps:
        picture, noise = expected_shares(base, int(timestep), is_rescaled=True)
        noise_BCHW = (state_BCHW - picture * picture_BCHW) / noise
        velocity_BCHW = picture * noise_BCHW - noise * picture_BCHW
        state_BCHW = sampler.step(velocity_BCHW, timestep, state_BCHW).prev_sample

    assert torch.allclose(state_BCHW, picture_BCHW, atol=1e-2)


def test_pictures_of_zero_terminal_snr_are_drawn_with_rescaled_guidance(folders: dict[str, Path]) -> None:
    objective = Objective(prediction=Prediction.V_PREDICTION, zero_terminal_snr=True)
    base = load_base(Base(source=str(folders["sdxl"])), objective)
    text = {name: tensor.detach() for name, tensor in base.encode_text(_CAPTIONS).items()}

    arguments = base.sampling_arguments(text, text)
    images = quiet_pipeline(base)(**arguments, output_type="np", guidance_scale=5.0, **_CALL).images

    assert arguments["guidance_rescale"] == 0.7
    assert np.isfinite(images).all()


@pytest.mark.parametrize("setting", [{"prediction": "epsilon"}, {"zero_terminal_snr": True}])
def test_a_flow_model_refuses_settings_of_noise_schedules(folders: dict[str, Path], setting: dict[str, Any]) -> None:
    with pytest.raises(BadSpecError, match=rf"objective\.{next(iter(setting))} is for bases with a noise schedule"):
        load_base(Base(source=str(folders["sd3"])), Objective.model_validate(setting))


def test_gradients_reach_every_text_encoder(load: Load) -> None:
    base = load()
    first_layers = {}
    for name, encoder in base.text_encoders.items():
        first_layers[name] = next(p for n, p in encoder.named_parameters() if "layers.0" in n or "block.0" in n)
        first_layers[name].requires_grad_(True)

    text = base.encode_text(_CAPTIONS)
    base.predict(latents_like(base), torch.tensor([10, 900]), text).square().mean().backward()

    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in first_layers.values())


def test_timesteps_are_drawn_as_the_family_is_trained(load: Load) -> None:
    base = load()
    drawn = np.array([base.draw_timestep(seed) for seed in range(4000)])

    share_in_the_middle = ((drawn >= 250) & (drawn < 750)).mean()

    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert drawn.mean() == pytest.approx(499.5, abs=25)
    # P(|z| < log 3) of a standard normal; five deviations of a share of 4000 draws are 0.04.
    assert share_in_the_middle == pytest.approx(0.728 if base.family is Family.SD3 else 0.5, abs=0.04)
    assert base.draw_timestep(5) == drawn[5]


def test_the_pooled_caption_is_read_at_its_end_whatever_words_are_taught(folders: dict[str, Path]) -> None:
    base = load_base(Base(source=str(folders["sdxl"])))
    before = base.encode_text(["a red egg"])["pooled_BD"]
    for name, tokenizer in base.tokenizers.items():
        # A new word is a token behind all others: the highest number is not the end any more.
        tokenizer.add_tokens("<new>")
        table = base.text_encoders[name].get_input_embeddings()
        base.text_encoders[name].resize_token_embeddings(len(tokenizer), mean_resizing=False)
        new = base.text_encoders[name].get_input_embeddings()
        with torch.no_grad():
            new.weight[-1] = table.weight[tokenizer.convert_tokens_to_ids("red</w>")]

    after = base.encode_text(["a <new> egg"])["pooled_BD"]

    assert torch.allclose(after, before, atol=1e-6)


def test_the_vae_of_sdxl_computes_in_fp32_under_autocast(folders: dict[str, Path]) -> None:
    base = load_base(Base(source=str(folders["sdxl"])))
    latents_BCHW, pixels_BCHW = latents_like(base), torch.rand(1, 3, 64, 64)
    decoded, encoded = base.vae.decode(latents_BCHW, return_dict=False)[0], base.encode_pixels(pixels_BCHW)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            base.vae.decode(latents_BCHW.bfloat16().float(), return_dict=False)[0].float(),
            base.vae.decode(latents_BCHW.bfloat16(), return_dict=False)[0],
        )
        assert torch.equal(base.vae.decode(latents_BCHW, return_dict=False)[0], decoded)
        assert torch.equal(base.encode_pixels(pixels_BCHW), encoded)


def test_a_base_with_another_kind_of_noise_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import EDMEulerScheduler

    folder = make_random_sdxl(tmp_path / "edm")
    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("EulerDiscreteScheduler", "EDMEulerScheduler"))

    with pytest.raises(MissingModelError, match="EDMEulerScheduler"):
        load_base(Base(source=str(folder)))
