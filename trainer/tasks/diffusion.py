"""The diffusion task: load, encode, loss, samples.

Shapes: B batch, C latent channels, H and W latent sides, T caption tokens, D embedding width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor

from trainer.dataset.memory import release_memory
from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.mixing import Mixture, with_source
from trainer.device import autocast, choose_precision, dtype_of, to_device
from trainer.errors import BadSpecError
from trainer.models.base import Family, LoadedBase, digest_of, fingerprint, load_base
from trainer.models.methods import attach, widen
from trainer.models.methods.checkpoint_file import base_metadata
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.models.quantization import quantize
from trainer.models.widening import release_pages, widened_layers
from trainer.protocol.report import Split
from trainer.protocol.settings import MethodKind, Objective, Samples, SizeConditioning
from trainer.protocol.spec import Spec
from trainer.protocol.text import _
from trainer.protocol.training_settings import Precision
from trainer.report.gallery import MAX_COMPARED, ComparedColumn, draw_comparison
from trainer.tasks.diffusion_loss import (
    check_objective,
    elementwise_loss,
    noise_like,
    perturbed,
    reduce_loss,
    seeded_noise,
    timestep_weight,
)
from trainer.tasks.drawing import (
    BATCH,
    SamplePlan,
    draw_samples,
    learned_images,
    one_of_each_prompt,
    plan_samples,
    prior_source,
)
from trainer.tasks.encoding_cache import CaptionEmbeddings, Encoder, encode_splits
from trainer.tasks.examples import Examples, ImageView
from trainer.tasks.memory_prediction import MemoryNeed, StepSettings, predict_memory, predict_sampling
from trainer.tasks.task import DrawnSample, FrozenLoss, Verified
from trainer.tasks.verify import verify_exports

log = logging.getLogger(__name__)

#: Mean squared error.
_PLAIN = Objective()


class DiffusionTask:
    """A loaded base with its method attached, and the datasets as latents and caption embeddings."""

    def __init__(self, spec: Spec, mixture: Mixture, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.precision = Precision.FP32
        self.mixture = mixture
        self.base: LoadedBase = load_base(spec.base, spec.objective, as_stored=True)
        check_objective(spec.objective, self.base.prediction_type)
        self.resolution = spec.training.resolution or self.base.resolution
        self.fingerprint = fingerprint(self.base)
        # Before the method is attached: class images are drawn by the untrained base.
        self._denoiser_digest = digest_of(self.base.denoiser) if spec.prior.is_on else ""
        self.trained: Trained = attach(self.base, spec)
        self._has_class_images = False
        #: Predictions by what a step depends on.
        self._needs: dict[tuple[StepSettings, bool], MemoryNeed] = {}
        self.captions = CaptionEmbeddings(
            base=self.base,
            folder=mixture.sources[0].folder / "cache",
            fingerprint=f"{self.fingerprint} clip skip {spec.base.clip_skip}, {spec.base.max_token_length} tokens",
            device=device,
            is_trained=any(name.startswith("text_encoder") for name in self.trained.modules),
        )
        # The fingerprint has read them all.
        self._release_frozen()
        if spec.training.gradient_checkpointing:
            self._checkpoint_gradients()

    def __repr__(self) -> str:
        return f"<DiffusionTask {self.spec.base.source} at {self.resolution} px on {self.device}>"

    @property
    def schedule_steps(self) -> int:
        return self.base.schedule_steps

    @property
    def weights(self) -> int:
        return sum(parameter.numel() for parameter in self.base.denoiser.parameters())

    def encode(self, resolution: int, progress: Callable[[int, int], None]) -> dict[Split, Examples]:
        """Encode every split to latents and caption embeddings, or read them from the cache; draws class images first.

        Raises:
            DatasetError: an image is missing or damaged.
        """
        if self.spec.prior.is_on and not self._has_class_images:
            self._add_class_images(progress)
        encoder = Encoder(base=self.base, device=self.device, fingerprint=self.fingerprint)
        by_split = encode_splits(self.spec, self.mixture, encoder, resolution, progress)
        orders = (orders for examples in by_split.values() for orders in examples.caption_orders)
        self.captions.add((caption for each in orders for caption in each), progress)
        samples = self.spec.samples
        self.captions.add([*samples.prompts, *samples.unrelated_prompts, samples.negative_prompt])
        # The C library keeps what the VAE took: 0.4 GB for SD 1.5 at 256 px.
        release_memory()
        return by_split

    def predict_memory(self, settings: StepSettings, *, with_samples: bool = True) -> MemoryNeed | None:
        trained = dict(self.trained.named_parameters())
        settings = replace(settings, chunks=self._longest_caption())
        # What a step takes beside the weights, which takes seconds to predict, does not depend on these.
        step = replace(settings, quantization=None, state_bytes=0.0)
        try:
            if (known := self._needs.get((step, with_samples))) is None:
                known = predict_memory(self.base, trained, step)
                if with_samples:
                    known = replace(known, sampling=predict_sampling(self.base, step, images=BATCH))
                self._needs[step, with_samples] = known
            return predict_memory(self.base, trained, settings, known)
        except (RuntimeError, NotImplementedError):
            # An operation that fake tensors lack; a prediction is no reason to refuse a job.
            log.warning("the memory of %r cannot be predicted", self, exc_info=True)
            return None

    def _longest_caption(self) -> int:
        """Return the number of chunks of the longest caption or prompt."""
        captions = {caption for member in self.mixture.members for caption in self.mixture.captions_of(member)}
        return max(self.base.chunk_counts([*captions, *self.spec.samples.prompts, ""]))

    def place(self, precision: Precision) -> None:
        """Move what the step loop needs to the device and the rest off it.

        Frozen weights are converted to `precision` or quantized, one by one, from the files that they are mapped from;
        trained ones to what they are trained in. A text encoder that is not trained stays in its file.
        """
        self.precision = precision
        denoiser = self.base.denoiser
        widen(self.trained)
        self._place_frozen(precision)
        for buffer in denoiser.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.float()
        # Channels last makes convolutions of large UNets 3 to 5 % faster on a CPU (not measured on a GPU).
        denoiser.to(self.device, memory_format=torch.channels_last)
        if self.spec.method.kind.is_adapter:
            # peft's DoRA needs its factors in contiguous layout.
            for _name, parameter in self.trained.named_parameters():
                parameter.data = parameter.data.contiguous()
        if self.captions.is_trained:
            for name, encoder in self.base.text_encoders.items():
                encoder.to(self.device, None if name == "text_encoder_3" else torch.float32)
        if self.spec.training.compile:
            # Equal blocks are compiled once for all of them: nearly as fast, in a fraction of the time, by diffusers'
            # documentation. It names none for SD 3.
            has_equal_blocks = bool(denoiser._repeated_blocks)
            (denoiser.compile_repeated_blocks if has_equal_blocks else denoiser.compile)()
        release_memory()

    def _place_frozen(self, precision: Precision) -> None:
        trained = {id(parameter) for _name, parameter in self.trained.named_parameters()}
        if self.spec.base.quantization is not None:
            quantize(self.base.denoiser, self.spec.base.quantization, trained=trained, device=self.device)

        def replaced() -> Iterator[Tensor]:
            for name, parameter in self.base.denoiser.named_parameters():
                if id(parameter) not in trained and not name.endswith(".quantized_weight"):
                    stored = parameter.data
                    # In its final layout at once: a second copy of all convolutions would be in memory, too.
                    layout = torch.channels_last if stored.ndim == 4 else torch.preserve_format
                    parameter.data = stored.to(self.device, dtype_of(precision), memory_format=layout)
                    yield stored

        self._release_frozen()
        release_pages(replaced())

    def _release_frozen(self) -> None:
        """Give back the memory of weights that are read now and then: they stay in their files."""
        encoders = () if self.captions.is_trained else self.base.text_encoders.values()
        release_pages(p.data for part in (self.base.vae, *encoders) for p in part.parameters())

    def train_mode(self, is_training: bool) -> None:
        for model in self.trained.modules.values():
            model.train(is_training)

    def train_loss(self, examples: Examples, views: Sequence[ImageView], seeds: Sequence[int]) -> Tensor:
        """The training loss of each view, [B]; `seeds` determine timestep, noise and caption dropout."""
        objective = self.spec.objective
        latents_BCHW = examples.inputs(views)
        shape = tuple(latents_BCHW.shape[1:])
        noise_BCHW = torch.stack([noise_like(shape, seed, objective) for seed in seeds])
        input_BCHW = noise_BCHW
        if objective.input_perturbation:
            pairs = zip(noise_BCHW, seeds, strict=True)
            input_BCHW = torch.stack([perturbed(noise, seed, objective.input_perturbation) for noise, seed in pairs])
        timestep_B = torch.tensor([self.base.draw_timestep(derive_seed("timestep", seed)) for seed in seeds])
        dropped = [Random(derive_seed("caption", s)).random() < self.spec.training.caption_dropout for s in seeds]
        captions = ["" if drop else examples.caption(view) for view, drop in zip(views, dropped, strict=True)]
        prediction_BCHW, target_BCHW = self._predict(
            latents_BCHW, noise_BCHW, input_BCHW, timestep_B, captions, self._sizes(examples, views)
        )
        loss_B = self._training_loss(prediction_BCHW, target_BCHW, timestep_B, self._mask(examples, views))
        if self.spec.training.regularization_weight != 1:
            weight_B = torch.tensor([examples.loss_weights[view.index] for view in views], dtype=loss_B.dtype)
            loss_B = loss_B * to_device(weight_B, self.device)
        return loss_B

    @torch.no_grad()
    def frozen_losses(
        self, examples: Examples, indices: Sequence[int], timesteps: Sequence[int], noise_seeds: Sequence[int]
    ) -> list[FrozenLoss]:
        """Losses of validation triples of one size: standard normal noise, no dropout.

        Both losses come from the same prediction. If the objective is masked, so is the plain loss.
        """
        views = [ImageView(index=index) for index in indices]
        latents_BCHW, timestep_B = examples.inputs(views), torch.tensor(timesteps)
        noise_BCHW = torch.stack([seeded_noise(tuple(latents_BCHW.shape[1:]), seed) for seed in noise_seeds])
        captions = [examples.captions[index] for index in indices]
        prediction_BCHW, target_BCHW = self._predict(
            latents_BCHW, noise_BCHW, noise_BCHW, timestep_B, captions, self._sizes(examples, views)
        )
        mask_B1HW = self._mask(examples, views)
        error_BCHW = elementwise_loss(prediction_BCHW, target_BCHW, _PLAIN)
        plain_B = reduce_loss(error_BCHW, mask_B1HW, self.spec.objective.mask_floor)
        training_B = self._training_loss(prediction_BCHW, target_BCHW, timestep_B, mask_B1HW)
        return FrozenLoss.of_batch(plain_B.tolist(), training_B.tolist())

    def base_only(self) -> AbstractContextManager[None]:
        return self.trained.base_only()

    def sample_plan(self, examples: Examples) -> tuple[SamplePlan, ...]:
        """The job's samples: its prompts, or else up to four different captions of the examples."""
        settings = self.spec.samples
        prompts = settings.prompts or tuple(dict.fromkeys(c for c in examples.captions if c))[:4] or ("",)
        return plan_samples(prompts, settings)

    def draw(
        self, examples: Examples, folder: Path, *, shard: slice, progress: Callable[[int, int], None]
    ) -> list[DrawnSample]:
        """Draw this process's share of the samples with the current model; returns all of them."""
        return self._draw_plan(self.sample_plan(examples), folder, shard, progress)

    def draw_prompts(
        self, prompts: Sequence[str], folder: Path, *, shard: slice, progress: Callable[[int, int], None]
    ) -> list[DrawnSample]:
        """Draw this process's share of the prompts' images, with several seeds for few prompts; returns all of them."""
        plan = plan_samples(prompts, self.spec.samples) if prompts else ()
        return self._draw_plan(plan, folder, shard, progress)

    def _draw_plan(
        self, plan: Sequence[SamplePlan], folder: Path, shard: slice, progress: Callable[[int, int], None]
    ) -> list[DrawnSample]:
        samples = [
            DrawnSample(path=folder / f"{number}.png", prompt=s.prompt, seed=s.seed) for number, s in enumerate(plan)
        ]
        if not samples[shard]:
            return samples
        # What the steps have left: images are decoded in larger blocks, which are not taken from it.
        release_memory()
        with autocast(self.device, self.precision):
            pil_images = self._draw(plan[shard], self.spec.samples, progress)
        for sample, pil_image in zip(samples[shard], pil_images, strict=True):
            sample.path.parent.mkdir(parents=True, exist_ok=True)
            pil_image.save(sample.path)
        return samples

    def metrics(self, examples: Examples, between_batches: Callable[[], None]) -> Mapping[str, float]:
        """Return none: the loss measures a diffusion model."""
        return {}

    def draw_chart(self, examples: Examples, path: Path, between_batches: Callable[[], None]) -> str | None:
        """Return None: diffusion has no classes."""
        return None

    def compare(
        self,
        examples: Examples,
        path: Path | None,
        samples: Callable[[], tuple[Sequence[DrawnSample], Sequence[DrawnSample]]],
        *,
        title: str,
        gain: str,
        between_batches: Callable[[], None],
    ) -> str:
        """Draw the base model's samples beside those of the best epoch, same prompts and seeds, and training images."""
        base, best = (one_of_each_prompt(drawn)[:MAX_COMPARED] for drawn in samples())
        prompts = [each.prompt for each in base]
        if path is not None:
            columns = [
                ComparedColumn(heading=_("before"), note=_("base model"), images=[each.open() for each in base]),
                ComparedColumn(heading=_("after"), note=gain, images=[each.open() for each in best]),
                ComparedColumn(
                    heading=_("your images"), note=_("to compare"), images=learned_images(self.mixture, prompts)
                ),
            ]
            draw_comparison(path, columns, [prompt or _("(no prompt)") for prompt in prompts])
        return _(
            "On the left the base model, in the middle {title}, same seeds; on the right training images. "
            "Prompts: {prompts}",
            title=title,
            prompts="; ".join(dict.fromkeys(prompts)),
        )

    def describe(self) -> Mapping[str, Any]:
        """Metadata of the base in kohya's and Stability's formats."""
        return {
            **base_metadata(self.spec.base.source),
            "ss_v2": self.base.family == Family.SD2,
            **architecture_metadata(self.base, self.spec.method.kind),
        }

    def verify(
        self, files: Sequence[ExportedFile], examples: Examples, progress: Callable[[int, int], None]
    ) -> list[Verified]:
        """Load each file into a fresh base and compare predictions.

        Raises:
            ExportError: a file cannot be loaded, or predicts something else than the trained model.
        """
        caption = next((caption for caption in examples.captions if caption), self.spec.training.trigger)
        if self.spec.method.kind is MethodKind.TEXTUAL_INVERSION:
            from trainer.models.methods.inversion import probe_caption

            caption = probe_caption(examples.captions, self.spec.training.trigger)
        weights = self.trained.state()
        # Make room on the device for the models that are loaded.
        self.base.denoiser.to("cpu")
        return verify_exports(self.spec, weights, files, caption=caption, device=self.device, progress=progress)

    def _add_class_images(self, progress: Callable[[int, int], None]) -> None:
        """Draw regularization (class) images with the base, and add them to the datasets."""
        prior = self.spec.prior
        settings = Samples(steps=prior.steps, guidance=prior.guidance)
        self.base.denoiser.to(self.device)

        def draw(wanted: Sequence[tuple[str, int]]) -> Sequence[PILImage.Image]:
            plan = [SamplePlan(prompt=prompt, seed=seed) for prompt, seed in wanted]
            with autocast(self.device, choose_precision(self.spec.training.precision)):
                return self._draw(plan, settings, lambda _done, _total: progress(0, prior.images))

        # The weights are still as they are stored, in half precision; only on a GPU, autocast computes with such.
        is_wide = self.device.type == "cpu"
        with self.base_only(), widened_layers(self.device, self.base.denoiser) if is_wide else nullcontext():
            source = prior_source(
                prior,
                folder=self.mixture.sources[0].folder / "cache" / "class-images",
                fingerprint=f"{self.fingerprint} {self._denoiser_digest}",
                resolution=self.resolution,
                draw=draw,
                between_batches=progress,
            )
        self.mixture = with_source(self.mixture, source)
        self._has_class_images = True

    def _draw(
        self, plan: Sequence[SamplePlan], settings: Samples, progress: Callable[[int, int], None]
    ) -> list[PILImage.Image]:
        self.train_mode(False)
        return draw_samples(
            self.base,
            plan,
            settings,
            resolution=self.resolution,
            embed=self.captions.embed,
            device=self.device,
            progress=progress,
        )

    def _predict(
        self,
        latents_BCHW: Tensor,
        noise_BCHW: Tensor,
        input_BCHW: Tensor,
        timestep_B: Tensor,
        captions: list[str],
        size_B6: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The prediction for `latents` with the noise `input`, and the target for the noise `noise`."""
        latents_BCHW, noise_BCHW, input_BCHW, timestep_B = (
            to_device(tensor, self.device) for tensor in (latents_BCHW, noise_BCHW, input_BCHW, timestep_B)
        )
        noisy_BCHW = self.base.add_noise(latents_BCHW, input_BCHW, timestep_B)
        with autocast(self.device, self.precision):
            text = self.captions.embed(captions)
            if size_B6 is not None:
                text = {**text, "size_B6": to_device(size_B6, self.device)}
            prediction_BCHW = self.base.predict(noisy_BCHW, timestep_B, text)
        return prediction_BCHW, self.base.target(latents_BCHW, noise_BCHW, timestep_B)

    def _training_loss(
        self, prediction_BCHW: Tensor, target_BCHW: Tensor, timestep_B: Tensor, mask_B1HW: Tensor | None
    ) -> Tensor:
        objective = self.spec.objective
        loss_BCHW = elementwise_loss(prediction_BCHW, target_BCHW, objective)
        loss_B = reduce_loss(loss_BCHW, mask_B1HW, objective.mask_floor)
        timestep_B = to_device(timestep_B, self.device)
        weight_B = timestep_weight(self.base.snr(timestep_B), self.base.prediction_type, objective)
        return loss_B * weight_B

    def _sizes(self, examples: Examples, views: Sequence[ImageView]) -> Tensor | None:
        is_told = self.spec.objective.size_conditioning is SizeConditioning.ORIGINAL
        return examples.size_conditions(views) if is_told and self.base.family is Family.SDXL else None

    def _mask(self, examples: Examples, views: Sequence[ImageView]) -> Tensor | None:
        mask_B1HW = examples.mask(views) if self.spec.objective.masked else None
        return None if mask_B1HW is None else to_device(mask_B1HW, self.device)

    def _checkpoint_gradients(self) -> None:
        enable = getattr(self.base.denoiser, "enable_gradient_checkpointing", None)
        if enable is None:
            raise BadSpecError(
                "This base does not support gradient checkpointing.", "Set training.gradient_checkpointing to false."
            )
        enable()
        for name, encoder in self.base.text_encoders.items():
            if name in self.trained.modules:
                encoder.gradient_checkpointing_enable()


def architecture_metadata(base: LoadedBase, kind: MethodKind) -> dict[str, str]:
    """What a file is for: `ss_base_model_version` by kohya, `modelspec.*` by Stability AI.

    Sources: `get_model_version_str_for_sd1_sd2` and `library/sai_model_spec.py` of kohya-ss/sd-scripts; for the names
    of SD 3 and 3.5 also the classes of mcmonkeyprojects/SwarmUI, which sorts by them.
    """
    is_velocity = base.prediction_type == "v_prediction"
    match base.family:
        case Family.SD1:
            version, architecture = f"sd_v1{'_v' * is_velocity}", "stable-diffusion-v1"
        case Family.SD2:
            version = f"sd_v2{'_v' * is_velocity}"
            architecture = "stable-diffusion-v2-768-v" if is_velocity else "stable-diffusion-v2-512"
        case Family.SDXL:
            version, architecture = "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
        case Family.SD3:
            version, architecture = _SD3_NAMES[_sd3_size(base)]
    suffix = "/lora" if kind.is_adapter else "/textual-inversion" if kind is MethodKind.TEXTUAL_INVERSION else ""
    # Names of layers as in the original code: words, whole models, and the UNet of SDXL.
    has_original_names = not kind.is_adapter or base.family is Family.SDXL
    metadata = {
        "ss_base_model_version": version,
        "modelspec.architecture": f"{architecture}{suffix}",
        "modelspec.implementation": _STABILITY if has_original_names else "diffusers",
    }
    if base.prediction_type != "flow":
        metadata["modelspec.prediction_type"] = "v" if is_velocity else "epsilon"
    return metadata


def _sd3_size(base: LoadedBase) -> str:
    """Tell the models of SD 3 by their layers: only 3.5 normalizes queries and keys, and only its medium has a second
    attention."""
    config = base.denoiser.config
    if config.qk_norm is None:
        return "medium"
    return "5-medium" if config.dual_attention_layers else "5-large"


#: kohya's `model_type` (`analyze_sd3_checkpoint` of `library/sd3_utils.py`), and the architecture.
_SD3_NAMES = {
    "medium": ("medium", "stable-diffusion-v3-medium"),
    "5-medium": ("5-medium", "stable-diffusion-v3.5-medium"),
    "5-large": ("5-large", "stable-diffusion-v3.5-large"),
}
_STABILITY = "https://github.com/Stability-AI/generative-models"
