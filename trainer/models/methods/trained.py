"""The interface of a training method: its parameters, weights, blocks and exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from trainer.protocol.events import ExportFormat, Reader

#: Trained tensors of each module, by the module's name (`unet`, `text_encoder`, …), on the CPU.
Weights: TypeAlias = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """An exported file or folder."""

    format: ExportFormat
    path: Path
    #: The programs that read it exactly.
    readers: tuple[Reader, ...] = ()
    #: The modules of a pipeline that it changes, or that a whole model has.
    modules: tuple[str, ...] = ()
    #: The new word's token in diffusers.
    token: str = ""


class Trained(Protocol):
    """A method attached to a model."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules with trained parameters, by the names that their weights have in files."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all parameters of the method, frozen ones too, as `unet.up_blocks.1.…`."""

    @property
    def blocks(self) -> Sequence[str]:
        """Dotted prefixes of the model's blocks from input to output, text encoders first; stages freeze by them and
        `layer_decay` counts them."""

    def state(self) -> Weights:
        """Return the trained weights for a checkpoint, in full precision."""

    def load(self, weights: Weights) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: the weights do not fit this job.
        """

    def weights_from(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Convert the tensors of an exported file to weights for `load`.

        Raises:
            CheckpointError: the file does not fit this job, or the method starts from no file.
        """

    def base_only(self) -> AbstractContextManager[None]:
        """Disable the method for a while: the model is the base again."""

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """Write the files for other programs into `folder`, with `metadata` in headers that have room for it."""

    def export_epoch(self, folder: Path, name: str, epoch: int, metadata: Mapping[str, Any]) -> ExportedFile | None:
        """Write the small single file of an epoch, `<name>-000012.safetensors`; None if the method has none."""


def epoch_file(stem: str, epoch: int) -> str:
    """Name of an epoch's file. Source: `get_epoch_ckpt_name` of kohya-ss/sd-scripts `library/train_util.py`."""
    return f"{stem}-{epoch:06d}.safetensors"
