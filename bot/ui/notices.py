"""From a notice of the outbox to the message that people see."""

from __future__ import annotations

from typing import TypeVar

from bot.outbox.notice import Notice, NoticeKind
from bot.queue.domain.job import Job
from bot.ui.card import card
from bot.ui.endings import cancelled_post, done_post, failed_post
from bot.ui.layout import MessageContent
from bot.ui.posts import base_post, early_stop_post, epoch_post, lost_post, paused_post, stage_post, warning_post
from bot.ui.standing import Standing
from bot.ui.study import study_card, study_post
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Failed,
    Sampled,
    StageBegan,
    Stopped,
    StoppedEarly,
    Warned,
)

_E = TypeVar("_E")


def card_of(job: Job, standing: Standing) -> MessageContent:
    """The live card of a training, or of a study."""
    return card(job, standing) if job.study is None else study_card(job, standing)


def notice_message(notice: Notice, job: Job, standing: Standing) -> MessageContent:
    """The message of a notice; a card shows the job as it is now, the others what happened then."""
    match notice.kind:
        case NoticeKind.CARD:
            return card_of(job, standing)
        case NoticeKind.DONE if job.study is not None:
            return study_post(job, standing)
        case NoticeKind.DONE:
            return done_post(job, standing, notice.events)
        case NoticeKind.FAILED:
            return failed_post(job, standing, _first(notice, Failed), notice.detail)
        case NoticeKind.CANCELLED:
            return cancelled_post(job, standing, _first(notice, Stopped), notice.detail)
        case NoticeKind.LOST:
            return lost_post(job, standing, notice.detail)
        case NoticeKind.PAUSED:
            return paused_post(job, standing, notice.detail)
        case _:
            return _on_its_way(notice, job, standing)


def _on_its_way(notice: Notice, job: Job, standing: Standing) -> MessageContent:
    """What a training that goes on has to tell."""
    match notice.kind:
        case NoticeKind.BASE:
            return base_post(job, standing, _first(notice, Sampled), _first(notice, BaseValidated))
        case NoticeKind.EPOCH:
            return epoch_post(job, standing, _first(notice, Sampled), _needed(notice, EpochEnded))
        case NoticeKind.EARLY_STOP:
            return early_stop_post(job, standing, _needed(notice, StoppedEarly))
        case NoticeKind.STAGE:
            return stage_post(job, standing, _needed(notice, StageBegan))
        case _:
            return warning_post(job, standing, _needed(notice, Warned).message)


def _first(notice: Notice, kind: type[_E]) -> _E | None:
    return next((event for event in notice.events if isinstance(event, kind)), None)


def _needed(notice: Notice, kind: type[_E]) -> _E:
    event = _first(notice, kind)
    assert event is not None, f"a notice of kind {notice.kind} without {kind.__name__}"
    return event
