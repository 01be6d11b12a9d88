"""What follows when an attempt ends: pure functions from the job and the end to an `AttemptOutcome`."""

from __future__ import annotations

from dataclasses import dataclass

from bot.clock import backoff_s
from bot.config import QueueSettings
from bot.outbox import NotificationKind
from bot.queue.domain.job import ActiveJob, EndReason, EndReasonKind, State, StopIntent
from trainer.protocol.events import Failed, FailureKind, Finished, SamplingFinished, Stopped, TerminalEvent

#: Longest back-off before another attempt; the first is `QueueSettings.retry_pause_s`, and each doubles.
MAX_RETRY_PAUSE_S = 900.0
#: Interruptions without fault of the job (a reboot, a shutdown) do not count, up to this number: else a job that brings
#: down its machine would do so forever.
MAX_UNCOUNTED = 20


@dataclass(frozen=True, kw_only=True)
class AttemptOutcome:
    """What becomes of the job."""

    #: `QUEUED`: it continues, before all jobs that were never started.
    state: State
    notification: NotificationKind | None
    reason: EndReason | None = None
    #: This attempt does not count against the limit.
    is_uncounted: bool = False
    #: The next attempt only finishes (`trainer run --finish`); None: unchanged.
    finish: bool | None = None
    #: Back-off before the next attempt.
    pause_s: float = 0.0
    #: Upper limit of the images in memory at once in the next attempt; None: unchanged.
    micro_batch: int | None = None


def after_terminal_event(job: ActiveJob, event: TerminalEvent, settings: QueueSettings) -> AttemptOutcome:
    """Decide what follows when a trainer ended with a terminal event."""
    match event:
        case Finished() if job.is_finishing and job.chosen_epoch is None:
            # Whatever it was asked since: a drain replaces the intent to keep the best epoch.
            return AttemptOutcome(state=State.STOPPED, notification=NotificationKind.DONE)
        case Finished():
            return AttemptOutcome(state=State.SUCCEEDED, notification=NotificationKind.DONE)
        case SamplingFinished():
            return AttemptOutcome(state=State.SUCCEEDED, notification=NotificationKind.DRAWN)
        case Failed():
            return _after_failure(job, event, settings)
        case Stopped():
            return _after_stop(job, event, settings)


def after_loss(job: ActiveJob, cause: EndReason, settings: QueueSettings) -> AttemptOutcome:
    """Decide what follows when a trainer ended without a terminal event, or could not be started.

    `cause` has the kind, and its message or duration; the rest is filled in here. A lost node does not count.
    """
    if job.state is State.STOPPING and (outcome := _lost_while_stopping(job)):
        return outcome
    is_uncounted = cause.kind is EndReasonKind.NODE_LOST and job.uncounted < MAX_UNCOUNTED
    is_retried = is_uncounted or job.counted_attempts < settings.max_attempts
    reason = _reason(job, cause, settings, is_retried=is_retried, is_counted=not is_uncounted)
    if not is_retried:
        return AttemptOutcome(state=State.FAILED, notification=NotificationKind.FAILED, reason=reason)
    return AttemptOutcome(
        state=State.QUEUED,
        notification=NotificationKind.LOST,
        reason=reason,
        finish=_finish(job),
        is_uncounted=is_uncounted,
        pause_s=0.0 if is_uncounted else _pause_s(job, settings),
    )


def _lost_while_stopping(job: ActiveJob) -> AttemptOutcome | None:
    """What was asked for, if that needs no new checkpoint; None: treat it as any other loss."""
    match job.stop_intent:
        case StopIntent.PAUSE:
            return AttemptOutcome(state=State.PAUSED, notification=NotificationKind.PAUSED, is_uncounted=True)
        case StopIntent.REQUEUE:
            return AttemptOutcome(state=State.QUEUED, notification=None, is_uncounted=True)
        case StopIntent.KEEP_BEST if job.progress.kept_epoch:
            return None
        case _:
            return _cancelled(job)


def _after_failure(job: ActiveJob, event: Failed, settings: QueueSettings) -> AttemptOutcome:
    if job.state is State.STOPPING and job.stop_intent is StopIntent.CANCEL:
        return _cancelled(job)
    is_first = job.counted_attempts == 1
    fitted = _micro_batch(job)
    if job.counted_attempts < settings.max_attempts:
        match event.kind:
            case FailureKind.OUT_OF_MEMORY if fitted > 1:
                # The effective batch stays the same, so the result does too.
                return _again(job, event, settings, micro_batch=fitted // 2)
            case FailureKind.OUT_OF_MEMORY if fitted == 0 and is_first:
                # Before it knew how many images fit: another process filled the memory.
                return _again(job, event, settings, pause_s=_pause_s(job, settings), is_only_retry=True)
            case FailureKind.DEVICE_LOST | FailureKind.DISK_FULL:
                return _again(job, event, settings, pause_s=_pause_s(job, settings))
            case FailureKind.BUG if is_first:
                # An error of the driver or the GPU looks like a bug.
                return _again(job, event, settings, is_only_retry=True)
            case _:
                # Bad data, bad settings, a missing model, a diverged loss: they would fail again.
                pass
    return AttemptOutcome(state=State.FAILED, notification=NotificationKind.FAILED)


def _again(
    job: ActiveJob,
    event: Failed,
    settings: QueueSettings,
    *,
    pause_s: float = 0.0,
    micro_batch: int | None = None,
    is_only_retry: bool = False,
) -> AttemptOutcome:
    state = State.QUEUED
    if job.state is State.STOPPING and job.stop_intent is StopIntent.PAUSE:
        state, pause_s = State.PAUSED, 0.0
    cause = EndReason(
        kind=EndReasonKind.TRAINER_FAILED,
        message=event.message,
        micro_batch=micro_batch,
        is_only_retry=is_only_retry,
    )
    return AttemptOutcome(
        state=state,
        notification=NotificationKind.LOST,
        reason=_reason(job, cause, settings, is_retried=True),
        pause_s=pause_s,
        micro_batch=micro_batch,
        finish=_finish(job),
    )


def _after_stop(job: ActiveJob, event: Stopped, settings: QueueSettings) -> AttemptOutcome:
    if job.state is not State.STOPPING:
        is_uncounted = job.uncounted < MAX_UNCOUNTED
        cause = EndReason(kind=EndReasonKind.STOPPED_EXTERNALLY)
        return AttemptOutcome(
            state=State.QUEUED,
            notification=NotificationKind.LOST,
            reason=_reason(job, cause, settings, is_retried=True, is_counted=not is_uncounted),
            is_uncounted=is_uncounted,
        )
    match job.stop_intent:
        case StopIntent.KEEP_BEST if event.checkpoint is not None:
            return AttemptOutcome(state=State.QUEUED, notification=None, is_uncounted=True, finish=True)
        case StopIntent.PAUSE:
            return AttemptOutcome(state=State.PAUSED, notification=NotificationKind.PAUSED, is_uncounted=True)
        case StopIntent.REQUEUE:
            return AttemptOutcome(state=State.QUEUED, notification=None, is_uncounted=True)
        case _:
            return _cancelled(job)


def _cancelled(job: ActiveJob) -> AttemptOutcome:
    reason = EndReason(kind=EndReasonKind.NOTHING_TO_KEEP) if job.stop_intent is StopIntent.KEEP_BEST else None
    return AttemptOutcome(state=State.CANCELLED, notification=NotificationKind.CANCELLED, reason=reason)


def _reason(
    job: ActiveJob, cause: EndReason, settings: QueueSettings, *, is_retried: bool, is_counted: bool = True
) -> EndReason:
    progress = job.progress
    return cause.model_copy(
        update={
            "attempt": job.counted_attempts,
            "max_attempts": settings.max_attempts,
            "epoch": max(progress.step.epoch if progress.step else 0, progress.kept_epoch),
            "kept_epoch": progress.kept_epoch,
            "is_retried": is_retried,
            "is_counted": is_counted,
        }
    )


def _finish(job: ActiveJob) -> bool | None:
    """A job that was to keep its best epoch, and was lost, continues to do that."""
    return True if job.state is State.STOPPING and job.stop_intent is StopIntent.KEEP_BEST else None


def _pause_s(job: ActiveJob, settings: QueueSettings) -> float:
    return backoff_s(job.counted_attempts, settings.retry_pause_s, MAX_RETRY_PAUSE_S)


def _micro_batch(job: ActiveJob) -> int:
    """Images in memory at once; 0 if it did not get that far."""
    sizes = [size for size in (job.progress.micro_batch_size, job.micro_batch or 0) if size]
    return min(sizes, default=0)
