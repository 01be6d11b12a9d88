"""The end of an epoch: validation, samples, chart, early stopping and checkpoint; and the base model's measure before.

`EpochEnded` is emitted only after its checkpoint is durable.
"""

from __future__ import annotations

import time
from math import isfinite
from typing import Any

from trainer.errors import DivergedError
from trainer.exchange.job_dir import sample_folder
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Exported,
    Phase,
    Sampled,
    StoppedEarly,
    Validated,
    ValidationLoss,
    Warned,
)
from trainer.protocol.report import Split
from trainer.protocol.settings import SplitKind
from trainer.protocol.text import _, verdict
from trainer.report.gallery import draw_gallery, sample_captions
from trainer.trainer_failpoints import failpoint
from trainer.training.checkpoints import BetweenPoint, EpochPoint, TrainingState
from trainer.training.early_stopping import StopMemory
from trainer.training.exporting import export_epoch
from trainer.training.session import Session
from trainer.training.validation import (
    EvalSet,
    base_losses,
    epoch_eval_sets,
    evaluate,
    summarize_evaluation,
    update_image_history,
    write_losses,
)

#: A validation loss of so many times the base model's is no detour on the way down.
_DIVERGING_RATIO = 1.5

_PENDING_TYPES: dict[str, type[Event]] = {
    kind.model_fields["type"].default: kind for kind in (Warned, Sampled, EpochEnded, StoppedEarly, Exported)
}


def measure_base(session: Session) -> None:
    """Validate and sample the base model before the first step; a resumed run has the results already."""
    began = time.monotonic()
    for eval_set in epoch_eval_sets(session):
        base_losses(session, eval_set)
    if not session.processes.broadcast(any(isinstance(event, Sampled) for event in session.reporter.history)):
        with session.task.base_only():
            fields = draw_epoch_samples(session, epoch=0)
        session.reporter.emit(Sampled, **fields)
    base = base_losses(session, EvalSet.VALIDATION)
    validation = summarize_evaluation(session, EvalSet.VALIDATION, base)
    if not isfinite(validation.ratio):
        raise DivergedError(
            _(
                "The base model's own loss is not a number in {precision}: nothing can be compared with it.",
                precision=session.memory_plan.precision,
            ),
            _("Set training.precision to fp32, or to bf16 on a GPU that has it."),
        )
    session.reporter.emit(BaseValidated, validation=validation)
    if session.state.step == 0:
        # The end of an epoch does the same: the first estimate counts it.
        session.state = session.state.model_copy(update={"epoch_end_seconds": time.monotonic() - began})


def measure_between(session: Session, *, position: float) -> None:
    """Validate within an epoch, at the share `position` of it. This adds to the curve and decides nothing."""
    with session.evaluation_weights():
        validation = summarize_evaluation(session, EvalSet.VALIDATION, evaluate(session, EvalSet.VALIDATION))
    state = session.state
    point = BetweenPoint(at=state.epoch - 1 + position, ratio=validation.ratio)
    session.state = state.model_copy(update={"between": (*state.between, point)})
    session.reporter.emit(Validated, epoch=state.epoch, step=state.step, validation=validation)


def end_epoch(session: Session) -> None:
    """Validate, sample, decide whether to stop, save a checkpoint, and emit the events."""
    began = time.monotonic()
    with session.evaluation_weights():
        validation, train_validation = _validate(session)
        metrics = dict(session.task.metrics(session.examples[Split.VALIDATION], session.check_stop))
        memory = _update_stop_memory(session, validation, train_validation)
        stop_reason = _stop_reason(session, memory)
        is_last = session.state.epoch >= session.epochs
        pending: list[tuple[str, dict[str, Any]]] = []
        if not isfinite(validation.ratio):
            pending.append(("warned", _not_a_number(session)))
        elif validation.ratio > _DIVERGING_RATIO:
            pending.append(("warned", _diverging(session, validation)))
        if session.state.epoch % session.spec.samples.every_epochs == 0 or is_last or stop_reason is not None:
            pending.append(("sampled", draw_epoch_samples(session, session.state.epoch)))
        exported = export_epoch(
            session,
            is_best=memory.best_epoch == session.state.epoch,
            is_last=is_last or stop_reason is not None or session.options.finish,
            sample=sample_folder(session.job_dir, session.state.epoch) / "0.png",
        )
    point = _point(session, validation, train_validation)
    curve = (*session.state.curve, point)
    chart = _draw_chart(session, curve, memory, stopped_early=stop_reason is not None)
    epoch_end_seconds = time.monotonic() - began
    seconds = session.state.epoch_seconds + epoch_end_seconds
    ended = {
        **_epoch_ended(session, point, memory, seconds, chart),
        "validation": validation.model_dump(),
        "train_validation": None if train_validation is None else train_validation.model_dump(),
        "metrics": metrics,
    }
    pending.append(("epoch_ended", ended))
    if stop_reason is not None:
        pending.append(("stopped_early", _stopped_early(session, memory, stop_reason, seconds)))
    if exported is not None:
        pending.append(("exported", exported))
    session.state = _next_state(session, memory, curve, seconds, epoch_end_seconds).model_copy(
        update={
            "is_over": is_last or stop_reason is not None or session.options.finish,
            "is_stopped_early": stop_reason is not None,
            "pending": tuple(pending),
        }
    )
    session.stop.is_agreed = session.processes.any_rank(session.stop.is_set)
    session.save_checkpoint()
    emit_pending(session)
    failpoint("epoch_emitted")


def emit_pending(session: Session) -> None:
    """Emit the events of the saved state; the reporter drops those that were emitted before a crash."""
    for name, fields in session.state.pending:
        session.reporter.emit(_PENDING_TYPES[name], **fields)


def _validate(session: Session) -> tuple[ValidationLoss, ValidationLoss | None]:
    """Evaluate the validation images, and training images if any are measured; store the losses of all triples."""
    losses = {eval_set: evaluate(session, eval_set) for eval_set in epoch_eval_sets(session)}
    if session.processes.is_main:
        write_losses(session.job_dir, session.state.epoch, losses)
        update_image_history(session, session.state.epoch, losses)
    summaries = {eval_set: summarize_evaluation(session, eval_set, each) for eval_set, each in losses.items()}
    return summaries[EvalSet.VALIDATION], summaries.get(EvalSet.TRAIN)


def _update_stop_memory(session: Session, validation: ValidationLoss, train: ValidationLoss | None) -> StopMemory:
    state = session.state
    if not isfinite(validation.ratio):
        return state.stop_memory.after_unmeasured(state.epoch)
    if session.spec.split.kind is SplitKind.ALL:
        return StopMemory.keep_latest(state.epoch, validation.ratio)
    memory = state.stop_memory
    if state.epoch > 1 and session.stage.starts_or_unfreezes_at(state.epoch):
        memory = memory.reset_patience()
    train_ratio = train.ratio if train is not None and isfinite(train.ratio) else None
    return memory.after(state.epoch, validation.ratio, session.spec.early_stopping, train_ratio=train_ratio)


def _stop_reason(session: Session, memory: StopMemory) -> str | None:
    """Return a sentence that explains why the training should stop now, or None to go on."""
    state, settings = session.state, session.spec.early_stopping
    if state.epoch >= session.epochs or session.options.finish:
        return None
    if session.spec.split.kind is SplitKind.ALL:
        settings = settings.model_copy(update={"enabled": False})
    # Broadcast, because the clocks of several processes differ.
    seconds = session.processes.broadcast(state.seconds + state.epoch_seconds - state.seconds_before)
    reason = memory.stop_reason(state.epoch, settings, seconds=seconds)
    return None if reason is None else memory.describe(reason, settings)


def _not_a_number(session: Session) -> dict[str, Any]:
    message = _(
        "The validation loss of epoch {epoch} is not a number: the model's numbers are too large for {precision}. This "
        "epoch cannot be the best one. If it happens again, set training.precision to fp32, or use a lower rate.",
        epoch=session.state.epoch,
        precision=session.memory_plan.precision,
    )
    return {"kind": "validation_not_a_number", "message": message}


def _diverging(session: Session, validation: ValidationLoss) -> dict[str, Any]:
    message = _(
        "After epoch {epoch} the model is {verdict}: it is getting worse. The learning rate is probably too high.",
        epoch=session.state.epoch,
        verdict=verdict(validation.ratio),
    )
    return {"kind": "diverging", "message": message}


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
        spec=state.spec,
        epoch=state.epoch + 1,
        step=state.step,
        seconds=state.seconds + seconds,
        seconds_before=state.seconds_before,
        epoch_end_seconds=epoch_end_seconds,
        stop_memory=memory,
        curve=curve,
        between=state.between,
        best_step=state.step if memory.best_epoch == state.epoch else state.best_step,
        kept_steps=(*state.kept_steps, state.step) if is_kept else state.kept_steps,
        micro_batch_limit=state.micro_batch_limit,
    )


def _draw_chart(session: Session, curve: tuple[EpochPoint, ...], memory: StopMemory, *, stopped_early: bool) -> str:
    """Draw the loss chart of the epoch on rank 0; return its path in the job folder."""
    state, epoch, total = session.state, curve[-1].epoch, session.epochs
    path = session.job_dir / "charts" / f"loss-{epoch:03d}.png"
    if session.processes.is_main:
        # Imported here: matplotlib takes 0.4 s, which the first step need not wait for.
        from trainer.report.charts import draw_loss_chart

        stages = [(stage.first_epoch, stage.title) for stage in session.stages] if len(session.stages) > 1 else []
        draw_loss_chart(
            path,
            curve,
            best_epoch=memory.best_epoch,
            total_epochs=total,
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
        "learning_rate": session.state.learning_rate,
        "seconds": seconds,
        "is_best": memory.best_epoch == point.epoch,
        "best_epoch": memory.best_epoch,
        "chart": chart,
        "smoothed_ratio": memory.smoothed_ratio,
        "gap": memory.gap,
        "stage": point.stage,
    }


def _stopped_early(session: Session, memory: StopMemory, reason: str, seconds: float) -> dict[str, Any]:
    epochs_saved = session.epochs - session.state.epoch
    return {
        "epoch": session.state.epoch,
        "best_epoch": memory.best_epoch,
        "best_ratio": memory.best_ratio,
        "reason": reason,
        "epochs_saved": epochs_saved,
        "seconds_saved": epochs_saved * (session.state.seconds + seconds) / session.state.epoch,
    }


def draw_epoch_samples(session: Session, epoch: int) -> dict[str, Any]:
    """Draw the samples of an epoch into `samples/epoch-003/`, shared by the ranks; return the fields of `Sampled`."""
    session.begin_phase(Phase.SAMPLING)
    folder = sample_folder(session.job_dir, epoch)
    folder.mkdir(parents=True, exist_ok=True)
    samples = session.task.draw(session.preview_examples, folder, shard=session.processes.shard, progress=session.count)
    session.processes.barrier()
    sheet = folder / "sheet.png"
    if session.processes.is_main:
        captions = sample_captions([(each.prompt, each.seed) for each in samples], session.spec.training.trigger)
        draw_gallery(sheet, [each.open() for each in samples], captions)
    return {
        "epoch": epoch,
        "samples": [
            {"path": str(each.path.relative_to(session.job_dir)), "prompt": each.prompt, "seed": each.seed}
            for each in samples
        ],
        "sheet": str(sheet.relative_to(session.job_dir)),
    }
