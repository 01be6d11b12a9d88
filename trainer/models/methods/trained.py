"""What is trained on a model: parameters by name, weights in and out, and how the model is without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from trainer.protocol.events import ExportFormat

#: Trained tensors of each module, by the module's name (`unet`, `text_encoder`, …), on the CPU.
Weights: TypeAlias = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """A file (or folder) for other programs."""

    format: ExportFormat
    path: Path


class Trained(Protocol):
    """One method, attached to a model."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules that hold something that is trained, by the name that their weights have in files."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that the method can train, as `unet.up_blocks.1.…`, whether frozen just now or not."""

    @property
    def blocks(self) -> Sequence[str]:
        """Dotted prefixes of the parts of the model, from the input to the output: what stages freeze by name, and the
        depth that `layer_decay` counts. Text encoders come first."""

    def state(self) -> Weights:
        """What was trained, for a checkpoint; floats as they are."""

    def load(self, weights: Weights) -> None:
        """Put back what `state` gave.

        Raises:
            CheckpointError: the weights are of another job.
        """

    def base_only(self) -> AbstractContextManager[None]:
        """The model as it was before anything was trained."""

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """Write the files for other programs into `folder`; `metadata` is for the headers that take any."""
