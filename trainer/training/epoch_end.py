"""What happens around epochs: the base model's measure before the first, and after each the validation, the samples,
the chart, the decision to stop, and the checkpoint. An epoch is said only once its checkpoint is safe."""

from __future__ import annotations

import time
from typing import Any

from trainer.crashing import crash_point
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Sampled,
    StoppedEarly,
    Validated,
    ValidationLoss,
)
from trainer.protocol.report import Split
from trainer.protocol.settings import SplitKind
from trainer.training.checkpoints import BetweenPoint, EpochPoint, TrainingState
from trainer.training.drawing import draw_epoch_samples
from trainer.training.early_stopping import StopMemory
from trainer.training.measuring import Measured, base_losses, keep_history, keep_losses, measure_split, summarize_split
from trainer.training.optimizers import effective_rate
from trainer.training.session import Session

_EVENTS: dict[str, type[Event]] = {
    kind.model_fields["type"].default: kind for kind in (Sampled, EpochEnded, StoppedEarly)
}


def measure_base(session: Session) -> None:
    """The base model's validation loss and samples, before the first step; a resumed run has them already."""
    base = base_losses(session, Measured.VALIDATION)
    if Measured.TRAIN in Measured.of(session):
        base_losses(session, Measured.TRAIN)
    if not session.processes.agree(any(event.type == "sampled" for event in session.reporter.history)):
        with session.task.base_only():
            name, fields = draw_epoch_samples(session, epoch=0)
        session.reporter.say(_EVENTS[name], **fields)
    session.reporter.say(BaseValidated, validation=summarize_split(session, Measured.VALIDATION, base))


def measure_between(session: Session, *, position: float) -> None:
    """A validation in the middle of an epoch, for the curve; nothing is decided."""
    with session.evaluated():
        validation = summarize_split(session, Measured.VALIDATION, measure_split(session, Measured.VALIDATION))
    state = session.state
    point = BetweenPoint(at=state.epoch - 1 + position, ratio=validation.ratio)
    session.state = state.model_copy(update={"between": (*state.between, point)})
    session.reporter.say(Validated, epoch=state.epoch, step=state.step, validation=validation)


def end_epoch(session: Session) -> None:
    """Validate, draw, decide, keep, say."""
    began = time.monotonic()
    with session.evaluated():
        validation, train_validation = _measure(session)
        metrics = dict(session.task.metrics(session.examples[Split.VALIDATION], session.check))
        memory = _remember(session, validation, train_validation)
        why = _why_stop(session, memory)
        is_last = session.state.epoch >= session.spec.training.epochs
        pending = []
        if session.state.epoch % session.spec.samples.every_epochs == 0 or is_last or why is not None:
            pending.append(draw_epoch_samples(session, session.state.epoch))
    point = _point(session, validation, train_validation)
    curve = (*session.state.curve, point)
    chart = _draw_charts(session, curve, memory, stopped_early=why is not None)
    epoch_end_seconds = time.monotonic() - began
    seconds = session.state.epoch_seconds + epoch_end_seconds
    ended = _epoch_ended(session, point, memory, seconds, chart)
    measured = {"validation": _dump(validation), "train_validation": _dump(train_validation), "metrics": metrics}
    pending.append(("epoch_ended", {**ended, **measured}))
    if why is not None:
        pending.append(_stopped_early(session, memory, why, seconds))
    session.state = _next_state(session, memory, curve, seconds, epoch_end_seconds).model_copy(
        update={
            "is_over": is_last or why is not None or session.start.is_finishing,
            "is_stopped_early": why is not None,
            "pending": tuple(pending),
        }
    )
    session.stop.is_agreed = session.processes.any(session.stop.is_set)
    session.save_checkpoint()
    say_pending(session)
    crash_point("epoch_said")


def say_pending(session: Session) -> None:
    """Say what belongs to the state, unless it was said before the process died."""
    for name, fields in session.state.pending:
        session.reporter.say(_EVENTS[name], **fields)


def _measure(session: Session) -> tuple[ValidationLoss, ValidationLoss | None]:
    """The validation pictures, and the training pictures where they are measured; both kept, triple by triple."""
    kept = {measured: measure_split(session, measured) for measured in Measured.of(session)}
    keep_losses(session, session.state.epoch, kept)
    keep_history(session, session.state.epoch, kept)
    summaries = {measured: summarize_split(session, measured, losses) for measured, losses in kept.items()}
    return summaries[Measured.VALIDATION], summaries.get(Measured.TRAIN)


def _remember(session: Session, validation: ValidationLoss, train: ValidationLoss | None) -> StopMemory:
    state, settings = session.state, session.spec.early_stopping
    if session.spec.split.kind is SplitKind.ALL:
        return state.stop_memory.last(state.epoch, validation.ratio)
    train_ratio = None if train is None else train.ratio
    # What has just begun to train has had no epochs yet.
    begins = session.stage.begins_anew(state.epoch) and state.epoch > 1
    memory = state.stop_memory.patient_again() if begins else state.stop_memory
    return memory.after(state.epoch, validation.ratio, settings, train_ratio=train_ratio)


def _why_stop(session: Session, memory: StopMemory) -> str | None:
    """Why the training should end here, as a sentence; None if it should not."""
    state, settings = session.state, session.spec.early_stopping
    is_last = state.epoch >= session.spec.training.epochs
    if is_last or session.start.is_finishing:
        return None
    if session.spec.split.kind is SplitKind.ALL:
        settings = settings.model_copy(update={"enabled": False})
    # The clocks of several processes differ.
    seconds = session.processes.agree(state.seconds + state.epoch_seconds)
    return memory.reason(settings) if memory.should_stop(state.epoch, settings, seconds=seconds) else None


def _point(session: Session, validation: ValidationLoss, train: ValidationLoss | None) -> EpochPoint:
    state = session.state
    return EpochPoint(
        epoch=state.epoch,
        train_loss=state.loss_sum / state.loss_count,
        validation_loss=validation.loss,
        ratio=validation.ratio,
        train_ratio=None if train is None else train.ratio,
        ratio_low=validation.ratio_low,
        ratio_high=validation.ratio_high,
        stage=session.stage.number,
    )


def _next_state(
    session: Session,
    memory: StopMemory,
    curve: tuple[EpochPoint, ...],
    seconds: float,
    epoch_end_seconds: float,
) -> TrainingState:
    state, every = session.state, session.spec.training.keep_every_epochs
    is_kept = every is not None and state.epoch % every == 0
    return TrainingState(
        epoch=state.epoch + 1,
        step=state.step,
        seconds=state.seconds + seconds,
        epoch_end_seconds=epoch_end_seconds,
        stop_memory=memory,
        curve=curve,
        between=state.between,
        best_step=state.step if memory.best_epoch == state.epoch else state.best_step,
        kept_steps=(*state.kept_steps, state.step) if is_kept else state.kept_steps,
        parts=state.parts,
    )


def _draw_charts(session: Session, curve: tuple[EpochPoint, ...], memory: StopMemory, *, stopped_early: bool) -> str:
    """Draw the loss chart of the epoch and the chart of the bands; the path of the first in the job folder."""
    state, epoch, total = session.state, curve[-1].epoch, session.spec.training.epochs
    path = session.job_dir / "charts" / f"loss-{epoch:03d}.png"
    if session.processes.is_main:
        # matplotlib: 0.4 s to load, and the first step need not wait for it.
        from trainer.report.charts import draw_loss_chart

        stages = [(stage.first_epoch, stage.title) for stage in session.stages] if len(session.stages) > 1 else []
        draw_loss_chart(
            path,
            title=f"{session.spec.name}: epoch {epoch} of {total}",
            epochs=[point.epoch for point in curve],
            train_losses=[point.train_loss for point in curve],
            ratios=[point.ratio for point in curve],
            best_epoch=memory.best_epoch,
            total_epochs=total,
            intervals=[point.interval for point in curve],
            train_ratios=[point.train_ratio for point in curve] if curve[0].train_ratio is not None else [],
            between=[(point.at, point.ratio) for point in state.between],
            stages=stages,
            stopped_at=epoch if stopped_early else None,
        )
    return str(path.relative_to(session.job_dir))


def _epoch_ended(session: Session, point: EpochPoint, memory: StopMemory, seconds: float, chart: str) -> dict[str, Any]:
    return {
        "epoch": point.epoch,
        "step": session.state.step,
        "train_loss": point.train_loss,
        "learning_rate": effective_rate(session.optimizer),
        "seconds": seconds,
        "is_best": memory.best_epoch == point.epoch,
        "best_epoch": memory.best_epoch,
        "chart": chart,
        "smoothed_ratio": memory.smoothed_ratio,
        "gap": memory.gap,
        "stage": point.stage,
    }


def _stopped_early(session: Session, memory: StopMemory, reason: str, seconds: float) -> tuple[str, dict[str, Any]]:
    epochs_saved = session.spec.training.epochs - session.state.epoch
    return "stopped_early", {
        "epoch": session.state.epoch,
        "best_epoch": memory.best_epoch,
        "best_ratio": memory.best_ratio,
        "reason": reason,
        "epochs_saved": epochs_saved,
        "seconds_saved": epochs_saved * (session.state.seconds + seconds) / session.state.epoch,
    }


def _dump(validation: ValidationLoss | None) -> dict[str, Any] | None:
    return None if validation is None else validation.model_dump()
