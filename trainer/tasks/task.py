"""The interface between the training loop and a task (diffusion, classification)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from trainer.dataset.split.mixing import Mixture
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.protocol.report import Split
from trainer.protocol.training_settings import Precision
from trainer.tasks.examples import Examples, ImageView
from trainer.tasks.memory_prediction import MemoryNeed, StepSettings


@dataclass(frozen=True, kw_only=True)
class FrozenLoss:
    """The loss of one validation triple."""

    #: Mean squared error, or cross-entropy.
    plain: float
    #: The training objective: kind of loss, timestep weight, label smoothing.
    training: float

    @classmethod
    def of_batch(cls, plain: Iterable[float], training: Iterable[float]) -> list[FrozenLoss]:
        """Return the losses of the images of a batch."""
        return [cls(plain=each, training=other) for each, other in zip(plain, training, strict=True)]


@dataclass(frozen=True, kw_only=True)
class DrawnSample:
    """A sample image on disk."""

    path: Path
    prompt: str
    seed: int

    def open(self) -> Image.Image:
        with Image.open(self.path) as opened:
            return opened.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An exported file, loaded back by the library that users load it with."""

    file: ExportedFile
    #: Largest difference from the trained model's prediction.
    max_difference: float


class Task(Protocol):
    """A loaded model with its method attached, and its training data.

    Shapes: B images. All randomness of a loss comes from `seeds`, one per image, so neither the micro-batch size nor
    the number of processes changes the result.
    """

    #: Precision of losses and samples.
    precision: Precision
    #: The datasets, including those that `encode` added, without images whose files cannot be read.
    mixture: Mixture

    @property
    def device(self) -> torch.device: ...

    @property
    def trained(self) -> Trained:
        """The attached method."""

    @property
    def resolution(self) -> int:
        """Default resolution: images are resized to the area of a square with this side, px."""

    @property
    def schedule_steps(self) -> int:
        """Number of timesteps that validation triples are drawn from; 1 for a task without noise."""

    def encode(self, resolution: int, progress: Callable[[int, int], None]) -> dict[Split, Examples]:
        """Encode every split at a resolution, or read it from the cache; calls `progress(done, total)`.

        Raises:
            UnreadableFilesError: images are missing or damaged.
            DatasetError: the data do not fit the task.
        """

    @property
    def weights(self) -> int:
        """Number of the model's weights."""

    def predict_memory(self, settings: StepSettings, *, with_samples: bool = True) -> MemoryNeed | None:
        """Predict the memory of a training with one image at once; None: it is small, or not known.

        Args:
            settings: Without `chunks`, which the captions decide.
            with_samples: Images are drawn between the epochs.
        """

    def place(self, precision: Precision) -> None:
        """Move what the step loop needs to the device and the rest off it, and compute in `precision` from now on.

        May be called again with a precision other than fp32. Frozen weights are kept in `precision`, trained in fp32.
        """

    def train_mode(self, is_training: bool) -> None:
        """Turn dropout on or off; frozen modules stay in eval mode."""

    def train_loss(self, examples: Examples, views: Sequence[ImageView], seeds: Sequence[int]) -> Tensor:
        """The training loss of each view, [B], differentiable."""

    def frozen_losses(
        self, examples: Examples, indices: Sequence[int], timesteps: Sequence[int], noise_seeds: Sequence[int]
    ) -> list[FrozenLoss]:
        """Losses of validation triples of one size: images by index, each with a timestep and a noise seed."""

    def base_only(self) -> AbstractContextManager[None]:
        """Disable the method for a while: the model is the base again."""

    def draw(
        self, examples: Examples, folder: Path, *, shard: slice, progress: Callable[[int, int], None]
    ) -> list[DrawnSample]:
        """Draw this process's share of the samples into `folder` as `0.png`, `1.png`, …; returns all of them.

        Args:
            examples: The validation split, or the training split if validation is empty.
            progress: Called between the steps with the images that are done, and all; it may raise to stop.
        """

    def draw_prompts(
        self, prompts: Sequence[str], folder: Path, *, shard: slice, progress: Callable[[int, int], None]
    ) -> list[DrawnSample]:
        """As `draw`, for prompts of `samples.unrelated_prompts`; empty if the model draws no images."""

    def metrics(self, examples: Examples, between_batches: Callable[[], None]) -> Mapping[str, float]:
        """Additional metrics of a split by name; none for diffusion."""

    def draw_chart(self, examples: Examples, path: Path, between_batches: Callable[[], None]) -> str | None:
        """Draw a confusion matrix of a split, and describe it in a sentence; None for diffusion."""

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
        """Draw what the training changed into `path`, and describe it in a sentence; every rank must call this.

        Args:
            examples: As in `draw`.
            path: None on ranks that do not draw.
            samples: Returns the samples of the base model and of the best epoch, drawing those that are missing;
                either every rank calls it or none.
            title: Names the trained model, for the description.
            gain: How much better it is, for a heading.
        """

    def describe(self) -> Mapping[str, Any]:
        """Metadata of base and task for exported files (`ss_base_model_version`, `modelspec.architecture`)."""

    def verify(
        self, files: Sequence[ExportedFile], examples: Examples, progress: Callable[[int, int], None]
    ) -> list[Verified]:
        """Load each exported file into a fresh model and compare predictions.

        Args:
            files: Exported with the current weights.
            examples: As in `draw`.
            progress: Called before each file with those that are done, and all; it may raise to stop.

        Raises:
            ExportError: a file cannot be loaded, or predicts something else than the trained model.
        """
