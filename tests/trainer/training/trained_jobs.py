"""Folders of training jobs with checkpoints, exported files and events, made without training: weights are random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.exchange.job_dir import write_spec
from trainer.models.base import load_base
from trainer.models.methods import attach
from trainer.protocol.events import BandLoss, EpochEnded, Exported, Tested, ValidationLoss
from trainer.protocol.presets import spec_from_preset
from trainer.reporter import Reporter
from trainer.training.checkpoints import Checkpoints, EpochPoint, TrainingState

_LOSS = ValidationLoss(loss=0.1, ratio=0.9, bands=(BandLoss(first_timestep=0, last_timestep=999, loss=0.1, ratio=0.9),))


def make_trained_job(
    folder: Path, base: str, *, epochs: int = 3, best: int = 2, is_finished: bool = True, **settings: Any
) -> Path:
    """Write the folder of a job that keeps a checkpoint of every epoch, the files of its best one, and a small file of
    the last."""
    spec = spec_from_preset("lora", dataset="/nowhere", base=base, changes=settings)
    write_spec(folder, spec)
    loaded = load_base(spec.base, spec.objective)
    trained = attach(loaded, spec)
    checkpoints = Checkpoints(folder)
    generator = torch.Generator().manual_seed(3)
    with Reporter(folder) as reporter:
        for epoch in range(1, epochs + 1):
            with torch.no_grad():
                for _name, parameter in trained.named_parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            points = [
                EpochPoint(epoch=each, train_loss=0.1, validation_loss=0.1, ratio=0.9) for each in range(1, epoch + 1)
            ]
            state = TrainingState(
                spec=spec.model_dump(mode="json"),
                epoch=epoch + 1,
                step=epoch,
                curve=tuple(points),
                best_step=min(best, epoch),
                kept_steps=tuple(range(1, epoch + 1)),
                is_over=is_finished and epoch == epochs,
            )
            flat = {f"{module}:{name}": t for module, own in trained.state().items() for name, t in own.items()}
            checkpoints.save(state, flat, {})
            reporter.emit(
                EpochEnded,
                epoch=epoch,
                step=epoch,
                train_loss=0.1,
                validation=_LOSS,
                learning_rate=1e-4,
                seconds=1.0,
                is_best=epoch <= best,
                best_epoch=min(best, epoch),
                chart="charts/1.png",
            )
            if epoch == best and is_finished:
                files = trained.export(folder / "output", spec.name, {})
        if is_finished:
            reporter.emit(Tested, epoch=best, test=_LOSS, base_loss=0.2)
            for file in files:
                _emit_exported(reporter, file)
            last = trained.export_epoch(folder / "output/epochs", spec.name, epochs, {})
            if last is not None:
                _emit_exported(reporter, last, epoch=epochs)
    return folder


def _emit_exported(reporter: Reporter, file: Any, epoch: int | None = None) -> None:
    reporter.emit(
        Exported,
        format=file.format,
        path=str(file.path.relative_to(reporter.job_dir)),
        bytes=1,
        sha256=f"{file.path.name}",
        readers=file.readers,
        modules=file.modules,
        token=file.token,
        epoch=epoch,
    )
