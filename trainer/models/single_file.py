"""Opens one `.safetensors` file in the original layout without a network: what its weights are and predict."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from trainer.errors import BadSpecError, MissingModelError
from trainer.models.pipelines import (
    TRAINED_HERE,
    check_kind,
    left_out,
    open_vae,
    pipeline_class,
    read_shapes,
    stored_dtype,
)
from trainer.models.released_configs import PIPELINES, make_tokenizers, write_configs
from trainer.models.widening import widened_layers
from trainer.protocol.settings import Base, Objective, Prediction

log = logging.getLogger(__name__)

#: Beginnings of the names of a part's weights.
_PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "transformer": ("model.diffusion_model.", "joint_blocks."),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
_T5 = "text_encoders.t5xxl.transformer.shared.weight"


def open_single_file(base: Base, path: Path, objective: Objective) -> Any:
    """Load the pipeline of one `.safetensors` file in the original layout.

    Its configurations and tokenizers are those of the folder `base.config`, or those that ship (`released_configs`).

    Raises:
        MissingModelError: it is not a supported family, not a `.safetensors` file, or lacks a part.
        BadSpecError: it does not tell what an SD 2 predicts.
    """
    if path.suffix != ".safetensors":
        raise MissingModelError(
            f"{base.source} is not a .safetensors file; other checkpoints can run code when they are opened.",
            "Convert it first, or give a folder in diffusers layout.",
        )
    shapes = read_shapes(path)
    if base.config is not None:
        kind = check_kind(base.source, _described_kind(base.config))
        return _load(base, path, base.config, left_out(kind, has_t5=_T5 in shapes), kind, shapes)
    released = _recognize(base.source, shapes)
    if _T5 in shapes:
        log.warning("%s: its T5 is left out; set base.config to a folder with T5's tokenizer to use it", base.source)
    kind = PIPELINES[released]
    given = {**left_out(kind, has_t5=False), **make_tokenizers(released)}
    with tempfile.TemporaryDirectory(prefix="darkroom-configs-") as folder:
        pipeline = _load(base, path, str(write_configs(released, Path(folder) / "model")), given, kind, shapes)
    if released == "v2":
        is_velocity = _predicts_velocity(base.source, pipeline.unet, objective.prediction)
        _configure_sd2(pipeline, is_velocity=is_velocity)
    return pipeline


def _load(
    base: Base, path: Path, config: str, given: Mapping[str, Any], kind: str, shapes: Mapping[str, torch.Tensor]
) -> Any:
    """Load the parts of a file, each in the dtype that it is stored in; diffusers loads all in one."""
    cls = pipeline_class(kind)
    loaded = {**given, **({} if base.vae is None else {"vae": open_vae(base.vae, Path(config))})}
    parts = [name for name in cls._get_signature_keys(cls)[0] if name in _PREFIXES and name not in loaded]
    stored = {name: [t for key, t in shapes.items() if key.startswith(_PREFIXES[name])] for name in parts}
    if missing := [name for name, tensors in stored.items() if not tensors]:
        raise MissingModelError(
            f"{base.source} has no {missing[0]}; it is not a whole model.",
            "Give its VAE as base.vae." if missing == ["vae"] else "Choose a file with everything in it.",
        )
    dtypes = {name: stored_dtype(tensors) for name, tensors in stored.items()}
    for dtype in sorted(set(dtypes.values()), key=str):
        others = {name: None for name in parts if dtypes[name] != dtype}
        pipeline = cls.from_single_file(str(path), config=config, dtype=dtype, **{**others, **loaded})
        # The tokenizers and the scheduler are loaded with the first.
        loaded |= {name: part for name, part in pipeline.components.items() if part is not None}
    for name in parts:
        if name.startswith("text_encoder"):
            _share_merged_weights(loaded[name], path, _PREFIXES[name], shapes)
    return pipeline


def _share_merged_weights(encoder: Any, path: Path, prefixes: tuple[str, ...], shapes: Mapping[str, Any]) -> None:
    """Let queries, keys and values of an OpenCLIP be parts of the file again: diffusers copies them, 0.3 GB of SDXL."""
    with safe_open(path, framework="pt") as file:
        for name, layer in encoder.named_modules():
            if (found := re.search(r"layers\.(\d+)\.self_attn$", name)) is None:
                continue
            for prefix in prefixes:
                key = f"{prefix}model.transformer.resblocks.{found[1]}.attn.in_proj_weight"
                if key not in shapes or shapes[key].dtype != layer.q_proj.weight.dtype:
                    continue
                parts = file.get_tensor(key).chunk(3)
                for projection, part in zip((layer.q_proj, layer.k_proj, layer.v_proj), parts, strict=True):
                    projection.weight.data = part


def as_marked(objective: Objective, path: Path) -> Objective:
    """Fill the objective from the markers of a single file, unless it says that the file predicts the noise.

    Files that predict the velocity carry an empty tensor `v_pred`, and `ztsnr` with zero terminal SNR. This is
    ComfyUI's convention, followed by NoobAI-XL and its derivatives; diffusers does not read it.
    """
    if path.suffix != ".safetensors" or objective.prediction is Prediction.EPSILON:
        return objective
    shapes = read_shapes(path)
    if "v_pred" not in shapes:
        return objective
    zero_terminal_snr = objective.zero_terminal_snr or "ztsnr" in shapes
    return objective.model_copy(update={"prediction": Prediction.V_PREDICTION, "zero_terminal_snr": zero_terminal_snr})


def _described_kind(config: str) -> str | None:
    """Name of the pipeline that a folder (or hub name) of configurations is for."""
    from diffusers import DiffusionPipeline

    kind: str | None = DiffusionPipeline.load_config(config).get("_class_name")
    return kind


def _recognize(source: str, shapes: Mapping[str, torch.Tensor]) -> str:
    """Recognize the kind of a single file as diffusers does, from the names and shapes of its tensors.

    Raises:
        MissingModelError: it is not a whole model, or not a supported family.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    found: str = infer_diffusers_model_type(shapes)
    if found == "v1" and not any(name.startswith("model.diffusion_model.") for name in shapes):
        # diffusers falls back to this type for files that it does not recognize.
        raise MissingModelError(f"{source} is not a whole model; it may be a LoRA or a VAE alone.", TRAINED_HERE)
    if found not in PIPELINES:
        raise MissingModelError(f"{source} is a model of type {found}, which Darkroom does not train.", TRAINED_HERE)
    return found


# -- what an SD 2 predicts --------------------------------------------------------------------------------------------


#: ComfyUI's sign (`SD20.model_type` in `comfy/supported_models.py`): the deviation of this bias in a velocity model.
_SIGN = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
_MIN_DEVIATION = 0.09
#: A1111's sign (`is_using_v_parameterization_for_sd2` in `modules/sd_models_config.py`): at the last timestep a noise
#: model returns its input, about 0.5 here, and a velocity model much less.
_MAX_DIFFERENCE = -1.0


def _predicts_velocity(source: str, unet: Any, prediction: Prediction) -> bool:
    """Read from the weights of an SD 2 what it predicts, unless `prediction` says it.

    Raises:
        BadSpecError: the signs that ComfyUI and A1111 read contradict each other.
    """
    if prediction is not Prediction.AUTO:
        return prediction is Prediction.V_PREDICTION
    is_by_deviation = bool(unet.get_parameter(_SIGN).detach().float().std(unbiased=False) > _MIN_DEVIATION)
    is_by_output = _last_step_difference(unet) < _MAX_DIFFERENCE
    if is_by_deviation != is_by_output:
        raise BadSpecError(
            f"The weights of {source}, an SD 2, do not tell whether it predicts the noise or the velocity.",
            "Set objective.prediction as its page says: v_prediction for most models of 768 px, epsilon for 512 px.",
        )
    return is_by_output


def _configure_sd2(pipeline: Any, *, is_velocity: bool) -> None:
    """Set what the released models differ in: 2.x predicts the velocity at 768 px, 2.x-base the noise at 512 px."""
    prediction = "v_prediction" if is_velocity else "epsilon"
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type=prediction)
    pipeline.unet.register_to_config(sample_size=96 if is_velocity else 64)


@torch.no_grad()
def _last_step_difference(unet: Any) -> float:
    """Mean difference between the UNet's output and its input, all 0.5, at the last timestep."""
    with widened_layers(torch.device("cpu"), unet):
        input_BCHW = torch.full((1, 4, 8, 8), 0.5)
        output_BCHW = unet(input_BCHW, torch.tensor([999]), torch.full((1, 2, 1024), 0.5), return_dict=False)[0]
    return float((output_BCHW - input_BCHW).mean())
