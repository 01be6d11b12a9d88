"""Who may do what with a job, and what follows when a run ends: pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from bot.errors import NotAllowed, TooManyWaiting
from bot.outbox import NoticeKind
from bot.queue.job import Job, State, StopIntent
from trainer.protocol.events import Failed, FailureKind, Finished, LastWord, Stopped

#: Failures that are tried once more from the checkpoint: a hiccup of driver or GPU looks like a bug.
#: All the others come back the same (bad spec, bad data, missing model, diverged, …).
_TRIED_ONCE_MORE = frozenset({FailureKind.BUG})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of a job, when it is over."""

    job_id: int
    #: Running or stopping.
    state: State
    stop_intent: StopIntent | None
    #: Starts that count, this one included.
    starts: int
    max_starts: int
    #: Epoch that was in work; 0 before the first step.
    epoch: int
    #: Last epoch that is kept in a checkpoint; 0 if none.
    kept_epoch: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of the job."""

    #: `QUEUED`: it goes on, before all that never started.
    state: State
    notice: NoticeKind | None
    detail: str = ""
    #: This start does not count against the limit.
    is_excused: bool = False
    #: The next start only finishes (`trainer run --finish`); None leaves it as it is.
    finish: bool | None = None


def may_control(job: Job, *, user_id: int, can_manage: bool) -> bool:
    """Whether somebody may stop a job: its owner, or who may manage the server."""
    return can_manage or user_id == job.owner_id


def require_control(job: Job, *, user_id: int, can_manage: bool, verb: str = "cancel") -> None:
    """Nothing, if somebody may do `verb` with a job.

    Raises:
        NotAllowed: they may not.
    """
    if not may_control(job, user_id=user_id, can_manage=can_manage):
        raise NotAllowed(job_id=job.id, owner_id=job.owner_id, verb=verb)


def require_room(waiting: int, allowed: int) -> None:
    """Nothing, if somebody with `waiting` jobs in line may add one.

    Raises:
        TooManyWaiting: they may not.
    """
    if waiting >= allowed:
        raise TooManyWaiting(waiting=waiting, allowed=allowed)


def after_last_word(run: Run, word: LastWord) -> Outcome:
    """What follows when a trainer ended with a last word."""
    match word:
        case Finished():
            return Outcome(state=State.SUCCEEDED, notice=NoticeKind.DONE)
        case Failed():
            return _after_failure(run, word)
        case Stopped():
            return _after_stop(run, word)


def after_loss(run: Run, why: str | None = None) -> Outcome:
    """What follows when a trainer is gone without a last word; `why` if it could not even be started."""
    if run.state is State.STOPPING and (run.stop_intent is StopIntent.CANCEL or not run.kept_epoch):
        return _cancelled(run)
    happened = why or f"The training process of #{run.job_id} died without a word {_where(run)}"
    if run.starts < run.max_starts:
        aside = "" if why else " (killed, or the machine lost power)."
        return Outcome(
            state=State.QUEUED,
            notice=NoticeKind.LOST,
            detail=f"{happened}{aside} {_goes_on(run)} (attempt {run.starts + 1} of {run.max_starts}).",
            finish=_finish(run),
        )
    times = (
        "" if why else (", the only time that it was started." if run.starts == 1 else f", after {run.starts} starts.")
    )
    return Outcome(
        state=State.FAILED,
        notice=NoticeKind.FAILED,
        detail=f"{happened}{times} It is not started again; {_kept(run)}.",
    )


def _after_failure(run: Run, word: Failed) -> Outcome:
    if run.state is State.STOPPING and run.stop_intent is StopIntent.CANCEL:
        return _cancelled(run)
    if word.kind in _TRIED_ONCE_MORE and run.state is State.RUNNING and run.starts == 1 < run.max_starts:
        detail = f"#{run.job_id} failed {_where(run)}: {word.message} {_goes_on(run)}, once."
        return Outcome(state=State.QUEUED, notice=NoticeKind.LOST, detail=detail)
    return Outcome(state=State.FAILED, notice=NoticeKind.FAILED)


def _after_stop(run: Run, word: Stopped) -> Outcome:
    if run.state is not State.STOPPING:
        aside = "the machine shuts down, or somebody ended it"
        detail = f"#{run.job_id} was stopped from outside {_where(run)} ({aside}). {_goes_on(run)}."
        return Outcome(state=State.QUEUED, notice=NoticeKind.LOST, detail=detail, is_excused=True)
    if run.stop_intent is StopIntent.KEEP_BEST and word.checkpoint is not None:
        return Outcome(state=State.QUEUED, notice=None, is_excused=True, finish=True)
    return _cancelled(run)


def _cancelled(run: Run) -> Outcome:
    detail = "There was nothing to keep yet." if run.stop_intent is StopIntent.KEEP_BEST else ""
    return Outcome(state=State.CANCELLED, notice=NoticeKind.CANCELLED, detail=detail)


def _finish(run: Run) -> bool | None:
    """A run that was to keep its best and died goes on to do that."""
    return True if run.state is State.STOPPING and run.stop_intent is StopIntent.KEEP_BEST else None


def _where(run: Run) -> str:
    if run.epoch > run.kept_epoch:
        return f"in epoch {run.epoch}"
    return f"after epoch {run.kept_epoch}" if run.kept_epoch else "before its first step"


def _goes_on(run: Run) -> str:
    return f"It goes on from the checkpoint of epoch {run.kept_epoch}" if run.kept_epoch else "It begins again"


def _kept(run: Run) -> str:
    log = "its log is kept (trainer.log in its folder)"
    return (
        f"the checkpoint of epoch {run.kept_epoch} and {log.replace('is kept', 'are kept')}" if run.kept_epoch else log
    )
