"""The end of a job, with the best checkpoint: test, comparison, diagnostics, export and report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import isfinite
from typing import Any

from trainer.errors import CheckpointError, DivergedError
from trainer.exchange.job_dir import sample_folder
from trainer.protocol.events import BaseValidated, Finished, Tested, Warned
from trainer.protocol.report import Split
from trainer.protocol.text import _, gain
from trainer.tasks.task import DrawnSample
from trainer.training.checkpoints import EpochPoint, is_intact
from trainer.training.epoch_end import draw_epoch_samples
from trainer.training.exporting import export_best
from trainer.training.session import Session
from trainer.training.validation import EvalSet, base_losses, evaluate, summarize_evaluation


def export_and_finish(session: Session) -> None:
    """Test, compare, diagnose and export the best checkpoint; emit `Finished`."""
    # Imported here: OpenCV and the report's templates take time that the first step need not wait for.
    from trainer.training.diagnostics import run_diagnostics, write_report_page

    began = time.monotonic()
    if session.state.stop_memory.best_epoch == 0:
        raise DivergedError(
            _("No epoch can be exported: the validation loss was not a number after each of them."),
            _("Set training.precision to fp32, or start again with a third of the learning rate."),
        )
    if session.options.epoch is not None:
        _take_epoch(session, session.options.epoch)
    _replace_damaged_best(session)
    session.load_best()
    _test(session)
    comparison, alt_text = _compare(session)
    # Before the export, which moves the model off the device.
    run_diagnostics(session)
    if session.spec.validation.test:
        best_epoch = session.state.stop_memory.best_epoch
        export_best(session, sample=sample_folder(session.job_dir, best_epoch) / "0.png")
    memory = session.state.stop_memory
    best = next(point for point in session.state.curve if point.epoch == memory.best_epoch)
    base = next(event for event in session.reporter.history if isinstance(event, BaseValidated))
    finished: dict[str, Any] = {
        "epochs": session.state.curve[-1].epoch,
        "best_epoch": best.epoch,
        "stopped_early": session.state.is_stopped_early,
        "base_loss": base.validation.loss,
        "best_loss": best.validation_loss,
        "best_ratio": best.ratio,
        "seconds": session.state.seconds + time.monotonic() - began,
        "comparison": comparison,
        "comparison_alt": alt_text,
    }
    session.reporter.emit(Finished, **finished, **write_report_page(session, finished))


def _take_epoch(session: Session, epoch: int) -> None:
    """Let the epoch that a person chose take the place of the best one."""
    steps = _intact_epochs(session)
    point = next((point for point in session.state.curve if point.epoch == epoch), None)
    if point is None or epoch not in steps:
        raise CheckpointError(
            _("The checkpoint of epoch {epoch} no longer exists.", epoch=epoch),
            _("Choose one of these epochs: {epochs}.", epochs=", ".join(map(str, sorted(steps)))),
        )
    _set_best(session, point, steps[epoch])


def _intact_epochs(session: Session) -> dict[int, int]:
    """Map the epochs with an intact checkpoint to its step."""
    checkpoints = session.checkpoints
    intact = [checkpoints.load_state(path) for path in filter(is_intact, checkpoints.newest_first())]
    # A checkpoint within an epoch was not validated.
    return {each.curve[-1].epoch: each.step for each in intact if each.position == 0 and each.curve}


def _set_best(session: Session, point: EpochPoint, step: int) -> None:
    memory = session.state.stop_memory.model_copy(update={"best_epoch": point.epoch, "best_ratio": point.ratio})
    session.state = session.state.model_copy(update={"stop_memory": memory, "best_step": step})


def _replace_damaged_best(session: Session) -> None:
    """If the best checkpoint is damaged, let the best of the intact ones take its place, with a warning."""
    state = session.state
    if is_intact(session.checkpoints.path(state.best_step)):
        return
    epochs = _intact_epochs(session)
    points = [point for point in state.curve if point.epoch in epochs and isfinite(point.ratio)]
    if not points:
        raise CheckpointError(
            _("The checkpoint of the best epoch is damaged, and there is no other."),
            _("Check the disk, and start the training again as a new job."),
        )
    best = min(points, key=lambda point: point.ratio)
    message = _(
        "The checkpoint of the best epoch, {best}, is damaged: its files are not those that were written. The best of "
        "the others is exported instead, epoch {epoch}.",
        best=state.stop_memory.best_epoch,
        epoch=best.epoch,
    )
    session.reporter.emit(Warned, kind="damaged_checkpoint", message=message)
    _set_best(session, best, epochs[best.epoch])


def _test(session: Session) -> None:
    examples = session.examples[Split.TEST]
    if not examples.images or not session.spec.validation.test:
        return
    losses = evaluate(session, EvalSet.TEST)
    base = base_losses(session, EvalSet.TEST)
    chart = session.job_dir / "charts" / "test.png"
    has_chart = session.processes.broadcast(
        session.processes.is_main and session.task.draw_chart(examples, chart, session.check_stop) is not None
    )
    session.reporter.emit(
        Tested,
        epoch=session.state.stop_memory.best_epoch,
        test=summarize_evaluation(session, EvalSet.TEST, losses),
        base_loss=sum(loss.plain for loss in base) / len(base),
        metrics=dict(session.task.metrics(examples, session.check_stop)),
        chart=str(chart.relative_to(session.job_dir)) if has_chart else None,
    )


def _compare(session: Session) -> tuple[str, str]:
    """Draw `output/comparison.png`; return its path in the job folder and its alt text."""
    path = session.job_dir / "output" / "comparison.png"
    path.parent.mkdir(exist_ok=True)
    best_epoch = session.state.stop_memory.best_epoch
    alt_text = session.task.compare(
        session.preview_examples,
        path if session.processes.is_main else None,
        lambda: (_epoch_samples(session, 0), _epoch_samples(session, best_epoch)),
        title=_("{name}, epoch {epoch}", name=session.spec.name, epoch=best_epoch),
        gain=gain(session.state.stop_memory.best_ratio),
        between_batches=session.check_stop,
    )
    return str(path.relative_to(session.job_dir)), session.processes.broadcast(alt_text)


def _epoch_samples(session: Session, epoch: int) -> Sequence[DrawnSample]:
    """Return the samples of epoch 0 (the base model) or of the best epoch, drawing them if they are missing."""
    folder = sample_folder(session.job_dir, epoch)
    if not session.processes.broadcast((folder / "sheet.png").exists()):
        if epoch == 0:
            with session.task.base_only():
                draw_epoch_samples(session, epoch)
        else:
            draw_epoch_samples(session, epoch)
    # An empty shard draws nothing; it returns where the samples lie.
    return session.task.draw(session.preview_examples, folder, shard=slice(0, 0), progress=session.count)
