"""What users may do with a job: the verbs, when they apply, and who may use them."""

from __future__ import annotations

from enum import StrEnum

from bot.config import SamplingSettings
from bot.errors import Explained, JobRefused, NotAllowed, NotYourJob, TooManyWaiting
from bot.queue.domain.job import LIVING, Job, State, StopIntent
from trainer.protocol.text import N_, ngettext


class Verb(StrEnum):
    """What a user may do with a job, as in the IDs of buttons and the names of commands."""

    CANCEL = "cancel"
    #: End the training; test and export its best epoch.
    KEEP_BEST = "keep_best"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    #: More epochs for a finished training.
    EXTEND = "extend"
    PIN = "pin"
    UNPIN = "unpin"
    SHARE = "share"
    UNSHARE = "unshare"


#: States in which a verb may change anything; a verb that is not here, in any.
_STATES = {
    Verb.CANCEL: LIVING,
    Verb.KEEP_BEST: frozenset({State.RUNNING}),
    Verb.PAUSE: frozenset({State.QUEUED, State.PREPARING, State.RUNNING}),
    Verb.RESUME: frozenset({State.PAUSED}),
    Verb.RETRY: frozenset({State.FAILED, State.CANCELLED}),
    Verb.EXTEND: frozenset({State.SUCCEEDED, State.STOPPED}),
}


def applicable_states(verb: Verb) -> frozenset[State]:
    """Return the states in which `is_applicable` may be true."""
    return _STATES.get(verb, frozenset(State))


def is_applicable(verb: Verb, job: Job) -> bool:
    """True if `verb` would change anything: what lists offer and cards have buttons for."""
    return job.state in applicable_states(verb) and _would_change(verb, job)


def _would_change(verb: Verb, job: Job) -> bool:
    match verb:
        case Verb.CANCEL:
            return not (job.state is State.STOPPING and job.stop_intent is StopIntent.CANCEL)
        case Verb.KEEP_BEST:
            return bool(job.progress.epochs) and not _will_finish(job)
        case Verb.PAUSE:
            return not _will_finish(job)
        case Verb.RESUME:
            return True
        case Verb.RETRY | Verb.EXTEND:
            # A study has no weights of its own, and its runs are compared with each other.
            has_weights = bool(job.progress.epochs) and job.study is None
            return not job.are_files_deleted and (verb is Verb.RETRY or has_weights)
        case Verb.PIN:
            return not (job.is_pinned or job.are_files_deleted)
        case Verb.UNPIN:
            return job.is_pinned
        case Verb.SHARE:
            has_samples = bool(job.progress.base or job.progress.epochs)
            return has_samples and not (job.is_shared or job.are_files_deleted)
        case Verb.UNSHARE:
            return job.is_shared


def is_drawable(job: Job) -> bool:
    """True if an epoch of a training may be there to draw with (`/sample`)."""
    return not job.is_sampling and job.study is None and bool(job.progress.epochs) and not job.are_files_deleted


def may_control(job: Job, *, user_id: int, can_manage: bool) -> bool:
    """True for the job's owner, and for members who may manage the server."""
    return can_manage or user_id == job.owner_id


class PrivateTraining(Explained, NotAllowed):
    """A training on a private dataset that the member may not see."""

    job_id: int
    owner_id: int
    sentence = N_(
        "#{job_id} was made from a private dataset of <@{owner_id}>. Only they, people they name and managers can "
        "open it; ask them to add you."
    )


def may_open(job: Job, *, user_id: int, can_manage: bool) -> bool:
    """True unless a job is of a private dataset that is not for the member, and its owner has not shared it."""
    return not job.private_to or can_manage or job.is_shared or user_id in {job.owner_id, *job.private_to}


def require_open(job: Job, *, user_id: int, can_manage: bool) -> None:
    """Raise unless the member may see a job's settings, pictures and files.

    Raises:
        PrivateTraining: They may not.
    """
    if not may_open(job, user_id=user_id, can_manage=can_manage):
        raise PrivateTraining(job_id=job.id, owner_id=job.private_to[0])


def require_control(job: Job, *, user_id: int, can_manage: bool) -> None:
    """Raise unless the member may change this job.

    Raises:
        NotAllowed: They may not.
    """
    if not may_control(job, user_id=user_id, can_manage=can_manage):
        raise NotYourJob(job_id=job.id, owner_id=job.owner_id)


def require_room(waiting: int, allowed: int) -> None:
    """Raise unless a member with `waiting` queued jobs may add one.

    Raises:
        TooManyWaiting: They may not.
    """
    if waiting >= allowed:
        raise TooManyWaiting(waiting=waiting, allowed=allowed)


def require_sharable(job: Job, *, user_id: int, can_manage: bool) -> None:
    """Raise unless the member may share what a job drew: of a private dataset, only its owner and managers.

    Raises:
        PrivateTraining: They may not.
    """
    if job.private_to and not can_manage and user_id != job.private_to[0]:
        raise PrivateTraining(job_id=job.id, owner_id=job.private_to[0])


class TooManySamplings(JobRefused):
    """As many samplings of the member, or of the server, wait as may."""

    def __init__(self, *, waiting: int, is_own: bool) -> None:
        self.waiting, self.is_own = waiting, is_own
        if is_own:
            text = ngettext(
                "You have {n} request that waits to be drawn. Wait until it is done, or cancel it; nothing was queued.",
                "You have {n} requests that wait to be drawn. Wait until one is done, or cancel one; nothing was "
                "queued.",
                waiting,
            )
        else:
            text = ngettext(
                "This server has {n} request that waits to be drawn, the most it may have. Try again in a few "
                "minutes; nothing was queued.",
                "This server has {n} requests that wait to be drawn, the most it may have. Try again in a few "
                "minutes; nothing was queued.",
                waiting,
            )
        super().__init__(text)


def require_sampling_room(waiting: int, in_server: int, allowed: SamplingSettings) -> None:
    """Raise unless a member with `waiting` queued samplings, of `in_server` in the server, may add one.

    Raises:
        TooManySamplings: They may not.
    """
    if waiting >= allowed.max_waiting_per_user:
        raise TooManySamplings(waiting=waiting, is_own=True)
    if in_server >= allowed.max_waiting:
        raise TooManySamplings(waiting=in_server, is_own=False)


def _will_finish(job: Job) -> bool:
    """True if it only tests and exports, now or in its next attempt."""
    return job.stop_intent is StopIntent.KEEP_BEST and job.state is not State.STOPPING
