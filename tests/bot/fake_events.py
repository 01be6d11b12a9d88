"""Events of trainers, for tests. A trainer of the tests imports them: nothing of the bot belongs here."""

from __future__ import annotations

from trainer.protocol.events import (
    BandLoss,
    BaseValidated,
    EpochEnded,
    Event,
    Exported,
    Failed,
    FailureKind,
    Finished,
    ImageDrawn,
    Sample,
    Sampled,
    SamplingFinished,
    SamplingSheet,
    SamplingStarted,
    Started,
    StepDone,
    Stopped,
    StoppedEarly,
    Tested,
    ValidationLoss,
    Warned,
)

_LOSS = ValidationLoss(loss=0.1, ratio=0.9, bands=(BandLoss(first_timestep=0, last_timestep=999, loss=0.1, ratio=0.9),))


def started(seq: int, at: float = 0.0) -> Event:
    return Started(
        seq=seq,
        time=at,
        pid=1,
        device="cpu",
        precision="fp32",
        epochs=3,
        total_steps=30,
        train_images=10,
        validation_images=2,
        test_images=2,
        resolution=64,
        trainable_parameters=1,
    )


def step_done(seq: int, epoch: int, step: int = 1, at: float = 0.0) -> Event:
    return StepDone(
        seq=seq,
        time=at,
        step=step,
        epoch=epoch,
        loss=0.2,
        learning_rate=1e-4,
        steps_per_s=1.0,
        eta_s=None,
        peak_memory_bytes=0,
    )


def sampled(seq: int, epoch: int, at: float = 0.0) -> Event:
    return Sampled(seq=seq, time=at, epoch=epoch, samples=(Sample(path="a.png", prompt="a", seed=1),), sheet="s.png")


def base_validated(seq: int, at: float = 0.0) -> Event:
    return BaseValidated(seq=seq, time=at, validation=_LOSS)


def epoch_ended(seq: int, epoch: int, at: float = 0.0) -> Event:
    return EpochEnded(
        seq=seq,
        time=at,
        epoch=epoch,
        step=epoch * 10,
        train_loss=0.2,
        validation=_LOSS,
        learning_rate=1e-4,
        seconds=1.0,
        is_best=True,
        best_epoch=epoch,
        chart="c.png",
    )


def warned(seq: int, kind: str, at: float = 0.0) -> Event:
    return Warned(seq=seq, time=at, kind=kind, message="careful")


def stopped_early(seq: int, at: float = 0.0) -> Event:
    return StoppedEarly(
        seq=seq, time=at, epoch=3, best_epoch=2, best_ratio=0.9, reason="no better", epochs_saved=1, seconds_saved=1.0
    )


def was_tested(seq: int, at: float = 0.0) -> Event:
    return Tested(seq=seq, time=at, test=_LOSS, base_loss=0.2)


def exported(seq: int, at: float = 0.0) -> Event:
    return Exported(
        seq=seq, time=at, format="kohya", path="l.safetensors", bytes=1, sha256="0" * 64, max_difference=0.0
    )


def finished(seq: int, at: float = 0.0) -> Event:
    return Finished(
        seq=seq,
        time=at,
        epochs=3,
        best_epoch=3,
        stopped_early=False,
        base_loss=0.2,
        best_loss=0.1,
        best_ratio=0.5,
        seconds=1.0,
        comparison="c.png",
        comparison_alt="base and best",
    )


def stopped(seq: int, epoch: int = 1, checkpoint: str | None = "checkpoints/last", at: float = 0.0) -> Event:
    return Stopped(seq=seq, time=at, epoch=epoch, step=1, checkpoint=checkpoint)


def failed(seq: int, kind: FailureKind = FailureKind.BAD_DATASET, at: float = 0.0) -> Event:
    return Failed(seq=seq, time=at, kind=kind, message="It broke.", hint="Fix it.")


def sampling_started(seq: int, at: float = 0.0) -> Event:
    return SamplingStarted(seq=seq, time=at, device="cpu", precision="fp32", width=64, height=64, images=2)


def image_drawn(seq: int, cell: int = 0, at: float = 0.0) -> Event:
    return ImageDrawn(seq=seq, time=at, cell=cell, path=f"samples/{cell:04d}.png")


def sampling_finished(seq: int, at: float = 0.0) -> Event:
    sheet = SamplingSheet(path="grid.png", alt="All.")
    return SamplingFinished(seq=seq, time=at, images=2, sheets=(sheet,), seconds=3)
