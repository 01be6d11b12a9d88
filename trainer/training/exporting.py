"""Writes the files for other programs: those of the best epoch, loaded back and compared, and one of other epochs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trainer.models.methods.trained import ExportedFile
from trainer.protocol.events import Exported, Phase
from trainer.trainer_failpoints import failpoint
from trainer.training.metadata import file_metadata
from trainer.training.session import Session


def export_best(session: Session, *, sample: Path) -> None:
    """Write all files of the loaded best epoch; each is loaded back and compared before its event is emitted.

    Args:
        session: The run, with the weights of the best checkpoint.
        sample: An image that they drew.
    """
    session.begin_phase(Phase.EXPORTING)

    def count(done: int, total: int) -> None:
        # Not `session.count`: a stop request must not end a job whose files are about to be complete.
        session.report_count(done, total)
        session.reporter.keep_alive()

    if session.processes.is_main:
        epoch, step = session.state.stop_memory.best_epoch, session.state.best_step
        metadata = file_metadata(session, epoch=epoch, step=step, sample=sample)
        files = session.task.trained.export(session.job_dir / "output", session.spec.name, metadata)
        failpoint("export_written")
        for verified in session.task.verify(files, session.preview_examples, count):
            fields = _exported(session, verified.file)
            session.reporter.emit(Exported, **fields, max_difference=verified.max_difference)
    session.processes.barrier()


def export_epoch(session: Session, *, is_best: bool, is_last: bool, sample: Path) -> dict[str, Any] | None:
    """Write the small file of the current epoch if it is due; return the fields of its event.

    Args:
        session: The run, with the weights to export.
        is_best: Its file would equal that of the best epoch, unless a later epoch is better.
        is_last: The training ends with this epoch.
        sample: An image that these weights drew.
    """
    settings, epoch = session.spec.exports, session.state.epoch
    is_due = settings.every_epochs is not None and epoch % settings.every_epochs == 0
    # The runs of a study export nothing.
    if not session.spec.validation.test or not (is_due or (is_last and not is_best)):
        return None
    fields = _write_epoch(session, sample) if session.processes.is_main else None
    written: dict[str, Any] | None = session.processes.broadcast(fields)
    return written


def _write_epoch(session: Session, sample: Path) -> dict[str, Any] | None:
    folder, epoch = session.job_dir / "output" / "epochs", session.state.epoch
    metadata = file_metadata(session, epoch=epoch, step=session.state.step, sample=sample)
    file = session.task.trained.export_epoch(folder, session.spec.name, epoch, metadata)
    if file is None:
        return None
    delete_oldest(folder, keep=session.spec.exports.keep, keep_bytes=session.spec.exports.keep_mib * 2**20)
    return {**_exported(session, file), "epoch": epoch}


def delete_oldest(folder: Path, *, keep: int, keep_bytes: int) -> None:
    """Delete files of epochs, the oldest first, until so many and so much are left; the newest one always stays."""
    newest_first = sorted(folder.iterdir(), reverse=True)
    total = 0
    for index, file in enumerate(newest_first):
        total += file.stat().st_size
        if index and (index >= keep or total > keep_bytes):
            file.unlink()


def _exported(session: Session, file: ExportedFile) -> dict[str, Any]:
    size, digest = _size_and_digest(file.path)
    return {
        "format": file.format,
        "path": str(file.path.relative_to(session.job_dir)),
        "bytes": size,
        "sha256": digest,
        "readers": file.readers,
        "modules": file.modules,
        "token": file.token,
    }


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
