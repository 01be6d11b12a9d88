"""What a person may ask of one job, and when it makes sense to."""

from __future__ import annotations

from enum import StrEnum

from bot.queue.domain.job import ACTIVE, Job, State, StopIntent


class Verb(StrEnum):
    """As in the ids of buttons and the names of commands."""

    CANCEL = "cancel"
    #: End the training here; test and export its best epoch.
    KEEP_BEST = "keep_best"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    PIN = "pin"
    UNPIN = "unpin"
    SHARE = "share"
    UNSHARE = "unshare"

    @property
    def words(self) -> str:
        return "stop" if self is Verb.KEEP_BEST else self.value


def makes_sense(verb: Verb, job: Job) -> bool:
    """Whether `verb` would change anything: what lists offer and cards have buttons for."""
    match verb:
        case Verb.CANCEL:
            is_told = job.state is State.STOPPING and job.stop_intent is StopIntent.CANCEL
            return not job.state.is_end and not is_told
        case Verb.KEEP_BEST:
            return job.state is State.RUNNING and bool(job.progress.epochs) and not _is_finishing(job)
        case Verb.PAUSE:
            return job.state in ACTIVE - {State.STOPPING} | {State.QUEUED} and not _is_finishing(job)
        case Verb.RESUME:
            return job.state is State.PAUSED
        case Verb.RETRY:
            return job.state in {State.FAILED, State.CANCELLED} and not job.are_files_deleted
        case Verb.PIN:
            return not job.is_pinned and not job.are_files_deleted
        case Verb.UNPIN:
            return job.is_pinned
        case Verb.SHARE:
            return not job.is_shared and not job.are_files_deleted and bool(job.progress.base or job.progress.epochs)
        case Verb.UNSHARE:
            return job.is_shared


def _is_finishing(job: Job) -> bool:
    """Whether it only tests and exports what it has, or will when it starts again."""
    return job.stop_intent is StopIntent.KEEP_BEST and job.state is not State.STOPPING
