"""What kohya, LyCORIS, A1111 and ComfyUI call the layers of a model."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.models.families.model import BaseModel, Family
from trainer.models.methods.checkpoint_file import unet_name

#: By family: the prefixes of a denoiser and of the text encoders. `networks/lora.py` of kohya-ss/sd-scripts for the
#: UNets; SD3 under diffusers' names as SimpleTuner writes them, which is what ComfyUI reads (`comfy/lora.py`).
_PREFIXES = {
    Family.SD1: {"unet": "lora_unet", "text_encoder": "lora_te"},
    Family.SD2: {"unet": "lora_unet", "text_encoder": "lora_te"},
    Family.SDXL: {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    Family.SD3: {"transformer": "lycoris", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}


def kohya_keys(base: BaseModel, module: str, layers: Iterable[str]) -> dict[str, str]:
    """What a kohya or LyCORIS file calls each layer, without the name of the weight: `lora_unet_down_blocks_0_…`.

    `module` is `unet`, `transformer`, `text_encoder` or `text_encoder_2`, and a layer is a path in it. The UNet of
    SDXL goes by its original names there (`input_blocks_4_1_…`): `make_unet_conversion_map` of kohya-ss/sd-scripts
    `library/sdxl_model_util.py`.
    """
    names = {layer: layer for layer in layers}
    if module.startswith("text_encoder"):
        names = {layer: with_text_model(layer) for layer in names}
    elif base.family is Family.SDXL:
        state = base.denoiser.state_dict()
        names = {layer: unet_name(f"{layer}.weight", state).removesuffix(".weight") for layer in names}
    prefix = _PREFIXES[base.family][module]
    return {layer: f"{prefix}_{name.replace('.', '_')}" for layer, name in names.items()}


def with_text_model(name: str) -> str:
    """The name of a text encoder layer as all readers know it: with `text_model.` in front.

    transformers >= 5.23 dropped that level of CLIPTextModel.
    """
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
