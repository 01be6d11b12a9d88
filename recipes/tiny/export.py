"""Owns the shipped folder: a StableDiffusionPipeline in diffusers layout, written whole or not at all."""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from recipes.tiny.networks import new_scheduler
from recipes.tiny.scenes import contact_sheet
from recipes.tiny.train_unet import Networks

#: Prompts of the contact sheet; each differs from the caption templates.
SHEET_PROMPTS = (
    "a big red star at the top left on a white background",
    "a small blue fish at the bottom right on a yellow background",
    "a green tree on a blue background",
    "a pink heart in the middle on a black background",
    "an orange boat at the bottom on a blue background",
    "a purple mushroom on a green background",
    "a yellow moon at the top right on a black background",
    "a red house beside a green tree",
    "a blue circle above a red square on a white background",
    "a white cloud to the left of a yellow star on a purple background",
    "a big brown diamond on a pink background",
    "a small black ring at the left on an orange background",
    "a red flower on a gray background",
    "a huge green triangle",
    "a gray cross on a yellow background",
    "a house",
)


def export_pipeline(networks: Networks, vae: AutoencoderKL, tokenizer_dir: Path, out_dir: Path) -> None:
    """Write the pipeline beside `out_dir`, then rename it to `out_dir`.

    UNet and VAE are stored in fp16. The text encoder stays in fp32, as transformers 5 would otherwise compute in
    fp16, and its names keep the ``text_model.`` prefix that transformers 5.23 drops and older readers demand.
    """
    draft = out_dir.with_name(f".{out_dir.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=networks.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_dir),
        unet=networks.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(draft)
    shutil.rmtree(draft / "tokenizer")
    shutil.copytree(tokenizer_dir, draft / "tokenizer")
    for part, module in (("unet", networks.unet), ("vae", vae)):
        _store(module, draft / part / "diffusion_pytorch_model.safetensors", torch.float16)
    _store(networks.text_encoder, draft / "text_encoder" / "model.safetensors", torch.float32)
    old = out_dir.with_name(f".{out_dir.name}.old")
    if out_dir.exists():
        out_dir.rename(old)
    draft.rename(out_dir)
    shutil.rmtree(old, ignore_errors=True)


def _store(module: torch.nn.Module, path: Path, dtype: torch.dtype) -> None:
    weights = {
        name: value.to(dtype).contiguous() for name, value in module.state_dict().items() if value.is_floating_point()
    }
    if isinstance(module, CLIPTextModel):
        weights = {
            name if name.startswith("text_model.") else f"text_model.{name}": value for name, value in weights.items()
        }
    save_file(weights, path, metadata={"format": "pt"})


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    pipeline: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline, prompts: list[str], *, steps: int = 25, guidance: float = 4.0, seed: int = 0
) -> list[Image.Image]:
    """Draw one image per prompt, each with its own seed."""
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    images: list[Image.Image] = pipeline(
        prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, height=64, width=64
    ).images
    return images


def save_sheet(folder: Path, path: Path) -> None:
    """Draw the prompts of the contact sheet with the pipeline in `folder`."""
    prompts = list(SHEET_PROMPTS)
    contact_sheet(sample(load_pipeline(folder), prompts), prompts).save(path)
