"""Loading a base from a folder or a single file, with the loaders of diffusers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models import embeddings
from safetensors.torch import load_file, save_file

from tests.trainer.models.conftest import BaseFolder
from tests.trainer.random_base import make_random_base, make_random_sd3, write_single_file
from trainer.errors import MissingModelError
from trainer.models.base import digest_of, fingerprint, load_base
from trainer.models.methods.checkpoint_file import write_checkpoint
from trainer.protocol.settings import Base, Objective, Prediction


def test_the_bundled_tiny_base_is_a_complete_sd_1() -> None:
    base = load_base(Base(source="tiny"))

    assert (base.resolution, base.family, base.prediction_type) == (64, "sd1", "epsilon")
    assert all(p.dtype is torch.float32 and not p.requires_grad for p in base.denoiser.parameters())
    assert not any(module.training for module in (base.denoiser, base.vae, *base.text_encoders.values()))


def write_single_sdxl(folder: Path, path: Path) -> Path:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    encoders = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    return write_checkpoint(path, "sdxl", pipeline.unet, pipeline.vae, encoders, dtype=torch.float32)


@pytest.mark.parametrize(
    ("family", "write"), [("sd1", write_single_file), ("sdxl", write_single_sdxl)], ids=["sd1", "sdxl"]
)
def test_a_single_file_is_the_same_model_as_its_folder(
    base_folder: BaseFolder, tmp_path: Path, family: str, write: Callable[[Path, Path], Path]
) -> None:
    folder = base_folder(family)
    path = write(folder, tmp_path / "model.safetensors")

    whole, single = load_base(Base(source=str(folder))), load_base(Base(source=str(path), config=str(folder)))

    assert (single.family, single.prediction_type) == (family, "epsilon")
    assert fingerprint(single) == fingerprint(whole)
    assert digest_of(single.denoiser) == digest_of(whole.denoiser)


@pytest.mark.parametrize("has_ztsnr", [False, True])
def test_the_v_prediction_mark_of_a_single_file_is_used_unless_overridden(
    base_folder: BaseFolder, tmp_path: Path, has_ztsnr: bool
) -> None:
    folder = base_folder("sdxl")
    path = write_single_sdxl(folder, tmp_path / "model.safetensors")
    marks = {"v_pred": torch.tensor([])} | ({"ztsnr": torch.tensor([])} if has_ztsnr else {})
    save_file({**load_file(path), **marks}, path)
    source = Base(source=str(path), config=str(folder))

    marked, overridden = load_base(source), load_base(source, Objective(prediction=Prediction.EPSILON))
    asked_for = load_base(source, Objective(zero_terminal_snr=True))
    spelled_out = load_base(source, Objective(prediction=Prediction.V_PREDICTION))

    assert marked.prediction_type == "v_prediction"
    assert (float(marked.noise_schedule.alphas_cumprod[-1]) == 0) is has_ztsnr
    assert overridden.prediction_type == "epsilon"
    # A mark adds to what the settings say, and takes nothing away.
    assert float(asked_for.noise_schedule.alphas_cumprod[-1]) == 0
    assert (float(spelled_out.noise_schedule.alphas_cumprod[-1]) == 0) is has_ztsnr


#: Tensors by which diffusers detects the kind of a single file.
_KIND_TENSORS: dict[str, dict[str, tuple[int, ...]]] = {
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


@pytest.mark.parametrize("kind", _KIND_TENSORS)
def test_a_single_file_of_an_unsupported_kind_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in _KIND_TENSORS[kind].items()}, path)

    with pytest.raises(MissingModelError, match=f"{kind}.*Stable Diffusion 1.x"):
        load_base(Base(source=str(path)))


def test_a_pickled_checkpoint_is_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")

    with pytest.raises(MissingModelError, match="run code"):
        load_base(Base(source=str(tmp_path / "model.ckpt")))


def test_an_inpainting_model_is_refused_by_its_input_channels(tmp_path: Path) -> None:
    folder = make_random_base(tmp_path / "base")
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")

    with pytest.raises(MissingModelError, match="reads 9 channels where an image has 4"):
        load_base(Base(source=str(folder)))


def test_fp16_weights_are_found_and_converted_to_fp32(tmp_path: Path) -> None:
    folder = make_random_base(tmp_path / "base")
    for path in [*folder.rglob("*.safetensors")]:
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        path.unlink()
        save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"), metadata={"format": "pt"})

    base = load_base(Base(source=str(folder)))

    assert {p.dtype for m in (base.denoiser, base.vae, base.text_encoder) for p in m.parameters()} == {torch.float32}


def test_an_sd3_folder_without_t5_loads_without_it(tmp_path: Path) -> None:
    folder = make_random_sd3(tmp_path / "sd3", has_t5=True)
    assert "text_encoder_3" in load_base(Base(source=str(folder))).text_encoders
    # Users delete T5 to save 10 GB.
    (folder / "text_encoder_3").rename(tmp_path / "removed")

    assert [*load_base(Base(source=str(folder))).text_encoders] == ["text_encoder", "text_encoder_2"]


def test_the_positions_of_an_sd3_are_read_from_its_file_and_not_computed(
    base_folder: BaseFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(base_folder("sd3"), tmp_path / "sd3"))
    computed_on: set[str] = set()
    real = embeddings.get_1d_sincos_pos_embed_from_grid

    def compute(width: int, positions: torch.Tensor, **options: Any) -> Any:
        computed_on.add(positions.device.type)
        return real(width, positions, **options)

    monkeypatch.setattr(embeddings, "get_1d_sincos_pos_embed_from_grid", compute)
    (path,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(path)
    table = weights.pop("pos_embed.pos_embed")

    assert torch.equal(load_base(Base(source=str(folder))).denoiser.pos_embed.pos_embed, table)
    assert computed_on == {"meta"}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(MissingModelError, match="no table of positions"):
        load_base(Base(source=str(folder)))


def test_t5_keeps_its_stored_dtype_and_the_rest_becomes_fp32(base_folder: BaseFolder, tmp_path: Path) -> None:
    StableDiffusion3Pipeline.from_pretrained(base_folder("sd3-t5"), dtype=torch.float16).save_pretrained(
        tmp_path / "half"
    )

    base = load_base(Base(source=str(tmp_path / "half")))

    stored = {name: next(encoder.parameters()).dtype for name, encoder in base.text_encoders.items()}
    assert stored == {
        "text_encoder": torch.float32,
        "text_encoder_2": torch.float32,
        "text_encoder_3": torch.float16,
    }
    assert base.encode_text(["a red egg"])["caption_BTD"].dtype is torch.float32


def test_v_prediction_is_read_from_the_scheduler(tmp_path: Path) -> None:
    folder = make_random_base(tmp_path / "velocity", prediction_type="v_prediction")

    assert load_base(Base(source=str(folder))).prediction_type == "v_prediction"


@pytest.mark.parametrize("damage", ["no index", "another pipeline", "no weights", "cut weights"])
def test_a_damaged_folder_is_reported_on_one_line(tmp_path: Path, damage: str) -> None:
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
    assert ("is a FluxPipeline, which Darkroom does not train" in str(refusal.value)) is (damage == "another pipeline")
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2", "text_encoder_3"])
def test_the_fingerprint_changes_with_any_encoder_or_vae_weight(base_folder: BaseFolder, part: str) -> None:
    base = load_base(Base(source=str(base_folder("sd3-t5"))))
    before = fingerprint(base)
    assert fingerprint(base) == before

    module = base.vae if part == "vae" else base.text_encoders[part]
    [*module.parameters()][-1].data.view(-1)[-1] += 1

    assert fingerprint(base) != before


def test_the_fingerprint_ignores_the_denoiser(random_base: Path) -> None:
    base = load_base(Base(source=str(random_base)))
    before = fingerprint(base)

    next(base.denoiser.parameters()).data.add_(1)

    assert fingerprint(base) == before


@pytest.mark.slow
def test_loading_sd_1_imports_no_other_family() -> None:
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
