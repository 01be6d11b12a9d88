"""Who may do what with a job, and what follows when a run ends: pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from bot.errors import NotAllowed, TooManyWaiting
from bot.outbox import NoticeKind
from bot.queue.domain.job import Job, State, StopIntent
from trainer.protocol.events import Failed, FailureKind, Finished, LastWord, Stopped

#: Pause before another start, by the number of starts that were lost: 1, 2, 4 … times `QueueSettings.retry_pause_s`.
MAX_RETRY_PAUSE_S = 900.0
#: Interruptions that are nobody's fault (a reboot, a shutdown) and do not count; more than these do, or a job that
#: takes its machine down with it would do so for ever.
MAX_EXCUSED = 20


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of a job, when it is over."""

    job_id: int
    #: Preparing, running or stopping.
    state: State
    stop_intent: StopIntent | None
    #: It only tested and exported.
    is_finishing: bool = False
    #: Starts that count, this one included.
    starts: int
    max_starts: int
    #: Starts that did not count.
    excused: int = 0
    #: Epoch that was in work; 0 before the first step.
    epoch: int
    #: Last epoch that is kept in a checkpoint; 0 if none.
    kept_epoch: int
    #: Pictures that were in memory at once; 0 if it did not come that far.
    micro_batch: int = 0
    #: First pause before another start, seconds.
    retry_pause_s: float = 0.0


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
    #: The next start comes no sooner than after this.
    pause_s: float = 0.0
    #: The next start keeps no more pictures in memory at once; None leaves it as it is.
    micro_batch: int | None = None


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
        case Finished() if run.is_finishing:
            # Whatever it was told since: a drain in between takes the place of the word that it is to keep its best.
            return Outcome(state=State.STOPPED, notice=NoticeKind.DONE)
        case Finished():
            return Outcome(state=State.SUCCEEDED, notice=NoticeKind.DONE)
        case Failed():
            return _after_failure(run, word)
        case Stopped():
            return _after_stop(run, word)


def after_loss(run: Run, why: str | None = None, *, is_cut_off: bool = False, killed: str | None = None) -> Outcome:
    """What follows when a trainer is gone without a last word.

    `why` if it could not even be started; `is_cut_off` if its machine went down under it, which does not count;
    `killed` is why we killed it, if we did.
    """
    if run.state is State.STOPPING and (settled := _lost_while_stopping(run)):
        return settled
    excused = is_cut_off and run.excused < MAX_EXCUSED
    verb, aside = "died without a word", "killed, or the machine lost power"
    if is_cut_off:
        verb, aside = "was cut off", "its machine went down"
    elif killed:
        verb, aside = "was ended", killed
    happened = why or f"The training process of #{run.job_id} {verb} {_where(run)}"
    if excused or run.starts < run.max_starts:
        aside = "" if why else f" ({aside})."
        number = "" if excused else f" (attempt {run.starts + 1} of {run.max_starts})"
        return Outcome(
            state=State.QUEUED,
            notice=NoticeKind.LOST,
            detail=f"{happened}{aside} {_goes_on(run)}{number}.",
            finish=_finish(run),
            is_excused=excused,
            pause_s=0.0 if excused else _pause_s(run),
        )
    if killed and not is_cut_off and not why:
        happened += f" ({killed})"
    times = (
        "" if why else (", the only time that it was started." if run.starts == 1 else f", after {run.starts} starts.")
    )
    return Outcome(
        state=State.FAILED,
        notice=NoticeKind.FAILED,
        detail=f"{happened}{times} It is not started again; {_kept(run)}.",
    )


def _lost_while_stopping(run: Run) -> Outcome | None:
    """What was asked for, where that needs no checkpoint of this very moment; None: it is a loss like any other."""
    match run.stop_intent:
        case StopIntent.PAUSE:
            return Outcome(state=State.PAUSED, notice=NoticeKind.PAUSED, is_excused=True)
        case StopIntent.REQUEUE:
            return Outcome(state=State.QUEUED, notice=None, is_excused=True)
        case StopIntent.KEEP_BEST if run.kept_epoch:
            return None
        case _:
            return _cancelled(run)


def _after_failure(run: Run, word: Failed) -> Outcome:
    if run.state is State.STOPPING and run.stop_intent is StopIntent.CANCEL:
        return _cancelled(run)
    if run.starts >= run.max_starts:
        return Outcome(state=State.FAILED, notice=NoticeKind.FAILED)
    match word.kind:
        case FailureKind.OUT_OF_MEMORY if run.micro_batch > 1:
            smaller = run.micro_batch // 2
            how = f"at most {smaller} {'picture' if smaller == 1 else 'pictures'} in memory at once"
            return _again(run, word, f" with {how}; what is learnt stays the same", micro_batch=smaller)
        case FailureKind.OUT_OF_MEMORY if run.micro_batch == 0 and run.starts == 1:
            # Before it knew how many fit: something else filled the memory.
            return _again(run, word, ", once", pause_s=_pause_s(run))
        case FailureKind.DEVICE_LOST | FailureKind.DISK_FULL:
            return _again(run, word, "", pause_s=_pause_s(run))
        case FailureKind.BUG if run.starts == 1:
            # A hiccup of driver or GPU looks like a bug.
            return _again(run, word, ", once")
        case _:
            # Bad data, bad settings, a missing model, a loss that diverged: they come back the same.
            return Outcome(state=State.FAILED, notice=NoticeKind.FAILED)


def _again(run: Run, word: Failed, how: str, *, pause_s: float = 0.0, micro_batch: int | None = None) -> Outcome:
    state = State.QUEUED
    if run.state is State.STOPPING and run.stop_intent is StopIntent.PAUSE:
        state, pause_s = State.PAUSED, 0.0
    return Outcome(
        state=state,
        notice=NoticeKind.LOST,
        detail=f"#{run.job_id} failed {_where(run)}: {word.message} {_goes_on(run)}{how}.",
        pause_s=pause_s,
        micro_batch=micro_batch,
        finish=_finish(run),
    )


def _after_stop(run: Run, word: Stopped) -> Outcome:
    if run.state is not State.STOPPING:
        aside = "the machine shuts down, or somebody ended it"
        detail = f"#{run.job_id} was stopped from outside {_where(run)} ({aside}). {_goes_on(run)}."
        return Outcome(state=State.QUEUED, notice=NoticeKind.LOST, detail=detail, is_excused=run.excused < MAX_EXCUSED)
    match run.stop_intent:
        case StopIntent.KEEP_BEST if word.checkpoint is not None:
            return Outcome(state=State.QUEUED, notice=None, is_excused=True, finish=True)
        case StopIntent.PAUSE:
            return Outcome(state=State.PAUSED, notice=NoticeKind.PAUSED, is_excused=True)
        case StopIntent.REQUEUE:
            return Outcome(state=State.QUEUED, notice=None, is_excused=True)
        case _:
            return _cancelled(run)


def _cancelled(run: Run) -> Outcome:
    detail = "There was nothing to keep yet." if run.stop_intent is StopIntent.KEEP_BEST else ""
    return Outcome(state=State.CANCELLED, notice=NoticeKind.CANCELLED, detail=detail)


def _finish(run: Run) -> bool | None:
    """A run that was to keep its best and died goes on to do that."""
    return True if run.state is State.STOPPING and run.stop_intent is StopIntent.KEEP_BEST else None


def _pause_s(run: Run) -> float:
    return float(min(run.retry_pause_s * 2 ** max(0, run.starts - 1), MAX_RETRY_PAUSE_S))


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
