"""Sentences for why attempts ended and what follows (`EndReason`), and for the reasons in the audit."""

from __future__ import annotations

from bot.queue.domain.job import EndReason, EndReasonKind
from bot.queue.store.history import AuditReason
from trainer.protocol.text import _, duration, ngettext

#: An attempt that ended in one of these ways was lost: it was not asked to stop, and did not report an error.
_LOSSES = frozenset(
    {
        EndReasonKind.PROCESS_DIED,
        EndReasonKind.NODE_LOST,
        EndReasonKind.NO_HEARTBEAT,
        EndReasonKind.NO_PROGRESS,
        EndReasonKind.LAUNCH_FAILED,
    }
)


def end_reason_text(reason: EndReason) -> str:
    """What happened, why, and what follows; of a job that the message around it names."""
    return " ".join(part for part in (_what_happened(reason), _what_follows(reason)) if part)


def audit_reason_text(why: str) -> str:
    """The `why` of an audit line: a user's own words stay as they are."""
    phrases: dict[str, str] = {
        AuditReason.QUEUE_DRAINED: _("the queue is being emptied"),
        AuditReason.WINDOW_CLOSED: _("the training window closed"),
        AuditReason.EPOCH_REACHED: _("it reached the epoch that its study asked for"),
        AuditReason.STUDY_CHILD: _("a training of a study"),
        AuditReason.STUDY_CANCELLED: _("its study was cancelled"),
        AuditReason.STUDY_ENDED: _("its study ended"),
        AuditReason.STUDY_STOPPING: _("its study is stopping"),
        EndReasonKind.PROCESS_DIED: _("its process ended unexpectedly"),
        EndReasonKind.NODE_LOST: _("its machine went down"),
        EndReasonKind.NO_HEARTBEAT: _("killed: no heartbeat"),
        EndReasonKind.NO_PROGRESS: _("killed: it hung"),
        EndReasonKind.LAUNCH_FAILED: _("it could not be started"),
        EndReasonKind.TRAINER_FAILED: _("the trainer failed"),
        EndReasonKind.STOPPED_EXTERNALLY: _("stopped, but not by the queue"),
        EndReasonKind.NOTHING_TO_KEEP: _("no epoch to keep yet"),
        EndReasonKind.STUDY: _("the study ended"),
    }
    return phrases.get(why, why)


def _what_happened(reason: EndReason) -> str:
    where = _where(reason)
    match reason.kind:
        case EndReasonKind.PROCESS_DIED:
            return _(
                "The training process ended unexpectedly {where} (killed, or the machine lost power).", where=where
            )
        case EndReasonKind.NODE_LOST:
            return _("The training process was interrupted {where}: its machine went down.", where=where)
        case EndReasonKind.NO_HEARTBEAT:
            return _(
                "The training process was killed {where}: it sent no heartbeat for {time}.",
                where=where,
                time=duration(reason.stalled_for_s),
            )
        case EndReasonKind.NO_PROGRESS:
            return _(
                "The training process was killed {where}: it hung, without progress for {time}.",
                where=where,
                time=duration(reason.stalled_for_s),
            )
        case EndReasonKind.TRAINER_FAILED:
            return _("It failed {where}: {message}", where=where, message=reason.message)
        case EndReasonKind.STOPPED_EXTERNALLY:
            return _(
                "It was stopped {where}, but not by the queue: the machine shuts down, or the process was ended by "
                "hand.",
                where=where,
            )
        case EndReasonKind.NOTHING_TO_KEEP:
            return _("There was no epoch to keep yet.")
        case EndReasonKind.LAUNCH_FAILED | EndReasonKind.STUDY:
            return reason.message


def _what_follows(reason: EndReason) -> str:
    if reason.is_retried:
        continues = _("It starts again{how}.", how=_how(reason))
        if reason.kept_epoch:
            continues = _(
                "It continues from the checkpoint of epoch {epoch}{how}.", epoch=reason.kept_epoch, how=_how(reason)
            )
        return continues
    if reason.kind not in _LOSSES:
        return ""
    failed = ngettext(
        "It is not started again: this was its only attempt.",
        "It is not started again: {n} attempts failed.",
        reason.attempt,
    )
    if reason.kept_epoch:
        kept = _(
            "What it learned up to epoch {epoch} is kept. Its log is below [Details].",
            epoch=reason.kept_epoch,
        )
    else:
        kept = _("Its log is below [Details].")
    return f"{failed} {kept}"


def _how(reason: EndReason) -> str:
    if reason.micro_batch is not None:
        return ngettext(
            " with at most {n} image in memory at once; the result stays the same",
            " with at most {n} images in memory at once; the result stays the same",
            reason.micro_batch,
        )
    if reason.is_only_retry:
        return _(" (its only retry)")
    if reason.kind in _LOSSES and reason.is_counted:
        return _(" (attempt {number} of {most})", number=reason.attempt + 1, most=reason.max_attempts)
    return ""


def _where(reason: EndReason) -> str:
    if reason.epoch > reason.kept_epoch:
        return _("in epoch {epoch}", epoch=reason.epoch)
    return _("after epoch {epoch}", epoch=reason.kept_epoch) if reason.kept_epoch else _("before its first step")
