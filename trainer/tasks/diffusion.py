"""Fine-tuning of a Stable Diffusion: what the recipe needs to know of it (load, encode, loss, sample).

Shapes: B batch, C latent channels, H and W latent sides, T caption tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image as PILImage
from torch import Tensor, nn

from trainer.dataset.buckets import Size, assign, default_step
from trainer.dataset.mixing import Mixture
from trainer.dataset.overlap import Member
from trainer.models.base import BaseModel, fingerprint, load_base
from trainer.models.lora import add_text_encoder_lora, add_unet_lora, trainable_parameters
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Split
from trainer.protocol.spec import Spec
from trainer.tasks.cache import cache_key, cached
from trainer.tasks.examples import Examples, Latents, View, tag_orders, without_separator
from trainer.tasks.latents import Encoder
from trainer.tasks.objective import min_snr_weight, prediction_target, seeded_noise, squared_error
from trainer.tasks.preview import draw_preview
from trainer.tasks.samples import SamplePlan, draw_samples, plan_samples


class DiffusionTask:
    """A loaded base with a LoRA on it, and the datasets as latents and caption embeddings."""

    def __init__(self, spec: Spec, mixture: Mixture, accelerator: Accelerator) -> None:
        self.spec = spec
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self._mixture = mixture
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

        `progress` is told how many pictures and variants are encoded, of how many; those in the cache do not count.

        Raises:
            DatasetError: a picture of a dataset folder is gone or damaged.
        """
        members = self._mixture.members
        sizes = self._sizes(members)
        is_varied = [self._is_varied(member) for member in members]
        originals, variants = self._latents(members, sizes, is_varied, progress)
        captions = self._captions(members)
        self._embed_captions([caption for orders in captions for caption in orders])
        self._embed_captions([*self.spec.samples.prompts, self.spec.samples.negative_prompt])
        by_split = {}
        for split in Split:
            chosen = [place for place, member in enumerate(members) if member.split is split]
            by_split[split] = Examples(
                members=tuple(members[i] for i in chosen),
                sizes=tuple(sizes[i] for i in chosen),
                caption_orders=tuple(captions[i] for i in chosen),
                loss_weights=tuple(self._loss_weight(members[i]) for i in chosen),
                originals=tuple(originals[i] for i in chosen),
                variants=tuple(variants.get(i) for i in chosen),
            )
        return by_split

    def draw_augmentation(self, examples: Examples, path: Path) -> Path:
        """A sheet of training pictures of the main dataset beside their variants.

        Raises:
            DatasetError: a picture of the dataset folder is gone or damaged.
        """
        shown = [place for place, member in enumerate(examples.members) if member.source == 0]
        return draw_preview(
            self._mixture.sources[0].folder,
            [examples.images[place] for place in shown],
            [examples.sizes[place] for place in shown],
            self.spec.augmentation,
            self.spec.training.seed,
            path,
        )

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

    def train_loss(self, examples: Examples, views: Sequence[View], generator: torch.Generator) -> Tensor:
        """The training loss of each of `views`, [B]; timestep, noise and caption dropout come from `generator`."""
        latents_BCHW = examples.latents(views)
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator)
        timestep_B = torch.randint(self.schedule_steps, (len(views),), generator=generator)
        dropped_B = torch.rand(len(views), generator=generator) < self.spec.training.caption_dropout
        captions = ["" if dropped else examples.caption(view) for view, dropped in zip(views, dropped_B, strict=True)]
        loss_B = self._loss(latents_BCHW, noise_BCHW, timestep_B, captions)
        if self.spec.training.snr_gamma is not None:
            loss_B = loss_B * min_snr_weight(
                timestep_B.to(self.device), self.base.noise_schedule, self.spec.training.snr_gamma
            )
        if self.spec.training.regularization_weight != 1:
            loss_B = loss_B * torch.tensor([examples.loss_weights[view.index] for view in views]).to(loss_B)
        return loss_B

    @torch.no_grad()
    def frozen_losses(
        self, examples: Examples, indices: Sequence[int], timesteps: Sequence[int], noise_seeds: Sequence[int]
    ) -> list[float]:
        """Plain squared error on given (image, timestep, noise) triples of one size; no dropout of any kind."""
        latents_BCHW = examples.latents([View(index=index) for index in indices])
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
        return self._mixture.sources[0].folder / "cache"

    def _captions(self, members: Sequence[Member]) -> list[tuple[str, ...]]:
        """The captions of each picture: one, or, where training pictures have their tags shuffled, several."""
        training = self.spec.training
        captions = [self._mixture.caption_of(member) for member in members]
        plain = [(without_separator(caption),) for caption in captions]
        if not training.tag_shuffle:
            return list(plain)
        trained = [place for place, member in enumerate(members) if member.split is Split.TRAIN]
        orders = tag_orders([captions[place] for place in trained], training.keep_tags, training.seed)
        by_place = dict(zip(trained, orders, strict=True))
        return [by_place.get(place, caption) for place, caption in enumerate(plain)]

    def _loss_weight(self, member: Member) -> float:
        is_class_picture = self._mixture.source_of(member).role is MixRole.REGULARIZATION
        return self.spec.training.regularization_weight if is_class_picture else 1.0

    def _is_varied(self, member: Member) -> bool:
        """Only what is taught is varied: what measures stays as it is, and class pictures stand for themselves."""
        is_taught = member.split is Split.TRAIN and self._mixture.source_of(member).role is MixRole.TRAIN
        return self.spec.augmentation.is_on and is_taught

    def _sizes(self, members: Sequence[Member]) -> tuple[Size, ...]:
        return tuple(
            assign(
                [(member.image.width or 0, member.image.height or 0) for member in members],
                self.resolution,
                default_step(self.resolution, len(members)),
                batch=self.spec.training.effective_micro_batch_size,
            )
        )

    def _latents(
        self,
        members: Sequence[Member],
        sizes: Sequence[Size],
        is_varied: Sequence[bool],
        progress: Callable[[int, int], None],
    ) -> tuple[dict[int, Latents], dict[int, Latents]]:
        """Latents of all pictures and of the variants of some, by place; each dataset has a cache of its own."""
        augmentation, seed = self.spec.augmentation, self.spec.training.seed
        done, total = count(), len(members) + augmentation.variants * sum(is_varied)
        encoder = Encoder(
            vae=self.base.vae,
            device=self.device,
            fingerprint=self.base_fingerprint,
            tick=lambda: progress(next(done), total),
        )
        originals: dict[int, Latents] = {}
        variants: dict[int, Latents] = {}
        for number, source in enumerate(self._mixture.sources):
            places = [place for place, member in enumerate(members) if member.source == number]
            varied = [place for place in places if is_varied[place]]
            images, image_sizes = [members[i].image for i in places], [sizes[i] for i in places]
            originals |= zip(places, encoder.pictures(source.folder, images, image_sizes), strict=True)
            if varied:
                images, image_sizes = [members[i].image for i in varied], [sizes[i] for i in varied]
                encoded = encoder.variants(source.folder, images, image_sizes, augmentation, seed)
                variants |= zip(varied, encoded, strict=True)
        return originals, variants
