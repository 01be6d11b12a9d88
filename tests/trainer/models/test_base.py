"""Bases load by diffusers' own loaders, whatever form they come in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests.trainer.random_base import make_random_base, make_random_sd3, make_random_sdxl, write_single_file
from trainer.errors import MissingModelError
from trainer.models.base import digest_of, fingerprint, load_base
from trainer.models.methods.checkpoint_file import write_checkpoint
from trainer.protocol.settings import Base, Objective, Prediction


def test_the_tiny_base_that_ships_is_a_whole_stable_diffusion_1() -> None:
    base = load_base(Base(source="tiny"))

    assert (base.resolution, base.family, base.prediction_type) == (64, "sd1", "epsilon")
    assert all(p.dtype is torch.float32 and not p.requires_grad for p in base.denoiser.parameters())
    assert not any(module.training for module in (base.denoiser, base.vae, *base.text_encoders.values()))


def test_a_folder_and_the_single_file_made_of_it_are_the_same_model(random_base: Path, tmp_path: Path) -> None:
    path = write_single_file(random_base, tmp_path / "model.safetensors")

    folder = load_base(Base(source=str(random_base)))
    single = load_base(Base(source=str(path), config=str(random_base)))

    assert fingerprint(single) == fingerprint(folder)
    assert digest_of(single.denoiser) == digest_of(folder.denoiser)
    assert single.prediction_type == "epsilon"


def write_single_sdxl(folder: Path, path: Path) -> Path:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    encoders = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    return write_checkpoint(path, "sdxl", pipeline.unet, pipeline.vae, encoders, dtype=torch.float32)


def test_a_single_file_of_sdxl_is_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    folder = make_random_sdxl(tmp_path / "sdxl")
    path = write_single_sdxl(folder, tmp_path / "model.safetensors")

    single = load_base(Base(source=str(path), config=str(folder)))

    assert single.family == "sdxl"
    whole = load_base(Base(source=str(folder)))
    assert fingerprint(single) == fingerprint(whole)
    assert digest_of(single.denoiser) == digest_of(whole.denoiser)


@pytest.mark.parametrize("has_ztsnr", [False, True])
def test_a_single_file_that_says_it_predicts_the_velocity_is_believed(tmp_path: Path, has_ztsnr: bool) -> None:
    folder = make_random_sdxl(tmp_path / "sdxl")
    path = write_single_sdxl(folder, tmp_path / "model.safetensors")
    marks = {"v_pred": torch.tensor([])} | ({"ztsnr": torch.tensor([])} if has_ztsnr else {})
    save_file({**load_file(path), **marks}, path)
    source = Base(source=str(path), config=str(folder))

    marked, told = load_base(source), load_base(source, Objective(prediction=Prediction.EPSILON))

    assert marked.prediction_type == "v_prediction"
    assert (float(marked.noise_schedule.alphas_cumprod[-1]) == 0) is has_ztsnr
    assert told.prediction_type == "epsilon"


#: The tensors by which diffusers tells a single file's kind.
_SIGNS: dict[str, dict[str, tuple[int, ...]]] = {
    "xl_inpaint": {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1,),
    },
    "flux-": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (1,),
        "guidance_in.in_layer.bias": (1,),
        "img_in.weight": (64, 64),
    },
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (4, 4)},
}


@pytest.mark.parametrize("kind", _SIGNS)
def test_a_single_file_of_another_kind_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in _SIGNS[kind].items()}, path)

    with pytest.raises(MissingModelError, match=f"{kind}.*trained here"):
        load_base(Base(source=str(path)))


def test_a_pickled_checkpoint_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")

    with pytest.raises(MissingModelError, match="run code"):
        load_base(Base(source=str(tmp_path / "model.ckpt")))


def test_an_inpainting_model_is_refused_whatever_its_folder_says(tmp_path: Path) -> None:
    folder = make_random_base(tmp_path / "base")
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")

    with pytest.raises(MissingModelError, match="reads 9 channels where a picture has 4"):
        load_base(Base(source=str(folder)))


def test_weights_in_half_precision_are_found_and_widened(tmp_path: Path) -> None:
    folder = make_random_base(tmp_path / "base")
    for path in [*folder.rglob("*.safetensors")]:
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        path.unlink()
        save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"), metadata={"format": "pt"})

    base = load_base(Base(source=str(folder)))

    assert {p.dtype for m in (base.denoiser, base.vae, base.text_encoder) for p in m.parameters()} == {torch.float32}


def test_an_sd3_folder_without_its_t5_is_loaded_without(tmp_path: Path) -> None:
    folder = make_random_sd3(tmp_path / "sd3", has_t5=True)
    assert "text_encoder_3" in load_base(Base(source=str(folder))).text_encoders
    # As people do who have no 10 GB to spare.
    (folder / "text_encoder_3").rename(tmp_path / "away")

    assert [*load_base(Base(source=str(folder))).text_encoders] == ["text_encoder", "text_encoder_2"]


def test_t5_stays_as_small_as_it_is_stored_and_the_rest_is_widened(tmp_path: Path) -> None:
    folder = make_random_sd3(tmp_path / "sd3", has_t5=True)
    StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float16).save_pretrained(tmp_path / "half")

    base = load_base(Base(source=str(tmp_path / "half")))

    stored = {name: next(encoder.parameters()).dtype for name, encoder in base.text_encoders.items()}
    assert stored == {
        "text_encoder": torch.float32,
        "text_encoder_2": torch.float32,
        "text_encoder_3": torch.float16,
    }
    assert base.encode_text(["a red egg"])["caption_BTD"].dtype is torch.float32


def test_a_velocity_model_is_known_as_one(tmp_path: Path) -> None:
    folder = make_random_base(tmp_path / "velocity", prediction_type="v_prediction")

    assert load_base(Base(source=str(folder))).prediction_type == "v_prediction"


@pytest.mark.parametrize("damage", ["no index", "another pipeline", "no weights", "cut weights"])
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, damage: str) -> None:
    folder = make_random_base(tmp_path / "base")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "no index":
        (folder / "model_index.json").unlink()
    elif damage == "another pipeline":
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(MissingModelError) as refusal:
        load_base(Base(source=str(folder)))

    assert "\n" not in str(refusal.value)
    assert ("is a FluxPipeline, which is not trained here" in str(refusal.value)) is (damage == "another pipeline")
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2", "text_encoder_3"])
def test_a_fingerprint_changes_with_one_weight_of_any_part(tmp_path: Path, part: str) -> None:
    base = load_base(Base(source=str(make_random_sd3(tmp_path / "sd3", has_t5=True))))
    before = fingerprint(base)
    assert fingerprint(base) == before

    module = base.vae if part == "vae" else base.text_encoders[part]
    [*module.parameters()][-1].data.view(-1)[-1] += 1

    assert fingerprint(base) != before


def test_a_fingerprint_does_not_change_with_the_denoiser(random_base: Path) -> None:
    base = load_base(Base(source=str(random_base)))
    before = fingerprint(base)

    next(base.denoiser.parameters()).data.add_(1)

    assert fingerprint(base) == before


def test_an_sd_1_job_imports_no_other_family() -> None:
    code = """
import sys
from trainer.models.base import load_base
assert "diffusers" not in sys.modules and "transformers" not in sys.modules
from trainer.protocol.settings import Base
load_base(Base(source="tiny"))
print(sorted(name for name in sys.modules if name.startswith("trainer.models.families.")))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "families.sd'" in found
    assert not {"sdxl", "sd3", "flow"} & {name.strip(" '[]\n").rpartition(".")[2] for name in found.split(",")}
