"""Turns whatever ended a run into its terminal event, with a sentence for the user."""

from __future__ import annotations

import logging

from trainer.device import is_device_lost, is_out_of_memory
from trainer.errors import DeviceLostError, DiskFullError, OutOfMemoryError, TrainerError, first_line, is_disk_full
from trainer.protocol.events import EXIT_FAILED, Failed
from trainer.protocol.text import _
from trainer.reporter import Reporter

log = logging.getLogger(__name__)


def emit_failed(reporter: Reporter, error: Exception) -> int:
    """Emit `Failed`, unless not even that can be written; return the exit status."""
    failure = to_trainer_error(error)
    # A refusal says all in its sentence.
    is_refusal = error is failure and error.__cause__ is None
    log.error("the run failed: %s", failure, exc_info=None if is_refusal else error)
    try:
        reporter.emit(Failed, kind=failure.kind, message=failure.message, hint=failure.hint)
    except OSError as write_error:
        # The cause is logged above.
        log.error("writing the terminal event (%s) failed: %s", failure, write_error)  # noqa: TRY400
    return EXIT_FAILED


def to_trainer_error(error: Exception) -> TrainerError:
    """Classify an exception, and explain it to the user."""
    if isinstance(error, TrainerError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(
            _("The device ran out of memory."),
            _("Use a smaller training.resolution, training.gradient_checkpointing, or a smaller method.rank."),
        )
    if is_device_lost(error):
        return DeviceLostError(
            _(
                "A GPU of this training, or another process of it, is gone or broken ({error}).",
                error=first_line(error),
            ),
            _(
                "The training can resume from its last checkpoint. If this happens again, check `nvidia-smi` and "
                "`dmesg` on that machine."
            ),
        )
    if is_disk_full(error):
        return DiskFullError(_("The disk is full."), _("Free some space and resume; the last checkpoint is complete."))
    return TrainerError(
        _("The trainer crashed ({kind}).", kind=type(error).__name__),
        _("This is a bug in the trainer; trainer.log has the details."),
    )
