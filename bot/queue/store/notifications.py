"""Which notices a trainer's events cause, each under a key by which it is told once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from bot.outbox import Notice, NoticeKind
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Exported,
    Sampled,
    StageBegan,
    StoppedEarly,
    Tested,
    Warned,
)


def notice_of(job_id: int, attempt: int, event: Event, earlier: Sequence[Event]) -> tuple[str, Notice] | None:
    """(dedupe key, notice) of an event that gets a post of its own; `earlier` is what the trainer said before it."""
    match event:
        case BaseValidated():
            return _notice(job_id, attempt, NoticeKind.BASE, "base", [*_sampled(earlier, 0), event])
        case EpochEnded():
            events = [*_sampled(earlier, event.epoch), event]
            return _notice(job_id, attempt, NoticeKind.EPOCH, f"epoch:{event.epoch}", events)
        case StoppedEarly():
            return _notice(job_id, attempt, NoticeKind.EARLY_STOP, "early_stop", [event])
        case Warned():
            # Two warnings of a kind may say different things: each is told once.
            said = hashlib.sha256(event.message.encode()).hexdigest()[:12]
            return _notice(job_id, attempt, NoticeKind.WARNING, f"warning:{event.kind}:{said}", [event])
        case StageBegan() if event.name or event.first_epoch > 1:
            # A training of one stage has nothing to tell of it.
            key = f"stage:{event.stage}:{event.first_epoch}"
            return _notice(job_id, attempt, NoticeKind.STAGE, key, [event])
        case _:
            return None


def end_events(kind: NoticeKind, word: Event | None, earlier: Sequence[Event]) -> tuple[Event, ...]:
    """What the notice about a run's end holds: `[tested?, exported…, finished]`, `[failed]`, `[stopped]` or nothing."""
    if kind in {NoticeKind.LOST, NoticeKind.PAUSED} or word is None:
        return ()
    if kind is not NoticeKind.DONE:
        return (word,)
    tested = [event for event in earlier if isinstance(event, Tested)][-1:]
    # A run that died while exporting exports again: the last file of each format is the true one.
    exported = {event.format: event for event in earlier if isinstance(event, Exported)}
    return (*tested, *exported.values(), word)


def end_key(job_id: int, kind: NoticeKind, attempt: int, round_: int) -> str:
    """A job ends once a round (Retry begins the next one); it can be lost, or paused, once an attempt."""
    if kind in {NoticeKind.LOST, NoticeKind.PAUSED}:
        return f"job:{job_id}:{kind}:{attempt}"
    return f"job:{job_id}:end" if round_ == 1 else f"job:{job_id}:end:{round_}"


def _sampled(earlier: Iterable[Event], epoch: int) -> Sequence[Event]:
    return [event for event in earlier if isinstance(event, Sampled) and event.epoch == epoch][-1:]


def _notice(job_id: int, attempt: int, kind: NoticeKind, key: str, events: Sequence[Event]) -> tuple[str, Notice]:
    return f"job:{job_id}:{key}", Notice(kind=kind, job_id=job_id, attempt=attempt, events=tuple(events))
