"""Which epochs of a training can still be used: their weights lie in a checkpoint or in an exported file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.protocol.events import EpochEnded, Event, Exported, ExportFormat, Tested
from trainer.protocol.exported_files import newest_files
from trainer.protocol.text import _, listed

CHECKPOINTS_FOLDER, STATE_FILE = "checkpoints", "state.json"
#: What a program loads as a whole, before what is made of it.
_PREFERRED = (ExportFormat.DIFFUSERS, ExportFormat.EMBEDDING, ExportFormat.KOHYA, ExportFormat.CHECKPOINT)


@dataclass(frozen=True, kw_only=True)
class KeptEpochs:
    """The weights of a training job that are on disk."""

    #: By epoch, ascending: an exported file or folder, or a checkpoint's folder.
    paths: dict[int, Path]
    #: The epoch of the result, or the best so far; None: no epoch has ended.
    best: int | None

    def is_checkpoint(self, epoch: int) -> bool:
        return self.paths[epoch].parent.name == CHECKPOINTS_FOLDER

    def why_missing(self, label: str) -> tuple[str, str]:
        """Why an epoch of a training, `label`, cannot be drawn with, and what helps."""
        if not self.paths:
            return (
                _("{label} has no weights to draw with.", label=label),
                _("Wait for the end of its first epoch. The files of an old job may have been deleted."),
            )
        return (
            _("The weights of {label} are not kept.", label=label),
            _(
                "Choose one of the epochs {epochs}. The settings training.keep_every_epochs and exports.every_epochs "
                "keep more.",
                epochs=listed(map(str, self.paths)),
            ),
        )


def kept_epochs(job_dir: Path, events: Iterable[Event]) -> KeptEpochs:
    """Find the weights of every epoch of a job, finished or running; exported files come before checkpoints."""
    best, exported_best = None, None
    events = tuple(events)
    for event in events:
        match event:
            case EpochEnded():
                best = event.best_epoch
            case Tested():
                best = event.epoch or best
            case Exported(epoch=None):
                exported_best = best
            case _:
                pass
    paths = checkpoint_epochs(job_dir)
    files = [file for file in newest_files(events) if file.format in _PREFERRED]
    for file in sorted(files, key=lambda file: _PREFERRED.index(file.format), reverse=True):
        epoch = file.epoch if file.epoch is not None else exported_best
        path = job_dir / file.path
        if epoch is not None and path.exists():
            paths[epoch] = path
    return KeptEpochs(paths=dict(sorted(paths.items())), best=best)


def checkpoint_epochs(job_dir: Path) -> dict[int, Path]:
    """Map the epochs that ended with a checkpoint to its folder."""
    found: dict[int, Path] = {}
    for path in sorted((job_dir / CHECKPOINTS_FOLDER).glob("step-????????")):
        try:
            state = json.loads((path / STATE_FILE).read_bytes())
            # One in the middle of an epoch is no epoch's.
            if state["position"] == 0 and state["curve"]:
                found[int(state["curve"][-1]["epoch"])] = path
        except (OSError, ValueError, LookupError, TypeError):
            # Deleted at this moment by the training, or damaged.
            continue
    return found
