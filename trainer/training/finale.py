"""The end of a job, with the best checkpoint: test, comparison, diagnostics, export and report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.protocol.events import BaseValidated, Exported, Finished, Phase, Tested
from trainer.protocol.report import Split
from trainer.protocol.text import _
from trainer.tasks.task import DrawnSample
from trainer.trainer_failpoints import failpoint
from trainer.training.epoch_end import draw_epoch_samples, sample_folder
from trainer.training.metadata import file_metadata
from trainer.training.session import Session
from trainer.training.validation import EvalSet, base_losses, evaluate, summarize_evaluation


def export_and_finish(session: Session) -> None:
    """Test, compare, diagnose and export the best checkpoint; emit `Finished`."""
    # Imported here: OpenCV and the report's templates take time that the first step need not wait for.
    from trainer.training.diagnostics import run_diagnostics, write_report_page

    began = time.monotonic()
    session.load_best()
    _test(session)
    comparison, alt_text = _compare(session)
    # Before the export, which moves the model off the device.
    run_diagnostics(session)
    if session.spec.validation.test:
        _export(session)
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
    session.reporter.emit(Finished, **finished, report=write_report_page(session, finished))


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
    return session.task.draw(session.preview_examples, folder, shard=slice(0, 0), between_steps=session.check_stop)


def _export(session: Session) -> None:
    """Write all export files; each is loaded back and compared before its event is emitted."""
    session.begin_phase(Phase.EXPORTING)
    if session.processes.is_main:
        files = session.task.trained.export(session.job_dir / "output", session.spec.name, file_metadata(session))
        failpoint("export_written")
        for verified in session.task.verify(files, session.preview_examples, session.reporter.keep_alive):
            size, digest = _size_and_digest(verified.file.path)
            session.reporter.emit(
                Exported,
                format=verified.file.format,
                path=str(verified.file.path.relative_to(session.job_dir)),
                bytes=size,
                sha256=digest,
                max_difference=verified.max_difference,
            )
    session.processes.barrier()


def _size_and_digest(path: Path) -> tuple[int, str]:
    """Return bytes and SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    total_size, total_digest = 0, hashlib.sha256()
    for each in sorted(each for each in path.rglob("*") if each.is_file()):
        size, digest = _size_and_digest(each)
        total_size += size
        total_digest.update(f"{each.relative_to(path)} {digest}\n".encode())
    return total_size, total_digest.hexdigest()
