"""Applies events to a job: pure functions from (job, event) to the job after it and the notifications it causes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from bot.outbox import Notification, NotificationKind
from bot.queue.domain.job import ActiveJob, State, StopIntent
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    KeepAlive,
    PhaseBegan,
    PhaseProgress,
    Sampled,
    SamplingStarted,
    StageBegan,
    Started,
    StepDone,
    StoppedEarly,
    TerminalEvent,
    Tested,
    Warned,
)
from trainer.protocol.exported_files import newest_files

log = logging.getLogger(__name__)

#: Kinds of warnings that the owner should see before the end: the training may not be worth its time as it is.
_ALARMS = frozenset({"diverging", "doubtful_setting", "memorized", "mix_overlap"})


@dataclass(frozen=True, kw_only=True)
class IngestResult:
    """What a batch of events makes of a job."""

    job: ActiveJob
    #: In the order of their events.
    notifications: tuple[Notification, ...] = ()
    #: New events that are stored: all but `step_done`, `phase_progress` and `keep_alive`.
    stored: tuple[Event, ...] = ()
    #: The newest `phase_progress`.
    counted: PhaseProgress | None = None
    #: The terminal event, if the batch ends in one; one in its middle was followed by another run.
    terminal_event: TerminalEvent | None = None


def ingest_events(job: ActiveJob, events: Iterable[Event]) -> IngestResult:
    """Apply a batch of events in order; those that are known, or of a superseded attempt, are ignored."""
    new: list[Event] = []
    last_seq = job.last_seq
    for event in events:
        if is_new(job, event, last_seq=last_seq):
            new.append(event)
            last_seq = event.seq
    if not new:
        return IngestResult(job=job)
    steps = [event for event in new if isinstance(event, StepDone)]
    # Of the phase that the batch ends in; a phase that began again counts from zero.
    phase_began = max((event.seq for event in new if isinstance(event, PhaseBegan | Started)), default=0)
    counted = [event for event in new if isinstance(event, PhaseProgress) and event.seq > phase_began]
    stored = tuple(event for event in new if not isinstance(event, (StepDone, PhaseProgress, KeepAlive)))
    notifications: list[Notification] = []
    for event in stored:
        job, caused = apply(job, event)
        notifications += caused
    # Of the steps and counts only the newest matter; there may be hundreds.
    progress = job.progress.after(steps[-1]) if steps else job.progress
    progress = progress.after(counted[-1]) if counted else progress
    return IngestResult(
        job=job.changed(last_seq=last_seq, progress=progress),
        notifications=tuple(notifications),
        stored=stored,
        counted=counted[-1] if counted else None,
        terminal_event=new[-1] if isinstance(new[-1], TerminalEvent) else None,
    )


def apply(job: ActiveJob, event: Event) -> tuple[ActiveJob, tuple[Notification, ...]]:
    """Return the job after one event, and the notifications that the event causes.

    A terminal event changes no state: it counts once the process has exited (`rules.after_terminal_event`).
    """
    if not is_new(job, event, last_seq=job.last_seq):
        return job, ()
    job = job.changed(last_seq=event.seq, progress=job.progress.after(event))
    if isinstance(event, Started | SamplingStarted) and job.state is State.PREPARING:
        job = job.changed(state=State.RUNNING)
    if _reaches_goal(job, event):
        job = job.changed(state=State.STOPPING, stop_intent=StopIntent.PAUSE, stopped_by=None)
    return job, notifications_of(job, event)


def is_new(job: ActiveJob, event: Event, *, last_seq: int) -> bool:
    """False for an event that was ingested before, or that a superseded attempt sends (the fence)."""
    if event.seq <= last_seq:
        return False
    # 0: a trainer on the command line, without a number.
    if 0 < event.attempt < job.attempt:
        log.warning("#%d: event %s of superseded attempt %d ignored", job.id, event.type, event.attempt)
        return False
    return True


def _reaches_goal(job: ActiveJob, event: Event) -> bool:
    """True if a child of a study has come as far as it was asked to for now."""
    return (
        isinstance(event, EpochEnded)
        and job.until_epoch is not None
        and event.epoch >= job.until_epoch
        and job.state in {State.PREPARING, State.RUNNING}
        and not job.is_finishing
    )


def notifications_of(job: ActiveJob, event: Event) -> tuple[Notification, ...]:
    """Return the notifications that an event causes; a child of a study and a sampling have none."""
    if job.parent_id is not None or job.is_sampling:
        return ()
    match event:
        case Started():
            return (_notification(job, event, NotificationKind.STARTED, "started"),)
        case BaseValidated():
            return (_notification(job, event, NotificationKind.BASE, "base"),)
        case EpochEnded():
            return (_notification(job, event, NotificationKind.EPOCH, f"epoch:{event.epoch}"),)
        case StoppedEarly():
            return (_notification(job, event, NotificationKind.EARLY_STOP, f"early_stop:{event.epoch}"),)
        case Warned():
            # Once per kind: that it diverges, or halves its memory again, is the same news.
            warning = _notification(job, event, NotificationKind.WARNING, f"warning:{event.kind}")
            if event.kind not in _ALARMS:
                return (warning,)
            # One key: the channel shows the first of them only.
            return _notification(job, event, NotificationKind.ALARM, "alarm"), warning
        case StageBegan() if event.name or event.first_epoch > 1:
            # A training of one stage has nothing to report.
            return (_notification(job, event, NotificationKind.STAGE, f"stage:{event.stage}:{event.first_epoch}"),)
        case _:
            return ()


def end_notification(
    kind: NotificationKind,
    event: TerminalEvent | None,
    *,
    job_id: int,
    guild_id: int,
    owner_id: int,
    attempt: int,
    round_: int,
) -> Notification:
    """Return the notification about the end of an attempt.

    A job ends once a round (Retry or an extension begins the next one); it is lost or paused at most once an attempt.
    """
    if kind in {NotificationKind.LOST, NotificationKind.PAUSED}:
        key, seq = f"job:{job_id}:{kind}:{attempt}", 0
    else:
        key = f"job:{job_id}:end" if round_ == 1 else f"job:{job_id}:end:{round_}"
        seq = 0 if event is None else event.seq
    return Notification(
        kind=kind, job_id=job_id, attempt=attempt, seq=seq, dedupe_key=key, guild_id=guild_id, owner_id=owner_id
    )


def events_shown(notification: Notification, events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the events that a notification's message shows, its own last; `events` are the job's, oldest first.

    A base or an epoch comes with its samples, an epoch also with those before it; the result with its test and its
    newest files.
    """
    known = [event for event in events if event.seq <= notification.seq]
    own = next((event for event in known if event.seq == notification.seq), None)
    if own is None:
        return ()
    match notification.kind:
        case NotificationKind.BASE | NotificationKind.EPOCH:
            epoch = own.epoch if isinstance(own, EpochEnded) else 0
            sampled = [event for event in known if isinstance(event, Sampled) and event.epoch == epoch]
            before = [event for event in known if isinstance(event, EpochEnded) and event.epoch < epoch]
            return (*before, *sampled[-1:], own)
        case NotificationKind.DONE:
            tested = [event for event in known if isinstance(event, Tested)]
            return (*tested[-1:], *newest_files(known), own)
        case _:
            return (own,)


def _notification(job: ActiveJob, event: Event, kind: NotificationKind, key: str) -> Notification:
    dedupe_key = f"job:{job.id}:{key}"
    return Notification(
        kind=kind,
        job_id=job.id,
        attempt=job.attempt,
        seq=event.seq,
        dedupe_key=dedupe_key,
        guild_id=job.guild_id,
        owner_id=job.owner_id,
    )
