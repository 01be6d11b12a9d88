"""Builds the tiny Stable Diffusion from scratch: `python -m recipes.tiny.build --out trainer/models/tiny`.

Phases, each skipped if its result lies in ``--work``: draw the images (2.5 min), train the VAE (``--vae-minutes``),
polish its decoder (``--decoder-minutes``), encode the images (2 min), train UNet and text encoder
(``--unet-minutes``, resumable, exported every 6 minutes).
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from recipes.tiny.export import export_pipeline, save_sheet
from recipes.tiny.tokenizer import save_tokenizer
from recipes.tiny.train_unet import Examples, Networks, Progress, caption_tokens, tokenize, train_unet
from recipes.tiny.train_vae import encode, polish_decoder, train_vae
from recipes.tiny.training_images import ImageArray, draw_images

logger = logging.getLogger(__name__)

SCENES, DOODLES = 36_000, 6_000


@dataclass(frozen=True, kw_only=True)
class Minutes:
    """Time budget of each training phase."""

    vae: float
    decoder: float
    unet: float


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Train the tokenizer once per build: pairs of equal count are merged in any order, so vocabularies differ."""
    if not (folder / "vocab.json").exists():
        return save_tokenizer(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def _vae(work_dir: Path, scenes: ImageArray, minutes: float, decoder_minutes: float) -> AutoencoderKL:
    finished = work_dir / "vae"
    if not finished.exists():
        doodles = draw_images(work_dir, "doodles", DOODLES)
        trained = train_vae(scenes, doodles, minutes * 60)
        polish_decoder(trained, scenes, doodles, decoder_minutes * 60)
        trained.save_pretrained(work_dir / "vae.part")
        (work_dir / "vae.part").rename(finished)
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(finished, use_safetensors=True)
    return vae.to(memory_format=torch.channels_last).eval()


def _latents(work_dir: Path, scenes: ImageArray, vae: AutoencoderKL) -> torch.Tensor:
    path = work_dir / "latents.pt"
    if not path.exists():
        torch.save(encode(vae, scenes), path)
        logger.info("encoded %d images", len(scenes))
    latents: torch.Tensor = torch.load(path, weights_only=True)
    return latents


def _tokens(work_dir: Path, tokenizer: CLIPTokenizer, count: int) -> torch.Tensor:
    path = work_dir / "tokens.pt"
    if not path.exists():
        torch.save(caption_tokens(tokenizer, count), path)
    tokens: torch.Tensor = torch.load(path, weights_only=True)
    return tokens


def build(out_dir: Path, work_dir: Path, *, minutes: Minutes) -> None:
    """Run every phase and write the pipeline to `out_dir`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(work_dir / "tokenizer")
    scenes = draw_images(work_dir, "scenes", SCENES)
    vae = _vae(work_dir, scenes, minutes.vae, minutes.decoder)
    examples = Examples(
        latents=_latents(work_dir, scenes, vae),
        tokens=_tokens(work_dir, tokenizer, len(scenes)),
        empty_tokens=tokenize(tokenizer, [""])[0],
    )

    def export(average: Networks, progress: Progress) -> None:
        export_pipeline(average, vae, work_dir / "tokenizer", out_dir)
        save_sheet(out_dir, work_dir / f"sheet-{progress.step:06d}.png")
        logger.info("exported step %d to %s", progress.step, out_dir)

    train_unet(examples, tokenizer, work_dir / "unet.pt", minutes.unet * 60, export)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the pipeline to")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="images, latents and checkpoints")
    parser.add_argument("--vae-minutes", type=float, default=14)
    parser.add_argument("--decoder-minutes", type=float, default=6)
    parser.add_argument("--unet-minutes", type=float, default=60)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    minutes = Minutes(vae=options.vae_minutes, decoder=options.decoder_minutes, unet=options.unet_minutes)
    build(options.out, options.work, minutes=minutes)


if __name__ == "__main__":
    main()
