"""Fine-tuning of a Stable Diffusion: what the recipe needs to know of it (load, encode, loss, sample).

Shapes: B batch, C latent channels, H and W latent sides, T caption tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image as PILImage
from torch import Tensor, nn

from trainer.dataset.buckets import Size, assign, default_step, fit
from trainer.errors import DatasetError
from trainer.models.base import BaseModel, fingerprint, load_base
from trainer.models.lora import add_text_encoder_lora, add_unet_lora, trainable_parameters
from trainer.protocol.report import DatasetReport, Image, Split
from trainer.protocol.spec import Spec
from trainer.tasks.cache import cache_key, cached
from trainer.tasks.objective import min_snr_weight, prediction_target, seeded_noise, squared_error
from trainer.tasks.samples import SamplePlan, draw_samples, plan_samples


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The pictures of one split, encoded."""

    images: tuple[Image, ...]
    #: Width and height that each is trained at, px.
    sizes: tuple[Size, ...]
    captions: tuple[str, ...]
    #: Latents of all pictures of a size, [N, C, H, W], and the row of each picture in its tensor.
    latents_by_size: dict[Size, Tensor] = field(repr=False)
    rows: tuple[int, ...] = field(repr=False)

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Latents of pictures of one size, [B, C, H, W]."""
        stored_NCHW = self.latents_by_size[self.sizes[indices[0]]]
        return stored_NCHW[[self.rows[index] for index in indices]]


class DiffusionTask:
    """A loaded base with a LoRA on it, and the dataset as latents and caption embeddings."""

    def __init__(self, spec: Spec, report: DatasetReport, dataset_dir: Path, accelerator: Accelerator) -> None:
        self.spec = spec
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self._dataset_dir = dataset_dir
        self._report = report
        self.base: BaseModel = load_base(spec.base)
        self.resolution = spec.training.resolution or self.base.resolution
        self.base_fingerprint = fingerprint(self.base.vae, self.base.text_encoder)
        self.lora_config = add_unet_lora(self.base.unet, spec.adapter)
        self.is_text_encoder_trained = spec.adapter.text_encoder
        if self.is_text_encoder_trained:
            add_text_encoder_lora(self.base.text_encoder, spec.adapter)
        self.unet: nn.Module = self.base.unet
        self._embeddings: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        return f"<DiffusionTask {self.spec.base.source} at {self.resolution} px on {self.device}>"

    @property
    def schedule_steps(self) -> int:
        return int(self.base.noise_schedule.config.num_train_timesteps)

    @property
    def trained_models(self) -> dict[str, nn.Module]:
        """The models that carry a LoRA, by the name that their weights have in files."""
        models: dict[str, nn.Module] = {"unet": self.base.unet}
        if self.is_text_encoder_trained:
            models["text_encoder"] = self.base.text_encoder
        return models

    def encode(self, progress: Callable[[int, int], None]) -> dict[Split, Examples]:
        """Latents and caption embeddings of every split, from the cache or computed once.

        Raises:
            DatasetError: a picture of the dataset folder is gone or damaged.
        """
        kept = [image for image in self._report.images if image.status == "kept" and image.split]
        sizes = self._sizes(kept)
        latents = self._latents(kept, sizes, progress)
        self._embed_captions([self.caption_of(image) for image in kept])
        self._embed_captions([*self.spec.samples.prompts, self.spec.samples.negative_prompt])
        rows = _rows(sizes)
        by_split = {}
        for split in Split:
            chosen = [index for index, image in enumerate(kept) if image.split is split]
            by_split[split] = Examples(
                images=tuple(kept[i] for i in chosen),
                sizes=tuple(sizes[i] for i in chosen),
                captions=tuple(self.caption_of(kept[i]) for i in chosen),
                latents_by_size=latents,
                rows=tuple(rows[i] for i in chosen),
            )
        return by_split

    def place(self) -> None:
        """Bring to the device what the step loop needs, and let the rest leave it.

        Where the base is frozen in half precision, only the LoRA is kept in fp32.
        """
        self.base.vae.to("cpu")
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, torch.float32)
        for parameter in self.base.unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        if self.is_text_encoder_trained:
            self.base.text_encoder.to(self.device)
        else:
            self.base.text_encoder.to("cpu")
        self.unet = self.accelerator.prepare_model(self.base.unet)

    def caption_of(self, image: Image) -> str:
        """The caption of a picture, with the trigger word in front where it does not hold it."""
        trigger = self.spec.training.trigger
        if trigger and trigger.lower() not in image.caption.lower():
            return f"{trigger}, {image.caption}" if image.caption else trigger
        return image.caption

    def train_loss(self, examples: Examples, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """The training loss of each of `indices`, [B]; timestep, noise and caption dropout come from `generator`."""
        latents_BCHW = examples.latents(indices)
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator)
        timestep_B = torch.randint(self.schedule_steps, (len(indices),), generator=generator)
        dropped_B = torch.rand(len(indices), generator=generator) < self.spec.training.caption_dropout
        captions = ["" if dropped else examples.captions[i] for i, dropped in zip(indices, dropped_B, strict=True)]
        loss_B = self._loss(latents_BCHW, noise_BCHW, timestep_B, captions)
        if self.spec.training.snr_gamma is not None:
            loss_B = loss_B * min_snr_weight(
                timestep_B.to(self.device), self.base.noise_schedule, self.spec.training.snr_gamma
            )
        return loss_B

    @torch.no_grad()
    def frozen_losses(
        self, examples: Examples, indices: Sequence[int], timesteps: Sequence[int], noise_seeds: Sequence[int]
    ) -> list[float]:
        """Plain squared error on given (image, timestep, noise) triples of one size; no dropout of any kind."""
        latents_BCHW = examples.latents(indices)
        noise_BCHW = torch.stack([seeded_noise(tuple(latents_BCHW.shape[1:]), seed) for seed in noise_seeds])
        captions = [examples.captions[i] for i in indices]
        losses: list[float] = self._loss(latents_BCHW, noise_BCHW, torch.tensor(timesteps), captions).tolist()
        return losses

    def train_mode(self, is_training: bool) -> None:
        for model in self.trained_models.values():
            model.train(is_training)

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """The base model as it was, its LoRA switched off."""
        for model in self.trained_models.values():
            model.disable_adapters()  # type: ignore[operator]
        try:
            yield
        finally:
            for model in self.trained_models.values():
                model.enable_adapters()  # type: ignore[operator]

    def sample_plan(self, examples: Examples) -> tuple[SamplePlan, ...]:
        """The samples of this job; without prompts of the person, distinct captions of the validation split."""
        prompts = self.spec.samples.prompts or tuple(dict.fromkeys(c for c in examples.captions if c))[:4] or ("",)
        return plan_samples(prompts, self.spec.samples)

    def sample(self, plan: Sequence[SamplePlan], between_steps: Callable[[], None]) -> list[PILImage.Image]:
        """Draw the samples with the model as it is now."""
        self.train_mode(False)
        with self.accelerator.autocast():
            return draw_samples(
                self.base,
                plan,
                self.spec.samples,
                resolution=self.resolution,
                embed=self.embed,
                device=self.device,
                micro_batch_size=self.spec.training.effective_micro_batch_size,
                between_steps=between_steps,
            )

    def parameter_groups(self) -> list[dict[str, object]]:
        """Trainable parameters with their learning rates; LoRA has no norms or biases, so decay goes to all."""
        training = self.spec.training
        groups: list[dict[str, object]] = [
            {"params": list(trainable_parameters(self.base.unet)), "lr": training.learning_rate}
        ]
        if self.is_text_encoder_trained:
            rate = training.text_encoder_learning_rate or training.learning_rate / 2
            groups.append({"params": list(trainable_parameters(self.base.text_encoder)), "lr": rate})
        return groups

    def _loss(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor, captions: list[str]) -> Tensor:
        schedule = self.base.noise_schedule
        latents_BCHW, noise_BCHW = latents_BCHW.to(self.device), noise_BCHW.to(self.device)
        timestep_B = timestep_B.to(self.device)
        noisy_BCHW = schedule.add_noise(latents_BCHW, noise_BCHW, timestep_B)
        with self.accelerator.autocast():
            caption_BTD = self.embed(captions)
            prediction_BCHW = self.unet(noisy_BCHW, timestep_B, caption_BTD, return_dict=False)[0]
        target_BCHW = prediction_target(latents_BCHW, noise_BCHW, timestep_B, schedule)
        return squared_error(prediction_BCHW, target_BCHW)

    def embed(self, captions: list[str]) -> Tensor:
        """Caption embeddings [B, T, D] on the device: cached, or, where it is trained, by the text encoder."""
        if self.is_text_encoder_trained:
            return self._encode_text(captions)
        unknown = [caption for caption in captions if caption not in self._embeddings]
        if unknown:
            self._embed_captions(unknown)
        return torch.stack([self._embeddings[caption] for caption in captions]).to(self.device)

    def _embed_captions(self, captions: Sequence[str]) -> None:
        if self.is_text_encoder_trained:
            return
        texts = sorted({*captions, ""})
        key = cache_key(self.base_fingerprint, list(texts))

        @torch.no_grad()
        def compute() -> dict[str, Tensor]:
            self.base.text_encoder.to(self.device)
            embedded = [self._encode_text(texts[i : i + 32]).cpu() for i in range(0, len(texts), 32)]
            return {"caption_NTD": torch.cat(embedded)}

        stored_NTD = cached(self._cache_dir, "captions", key, compute)["caption_NTD"]
        self._embeddings |= dict(zip(texts, stored_NTD, strict=True))

    def _encode_text(self, captions: list[str]) -> Tensor:
        tokenizer = self.base.tokenizer
        tokens = tokenizer(
            captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        )
        encoder = self.base.text_encoder
        embedded_BTD: Tensor = encoder(tokens.input_ids.to(self.device), return_dict=False)[0]
        return embedded_BTD

    @property
    def _cache_dir(self) -> Path:
        return self._dataset_dir / "cache"

    def _sizes(self, images: Sequence[Image]) -> tuple[Size, ...]:
        return tuple(
            assign(
                [(image.width or 0, image.height or 0) for image in images],
                self.resolution,
                default_step(self.resolution, len(images)),
                batch=self.spec.training.effective_micro_batch_size,
            )
        )

    def _latents(
        self, images: Sequence[Image], sizes: Sequence[Size], progress: Callable[[int, int], None]
    ) -> dict[Size, Tensor]:
        content = [[image.pixels_sha256, size] for image, size in zip(images, sizes, strict=True)]
        key = cache_key(self.base_fingerprint, [*content])

        def compute() -> dict[str, Tensor]:
            self.base.vae.to(self.device)
            latents: dict[str, list[Tensor]] = {}
            for done, (image, size) in enumerate(zip(images, sizes, strict=True)):
                progress(done, len(images))
                latents.setdefault(f"{size[0]}x{size[1]}", []).append(self._encode_picture(image, size))
            return {name: torch.stack(items) for name, items in latents.items()}

        stored = cached(self._cache_dir, "latents", key, compute)
        return {_parse_size(name): tensor for name, tensor in stored.items()}

    @torch.no_grad()
    def _encode_picture(self, image: Image, size: Size) -> Tensor:
        """The mean of the VAE's posterior, scaled as the UNet expects it, [C, H, W]."""
        assert image.path is not None, "a kept picture has a file"
        try:
            with PILImage.open(self._dataset_dir / image.path) as opened:
                pixels_HWC = np.asarray(fit(opened.convert("RGB"), size), dtype=np.float32) / 127.5 - 1
        except OSError as error:
            raise DatasetError(
                f"{image.path} of the dataset cannot be read ({error}).", "Prepare the dataset again."
            ) from error
        pixels_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].to(self.device)
        vae = self.base.vae
        latents_1CHW: Tensor = vae.encode(pixels_1CHW).latent_dist.mode() * vae.config.scaling_factor
        return latents_1CHW[0].cpu()


def _rows(sizes: Sequence[Size]) -> tuple[int, ...]:
    """The place of each picture among those of its size."""
    counts: dict[Size, int] = {}

    def places() -> Iterator[int]:
        for size in sizes:
            counts[size] = counts.get(size, -1) + 1
            yield counts[size]

    return tuple(places())


def _parse_size(name: str) -> Size:
    width, height = name.split("x")
    return int(width), int(height)
