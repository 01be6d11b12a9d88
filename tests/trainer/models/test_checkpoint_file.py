"""Single-file checkpoints: tensor names follow the original layout, and diffusers reads the same model back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from tests.trainer.models.conftest import BaseFolder
from trainer.models.base import digest_of, fingerprint, load_base
from trainer.models.methods.checkpoint_file import marks_of, open_clip_state, unet_name, write_checkpoint
from trainer.protocol.settings import Base, Objective, Prediction

#: Tensor names in the file of SD 1.5: levels of two layers, no attention in the last.
SD15 = {
    "conv_in.weight": "input_blocks.0.0.weight",
    "time_embedding.linear_2.bias": "time_embed.2.bias",
    "down_blocks.0.resnets.1.time_emb_proj.weight": "input_blocks.2.0.emb_layers.1.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    ),
    "down_blocks.2.downsamplers.0.conv.weight": "input_blocks.9.0.op.weight",
    "down_blocks.3.resnets.1.conv2.bias": "input_blocks.11.0.out_layers.3.bias",
    "mid_block.resnets.1.norm1.weight": "middle_block.2.in_layers.0.weight",
    "mid_block.attentions.0.norm.weight": "middle_block.1.norm.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
    "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
    "conv_norm_out.weight": "out.0.weight",
}


def test_unet_names_match_the_file_of_sd_1_5() -> None:
    with torch.device("meta"):
        state = UNet2DConditionModel(cross_attention_dim=768).state_dict()

    assert {name: unet_name(name, state) for name in SD15} == SD15
    assert len({unet_name(name, state) for name in state}) == len(state) == 686


def test_an_sd_2_file_has_open_clip_names_and_is_read_back_as_the_same_model(
    base_folder: BaseFolder, tmp_path: Path
) -> None:
    folder = base_folder("sd2")
    whole = load_base(Base(source=str(folder)))
    path = write_checkpoint(
        tmp_path / "sd2.safetensors", "sd2", whole.denoiser, whole.vae, whole.text_encoders, dtype=torch.float32
    )

    single = load_base(Base(source=str(path), config=str(folder)))

    assert "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight" in load_file(path)
    assert whole.family == single.family == "sd2"
    assert fingerprint(single) == fingerprint(whole)
    assert digest_of(single.denoiser) == digest_of(whole.denoiser)


def test_the_text_projection_of_open_clip_is_transposed() -> None:
    projection = torch.arange(6.0).reshape(2, 3)

    assert torch.equal(open_clip_state({"text_projection.weight": projection})["text_projection"], projection.T)


@pytest.mark.parametrize("has_ztsnr", [True, False])
def test_an_sdxl_v_prediction_file_is_marked(base_folder: BaseFolder, tmp_path: Path, has_ztsnr: bool) -> None:
    folder = base_folder("sdxl")
    objective = Objective(prediction=Prediction.V_PREDICTION, zero_terminal_snr=has_ztsnr)
    base = load_base(Base(source=str(folder)), objective)
    path = write_checkpoint(
        tmp_path / "x.safetensors", "sdxl", base.denoiser, base.vae, base.text_encoders, marks=marks_of(base)
    )

    single = load_base(Base(source=str(path), config=str(folder)))

    assert single.prediction_type == "v_prediction"
    assert (float(single.noise_schedule.alphas_cumprod[-1]) == 0) is has_ztsnr
    assert marks_of(load_base(Base(source=str(folder)))) == ()
