"""Each family gives exactly the results of its diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.models.conftest import BaseFolder
from tests.trainer.models.random_adapters import Load
from tests.trainer.random_base import make_random_sdxl
from trainer.errors import BadSpecError, MissingModelError
from trainer.models.base import Family, LoadedBase, load_base
from trainer.models.families.clip import cut_tokens
from trainer.protocol.settings import Base, Prediction

_CAPTIONS = ["a red egg, on a table", ""]
_CALL = {"height": 64, "width": 32, "num_inference_steps": 3}


@pytest.fixture(params=["sd1", "sdxl", pytest.param("sd3", marks=pytest.mark.slow), "sd3-t5"])
def family(request: pytest.FixtureRequest) -> str:
    """Each family."""
    return str(request.param)


def latents_like(base: LoadedBase, seed: int = 0) -> Tensor:
    shape = (2, base.denoiser.config.in_channels, 16, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quiet_pipeline(base: LoadedBase) -> Any:
    pipeline = base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encoded_by_diffusers(base: LoadedBase, clip_skip: int | None) -> dict[str, Tensor]:
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
def test_caption_embeddings_equal_those_of_the_pipeline(load: Load, family: str, clip_skip: int) -> None:
    base = load(family, clip_skip=clip_skip)

    text = base.encode_text(_CAPTIONS)

    # diffusers counts from the model's own layer.
    own = 1 if base.family is Family.SD1 else 2
    expected = encoded_by_diffusers(base, None if clip_skip <= own else clip_skip - own)
    assert text.keys() == expected.keys()
    assert all(torch.equal(text[name], expected[name]) for name in text)


def test_clip_skip_counts_layers_from_the_end_as_a1111_does(load: Load, family: str) -> None:
    """A1111 (`modules/sd_hijack_clip.py`) and ComfyUI (`CLIPSetLastLayer`) read `hidden_states[-clip_skip]`; the usual
    layer of SDXL and SD 3 is the second from the end."""
    base = load(family, clip_skip=2)
    name, encoder = next(iter(base.clip_encoders.items()))
    ids_BT = base.tokenizers[name](
        _CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    layer_BTD = encoder(ids_BT, output_hidden_states=True).hidden_states[-2]
    if base.family is Family.SD1:
        layer_BTD = encoder.final_layer_norm(layer_BTD)

    first, second = (load(family, clip_skip=skip).encode_text(_CAPTIONS)["caption_BTD"] for skip in (1, 2))

    assert torch.equal(second[:, :77, : layer_BTD.shape[-1]], layer_BTD)
    assert torch.equal(first, second) == (base.family is not Family.SD1)


def test_a_clip_skip_larger_than_the_encoder_is_refused(load: Load, family: str) -> None:
    with pytest.raises(BadSpecError, match=r"Take [23] at most"):
        load(family, clip_skip=4)


def long_caption(words: int) -> str:
    """A caption of one token for each word, no two neighbors alike."""
    return " ".join(["red", "cat", "on"][number % 3] for number in range(words))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(("words", "chunks"), [(75, 1), (76, 2), (150, 2), (225, 3), (300, 3)])
def test_a_long_caption_is_read_in_chunks_as_kohya_and_a1111_read_it(
    load: Load, family: str, words: int, chunks: int
) -> None:
    """Each chunk has its own begin and end (`forward` of A1111's modules/sd_hijack_clip.py); kohya drops the inner ones
    (`encode_tokens` of library/strategy_sd.py). The pooled embedding is that of the first chunk (strategy_sdxl.py)."""
    base = load(family)
    words_read = long_caption(words).split()[:225]

    text = base.encode_text([long_caption(words)])

    alone = [base.encode_text([" ".join(words_read[start : start + 75])]) for start in range(0, len(words_read), 75)]
    assert len(alone) == chunks == base.chunk_counts([long_caption(words)])[0]
    assert torch.allclose(text["caption_BTD"], torch.cat([each["caption_BTD"] for each in alone], dim=1), atol=1e-5)
    if "pooled_BD" in text:
        assert torch.allclose(text["pooled_BD"], alone[0]["pooled_BD"], atol=1e-5)


def test_a_caption_is_cut_after_a_near_comma_and_where_it_is_full_otherwise() -> None:
    """`tokenize_line` of A1111, compared over 3,000 random captions when this was written."""
    comma = 0
    near = [*range(1, 61), comma, *range(61, 101)]
    far = [*range(1, 51), comma, *range(51, 101)]

    assert list(map(len, cut_tokens(near, comma, 75))) == [61, 40]
    assert list(map(len, cut_tokens(far, comma, 75))) == [75, 26]
    assert list(map(len, cut_tokens([*range(1, 76), comma, 76], comma, 75))) == [75, 2]
    assert list(cut_tokens([], comma, 75)) == [[]]


@pytest.mark.parametrize("length", [75, 150])
def test_a_caption_is_read_as_far_as_the_setting_says(base_folder: BaseFolder, length: int) -> None:
    base = load_base(Base.model_validate({"source": str(base_folder("sd1")), "max_token_length": length}))

    text = base.encode_text([long_caption(225)])

    assert text["caption_BTD"].shape[1] == 77 * length // 75
    assert torch.equal(text["caption_BTD"], base.encode_text([long_caption(length)])["caption_BTD"])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_prediction_does_not_depend_on_the_captions_beside_it(load: Load, family: str) -> None:
    base = load(family)
    captions = ["a red egg", long_caption(100), long_caption(200)]
    noisy_BCHW = latents_like(base)[:1].repeat(3, 1, 1, 1)

    with torch.no_grad():
        together = base.predict(noisy_BCHW, torch.tensor([300] * 3), base.encode_text(captions))
        alone = [base.predict(noisy_BCHW[:1], torch.tensor([300]), base.encode_text([each])) for each in captions]

    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(together[:1], together[1:2], atol=1e-3)


def test_a_long_prompt_is_drawn_beside_a_short_negative_one(load: Load) -> None:
    base = load("sdxl")
    text, negative = base.encode_text([long_caption(100)]), base.encode_text(["ugly"])

    images = quiet_pipeline(base)(**base.sampling_arguments(text, negative), output_type="np", **_CALL).images

    assert np.isfinite(images).all()


def test_predictions_equal_those_in_the_pipeline(load: Load, family: str) -> None:
    base = load(family)
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
            # The timesteps of a sampler need not be integers.
            assert torch.equal(base.architecture.predict(sample, timestep, text), output)


def test_samples_from_embeddings_equal_samples_from_text(load: Load, family: str) -> None:
    base = load(family)
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


def test_the_pipeline_has_its_own_fast_sampler(load: Load, family: str) -> None:
    base = load(family)

    scheduler = base.pipeline().scheduler
    scheduler.set_timesteps(3)

    flow, other = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
    assert type(scheduler).__name__ == (flow if base.family is Family.SD3 else other)
    # Sampling leaves the timesteps of the next pipeline and of the training unchanged.
    assert len(base.noise_schedule.timesteps) == 1000
    assert len(base.pipeline().scheduler.timesteps) == 1000


def test_encoded_images_invert_the_scaling_of_the_pipeline(load: Load, family: str) -> None:
    base = load(family)
    pixels_BCHW = torch.rand((2, 3, 64, 32), generator=torch.Generator().manual_seed(1)) * 2 - 1

    latents_BCHW = base.encode_pixels(pixels_BCHW)

    mode_BCHW = base.vae.encode(pixels_BCHW).latent_dist.mode()
    config = base.vae.config
    # The scaling that the pipelines undo: only SD 3 has a shift.
    back_BCHW = latents_BCHW / config.scaling_factor + (config.shift_factor or 0.0)
    assert torch.allclose(back_BCHW, mode_BCHW, atol=1e-6)
    assert latents_BCHW.shape == (2, base.denoiser.config.in_channels, 16, 8)


def alpha_bars(*, is_rescaled: bool = False) -> list[float]:
    """Return the cumulative alphas of SD 1, 2 and XL, computed in double precision."""
    roots = [0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999 for t in range(1000)]
    table, product = [], 1.0
    for root in roots:
        product *= 1 - root * root
        table.append(product)
    if is_rescaled:
        # Lin et al. 2023, algorithm 1: shift sqrt(alpha_bar) to end at 0, and scale it to start at its old value.
        square_roots = [value**0.5 for value in table]
        first, last = square_roots[0], square_roots[-1]
        table = [((value - last) * first / (first - last)) ** 2 for value in square_roots]
    return table


def expected_coefficients(base: LoadedBase, timestep: int, *, is_rescaled: bool = False) -> tuple[float, float]:
    """Return the coefficients of image and noise at a timestep."""
    if base.family is Family.SD3:
        share = (timestep + 1) / 1000
        sigma = 3 * share / (1 + 2 * share)
        return 1 - sigma, sigma
    alpha_bar = alpha_bars(is_rescaled=is_rescaled)[timestep]
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def test_noisy_latents_targets_and_snr_follow_the_formulas(load: Load, family: str) -> None:
    base = load(family)
    latents_BCHW, noise_BCHW = latents_like(base), latents_like(base, 1)

    for timestep in (0, 17, 500, 998):
        timestep_B = torch.full((2,), timestep)
        signal, noise = expected_coefficients(base, timestep)
        noisy_BCHW = base.add_noise(latents_BCHW, noise_BCHW, timestep_B)
        assert torch.allclose(noisy_BCHW, signal * latents_BCHW + noise * noise_BCHW, atol=1e-4)
        target_BCHW = noise_BCHW - latents_BCHW if base.family is Family.SD3 else noise_BCHW
        assert torch.equal(base.target(latents_BCHW, noise_BCHW, timestep_B), target_BCHW)
        assert base.snr(timestep_B).tolist() == pytest.approx(2 * [(signal / noise) ** 2], rel=1e-3)
    assert base.schedule_steps == 1000


def test_each_image_has_its_own_timestep(load: Load, family: str) -> None:
    base = load(family)
    latents_BCHW, noise_BCHW = latents_like(base), latents_like(base, 1)

    together = base.add_noise(latents_BCHW, noise_BCHW, torch.tensor([10, 900]))

    for index, timestep in enumerate((10, 900)):
        one = slice(index, index + 1)
        alone = base.add_noise(latents_BCHW[one], noise_BCHW[one], torch.tensor([timestep]))
        assert torch.equal(together[one], alone)


def test_a_flow_model_receives_the_shifted_timestep(load: Load) -> None:
    base = load("sd3")
    timesteps: list[Tensor] = []
    hook = base.denoiser.register_forward_pre_hook(
        lambda _module, _positional, named: timesteps.append(named["timestep"]), with_kwargs=True
    )

    base.predict(latents_like(base), torch.tensor([0, 999]), base.encode_text(_CAPTIONS))
    hook.remove()

    assert timesteps[0].tolist() == pytest.approx([1000 * 3 * 0.001 / 1.002, 1000])


def test_the_v_prediction_target_follows_the_formula(load: Load) -> None:
    base = load("sdxl", prediction=Prediction.V_PREDICTION)
    latents_BCHW, noise_BCHW = latents_like(base), latents_like(base, 1)

    target_BCHW = base.target(latents_BCHW, noise_BCHW, torch.full((2,), 500))

    signal, noise = expected_coefficients(base, 500)
    assert base.prediction_type == "v_prediction"
    assert base.sampler.config.prediction_type == "v_prediction"
    assert torch.allclose(target_BCHW, signal * noise_BCHW - noise * latents_BCHW, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_zero_terminal_snr_ends_in_pure_noise(load: Load, family: str) -> None:
    base = load(family, prediction=Prediction.V_PREDICTION, zero_terminal_snr=True)
    latents_BCHW, noise_BCHW = latents_like(base), latents_like(base, 1)
    last_B, middle_B = torch.full((2,), 999), torch.full((2,), 500)

    assert base.noise_schedule.alphas_cumprod[-1] == 0
    assert base.snr(last_B).tolist() == [0, 0]
    assert torch.equal(base.add_noise(latents_BCHW, noise_BCHW, last_B), noise_BCHW)
    # At zero SNR the velocity is the negative image.
    assert torch.equal(base.target(latents_BCHW, noise_BCHW, last_B), -latents_BCHW)
    signal, noise = expected_coefficients(base, 500, is_rescaled=True)
    noisy_BCHW = base.add_noise(latents_BCHW, noise_BCHW, middle_B)
    assert torch.allclose(noisy_BCHW, signal * latents_BCHW + noise * noise_BCHW, atol=1e-4)


def test_the_sampler_recovers_the_image_from_pure_noise(load: Load) -> None:
    """The denoiser is an oracle that knows the image; sampling starts at the last timestep of the rescaled schedule."""
    base = load("sd1", prediction=Prediction.V_PREDICTION, zero_terminal_snr=True)
    sampler = base.pipeline().scheduler
    image_BCHW, state_BCHW = latents_like(base), latents_like(base, 1)
    sampler.set_timesteps(8)
    assert int(sampler.timesteps[0]) == 999

    for timestep in sampler.timesteps:
        signal, noise = expected_coefficients(base, int(timestep), is_rescaled=True)
        noise_BCHW = (state_BCHW - signal * image_BCHW) / noise
        velocity_BCHW = signal * noise_BCHW - noise * image_BCHW
        state_BCHW = sampler.step(velocity_BCHW, timestep, state_BCHW).prev_sample

    assert torch.allclose(state_BCHW, image_BCHW, atol=1e-2)


def test_zero_terminal_snr_samples_with_rescaled_guidance(load: Load) -> None:
    base = load("sdxl", prediction=Prediction.V_PREDICTION, zero_terminal_snr=True)
    text = {name: tensor.detach() for name, tensor in base.encode_text(_CAPTIONS).items()}

    arguments = base.sampling_arguments(text, text)
    images = quiet_pipeline(base)(**arguments, output_type="np", guidance_scale=5.0, **_CALL).images

    assert arguments["guidance_rescale"] == 0.7
    assert np.isfinite(images).all()


@pytest.mark.parametrize("setting", [{"prediction": "epsilon"}, {"zero_terminal_snr": True}])
def test_a_flow_model_refuses_settings_of_a_noise_schedule(load: Load, setting: dict[str, Any]) -> None:
    with pytest.raises(BadSpecError, match=rf"objective\.{next(iter(setting))} is for bases with a noise schedule"):
        load("sd3", **setting)


def test_gradients_reach_every_text_encoder(load: Load, family: str) -> None:
    base = load(family)
    first_layers = {}
    for name, encoder in base.text_encoders.items():
        first_layers[name] = next(p for n, p in encoder.named_parameters() if "layers.0" in n or "block.0" in n)
        first_layers[name].requires_grad_(True)

    text = base.encode_text(_CAPTIONS)
    base.predict(latents_like(base), torch.tensor([10, 900]), text).square().mean().backward()

    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in first_layers.values())


def test_timesteps_follow_the_distribution_of_the_family(load: Load, family: str) -> None:
    base = load(family)
    drawn = np.array([base.draw_timestep(seed) for seed in range(4000)])

    middle_share = ((drawn >= 250) & (drawn < 750)).mean()

    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert drawn.mean() == pytest.approx(499.5, abs=25)
    # P(|z| < log 3) of a standard normal; 0.04 is five standard deviations of a share of 4000 draws.
    assert middle_share == pytest.approx(0.728 if base.family is Family.SD3 else 0.5, abs=0.04)
    assert base.draw_timestep(5) == drawn[5]


def test_added_tokens_do_not_change_where_the_pooled_embedding_is_read(load: Load) -> None:
    base = load("sdxl")
    before = base.encode_text(["a red egg"])["pooled_BD"]
    for name, tokenizer in base.tokenizers.items():
        # The new token has the highest id, which was the end token's before.
        tokenizer.add_tokens("<new>")
        table = base.text_encoders[name].get_input_embeddings()
        base.text_encoders[name].resize_token_embeddings(len(tokenizer), mean_resizing=False)
        new = base.text_encoders[name].get_input_embeddings()
        with torch.no_grad():
            new.weight[-1] = table.weight[tokenizer.convert_tokens_to_ids("red</w>")]

    after = base.encode_text(["a <new> egg"])["pooled_BD"]

    assert torch.allclose(after, before, atol=1e-6)


def test_the_sdxl_vae_computes_in_fp32_under_autocast(load: Load) -> None:
    base = load("sdxl")
    latents_BCHW, pixels_BCHW = latents_like(base), torch.rand(1, 3, 64, 64)
    decoded, encoded = base.vae.decode(latents_BCHW, return_dict=False)[0], base.encode_pixels(pixels_BCHW)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            base.vae.decode(latents_BCHW.bfloat16().float(), return_dict=False)[0].float(),
            base.vae.decode(latents_BCHW.bfloat16(), return_dict=False)[0],
        )
        assert torch.equal(base.vae.decode(latents_BCHW, return_dict=False)[0], decoded)
        assert torch.equal(base.encode_pixels(pixels_BCHW), encoded)


def test_a_base_with_an_unsupported_scheduler_is_refused(tmp_path: Path) -> None:
    from diffusers import EDMEulerScheduler

    folder = make_random_sdxl(tmp_path / "edm")
    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("EulerDiscreteScheduler", "EDMEulerScheduler"))

    with pytest.raises(MissingModelError, match="EDMEulerScheduler"):
        load_base(Base(source=str(folder)))
