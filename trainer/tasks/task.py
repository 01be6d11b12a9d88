"""What the recipe needs to know of what is trained: the loop does not know which task it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.dataset.split.mixing import Mixture
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.protocol.report import Split
from trainer.protocol.settings import Precision
from trainer.tasks.examples import Examples, View


@dataclass(frozen=True, kw_only=True)
class FrozenLoss:
    """The loss of one frozen question."""

    #: Plain: mean squared error, or cross-entropy.
    plain: float
    #: As it is trained: kind of loss, weight of the timestep, label smoothing.
    training: float


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture drawn with the model as it is."""

    path: Path
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An exported file, loaded back by the library that people load it with."""

    file: ExportedFile
    #: Largest difference to what the trained model predicts.
    max_difference: float


class Task(Protocol):
    """A loaded model with its method attached, and the data that it is trained on.

    Shapes: B pictures. All randomness of a loss follows from `seeds`, one for each picture, so that neither the size
    of the micro-batch nor the number of processes changes what is learnt.
    """

    #: What losses and samples are computed in.
    precision: Precision

    @property
    def device(self) -> torch.device: ...

    @property
    def trained(self) -> Trained:
        """What is trained."""

    @property
    def mixture(self) -> Mixture:
        """The datasets, with what `encode` added to them."""

    @property
    def resolution(self) -> int:
        """Side of the square whose area pictures are brought to where a stage does not say otherwise, px."""

    @property
    def schedule_steps(self) -> int:
        """Timesteps that frozen questions spread over; 1 where there is no noise."""

    def encode(self, resolution: int, progress: Callable[[int, int], None]) -> dict[Split, Examples]:
        """Every split at a resolution, from the cache or computed once; `progress` is told done and total.

        Raises:
            DatasetError: a picture of a dataset folder is gone or damaged, or the data do not fit the task.
        """

    @property
    def weights(self) -> int:
        """Weights of the model in all."""

    def place(self, precision: Precision) -> None:
        """Bring to the device what the step loop needs, compute in `precision` from here on, and let the rest leave.

        May be called again with another precision than fp32. What is frozen is kept in it, what is trained in fp32.
        """

    def train_mode(self, is_training: bool) -> None:
        """Dropout layers on or off; frozen parts stay off."""

    def train_loss(self, examples: Examples, views: Sequence[View], seeds: Sequence[int]) -> Tensor:
        """The training loss of each view, [B], differentiable."""

    def frozen_losses(
        self, examples: Examples, indices: Sequence[int], timesteps: Sequence[int], noise_seeds: Sequence[int]
    ) -> list[FrozenLoss]:
        """Losses on frozen questions of one size: pictures by index, each with a timestep and a seed for its noise."""

    def base_only(self) -> AbstractContextManager[None]:
        """The model as it was before anything was trained."""

    def draw(self, examples: Examples, folder: Path, *, shard: slice, between_steps: Callable[[], None]) -> list[Shown]:
        """Draw this process's share of the samples into `folder` as `0.png`, `1.png`, …; tell of all of them.

        `examples` are those of the validation split, or of the training split where that has none.
        """

    def draw_prompts(
        self, prompts: Sequence[str], folder: Path, *, shard: slice, between_steps: Callable[[], None]
    ) -> list[Shown]:
        """As `draw`, with prompts of `samples.unrelated_prompts`; nothing where a model draws none."""

    def metrics(self, examples: Examples, between_batches: Callable[[], None]) -> Mapping[str, float]:
        """Further measures of a split by name; none for a diffusion model."""

    def draw_chart(self, examples: Examples, path: Path, between_batches: Callable[[], None]) -> str | None:
        """A picture of how a split is told apart (a confusion matrix), and what it shows as a sentence; None: none."""

    def describe(self) -> Mapping[str, Any]:
        """What metadata of exported files say of base and task (`ss_base_model_version`, `modelspec.architecture`)."""

    def verify(
        self, files: Sequence[ExportedFile], examples: Examples, between_files: Callable[[], None]
    ) -> list[Verified]:
        """Load each exported file back into a fresh model, and compare; `between_files` is called before each.

        Raises:
            ExportError: a file cannot be loaded, or does something else than what was trained.
        """
