"""News for those who run the bot (digest, disk, GPUs, restarts, hangs): what each kind holds, and its sentence.

The outbox stores the record, as JSON in `Notification.detail`; the sentence is made when it is sent.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias, assert_never

from pydantic import Field, TypeAdapter

from bot.outbox import Notification
from bot.ui.discord_text import clock_time, escape, shorten
from bot.ui.layout import Color, MessageContent, box, layout
from trainer.protocol.frozen import Frozen
from trainer.protocol.text import _, duration, listed, ngettext, size, verdict

#: Owners and results of a digest that are named.
_NAMED = 5
_NAME_CHARACTERS = 60


class DiskSpace(Frozen):
    """The free disk space crossed its limit."""

    kind: Literal["disk_space"] = "disk_space"
    is_low: bool
    free_bytes: int
    min_free_bytes: int


class GpuTrouble(StrEnum):
    """Why a GPU gets no new training."""

    MISSING = "missing"
    #: In °C.
    HOT = "hot"
    #: Uncorrected memory errors, a count.
    MEMORY_ERRORS = "memory_errors"


class GpuHealth(Frozen):
    """A GPU got into trouble, or recovered (`trouble` None)."""

    kind: Literal["gpu_health"] = "gpu_health"
    slot: str
    trouble: GpuTrouble | None
    value: int = 0


class BackupFailed(Frozen):
    """The nightly backup failed."""

    kind: Literal["backup_failed"] = "backup_failed"
    error: str


class FilesDeleted(Frozen):
    """Retention deleted files of jobs."""

    kind: Literal["files_deleted"] = "files_deleted"
    jobs: int
    bytes: int


class BotRestarted(Frozen):
    """The bot is back; what became of the attempts that ran before."""

    kind: Literal["bot_restarted"] = "bot_restarted"
    away_s: float
    running: int
    ended: int
    lost: int
    messages: int


class JobSilent(Frozen):
    """A running job's trainer sends no events."""

    kind: Literal["job_silent"] = "job_silent"
    job_id: int
    name: str
    silent_s: float
    #: When it will be killed; None: never.
    kill_at: datetime | None


class JobUnkillable(Frozen):
    """A process survives its kill."""

    kind: Literal["job_unkillable"] = "job_unkillable"
    job_id: int
    name: str
    since_s: float
    #: It was asked to stop; else it was killed because it hung.
    was_stopped: bool


class BestResult(Frozen):
    """One of the best results of a week."""

    job_id: int
    name: str
    owner_id: int
    #: Validation loss relative to the base model; less is better.
    ratio: float


class LikedPicture(Frozen):
    """One of the pictures of the gallery that were liked most in a week."""

    job_id: int
    name: str
    owner_id: int
    likes: int


class WeeklyDigest(Frozen):
    """What happened in a week."""

    kind: Literal["weekly_digest"] = "weekly_digest"
    until: datetime
    #: Ended jobs by state; a study counts as one.
    ends: dict[str, int]
    #: By owner; a job on two GPUs counts twice.
    gpu_seconds: dict[int, float]
    best: tuple[BestResult, ...]
    liked: tuple[LikedPicture, ...] = ()
    stored_bytes: int
    free_bytes: int
    #: The next training window; None if it is always open.
    opens_at: datetime | None


News: TypeAlias = (
    DiskSpace | GpuHealth | BackupFailed | FilesDeleted | BotRestarted | JobSilent | JobUnkillable | WeeklyDigest
)
_NEWS: TypeAdapter[News] = TypeAdapter(Annotated[News, Field(discriminator="kind")])


def parse_news(detail: str) -> News:
    """Parse the news that `Notification.detail` stores."""
    return _NEWS.validate_json(detail)


def news_post(notification: Notification) -> MessageContent:
    """The message of stored news; it mentions no one."""
    text = news_text(parse_news(notification.detail))
    body = box(Color.NOTE, text)
    return MessageContent(layout=layout(body), is_silent=True)


def news_text(news: News) -> str:
    """The news in a sentence or two; the digest in lines."""
    match news:
        case DiskSpace():
            return _disk_text(news)
        case GpuHealth():
            return _gpu_text(news)
        case BackupFailed():
            return _(
                "The nightly backup of the database failed: {error} I will try again within the hour.",
                error=news.error,
            )
        case FilesDeleted():
            return ngettext(
                "Retention deleted files of {n} job, {size} (/admin audit names it).",
                "Retention deleted files of {n} jobs, {size} (/admin audit names them).",
                news.jobs,
                size=size(news.bytes),
            )
        case BotRestarted():
            return _restart_text(news)
        case JobSilent():
            return _silent_text(news)
        case JobUnkillable():
            return _unkillable_text(news)
        case WeeklyDigest():
            return digest_text(news)
        case _:
            assert_never(news)


def _disk_text(news: DiskSpace) -> str:
    free = size(news.free_bytes)
    if not news.is_low:
        return _("The disk has space again: {free} free. Trainings start again.", free=free)
    return _(
        "The disk is nearly full: {free} free, {least} are needed. No training starts until there is space; running "
        "ones continue. /admin storage shows what can be deleted.",
        free=free,
        least=size(news.min_free_bytes),
    )


def _gpu_text(news: GpuHealth) -> str:
    match news.trouble:
        case None:
            return _("{gpu} has recovered and takes trainings again.", gpu=news.slot)
        case GpuTrouble.MISSING:
            text = _("{gpu} is no longer there.", gpu=news.slot)
        case GpuTrouble.HOT:
            text = _("{gpu} is too hot ({value} °C).", gpu=news.slot, value=news.value)
        case GpuTrouble.MEMORY_ERRORS:
            text = ngettext(
                "{gpu} has {n} uncorrected memory error: reset it, or restart the machine.",
                "{gpu} has {n} uncorrected memory errors: reset it, or restart the machine.",
                news.value,
                gpu=news.slot,
            )
    return " ".join((text, _("It gets no new training until it has recovered.")))


def _restart_text(news: BotRestarted) -> str:
    parts = [ngettext("{n} job still runs", "{n} jobs still run", news.running)]
    if news.ended:
        parts.append(_("{n} ended meanwhile", n=news.ended))
    parts.append(_("{n} lost", n=news.lost))
    parts.append(ngettext("{n} message caught up", "{n} messages caught up", news.messages))
    return _("Back after {away}: {parts}.", away=duration(news.away_s), parts=", ".join(parts))


def _silent_text(news: JobSilent) -> str:
    text = _(
        "#{job} {name} has sent no progress for {silent}, but its process runs.",
        job=news.job_id,
        name=escape(news.name),
        silent=duration(news.silent_s),
    )
    if news.kill_at is None:
        follows = _("If it hangs, cancel it: the checkpoint is kept.")
    else:
        until = clock_time(news.kill_at)
        follows = _("Without progress until about {until}, it is ended and continues from its checkpoint.", until=until)
    return f"{text} {follows}"


def _unkillable_text(news: JobUnkillable) -> str:
    values = {"job": news.job_id, "name": escape(news.name), "ago": duration(news.since_s)}
    if news.was_stopped:
        text = _("#{job} {name} was asked to stop {ago} ago and still runs, although it was killed.", **values)
    else:
        text = _("#{job} {name} was killed {ago} ago and still runs.", **values)
    return " ".join((text, _("It holds its GPU; a hanging driver needs a restart of the machine.")))


def digest_text(week: WeeklyDigest) -> str:
    """The digest in lines."""
    lines = [_("### The week until {day}", day=f"<t:{week.until.timestamp():.0f}:D>"), _ends_line(week)]
    if hours := sum(week.gpu_seconds.values()) / 3600:
        by_use = sorted(week.gpu_seconds.items(), key=lambda item: (-item[1], item[0]))
        owners = [f"<@{owner_id}> {seconds / 3600:.1f} h" for owner_id, seconds in by_use]
        lines.append(_("**GPUs** {hours} h: {owners}", hours=f"{hours:.1f}", owners=listed(owners, most=_NAMED)))
    stored, free = size(week.stored_bytes), size(week.free_bytes)
    lines.append(_("**Storage** {stored} of jobs, {free} free", stored=stored, free=free))
    if week.opens_at is not None:
        lines.append(_("**Next training window** {when}", when=f"<t:{week.opens_at.timestamp():.0f}:F>"))
    # Last: Discord draws a line below a list as if it belonged to it.
    if week.liked:
        lines.append(_("**Most liked pictures**"))
        lines += [f"- #{each.job_id} {_name(each)} <@{each.owner_id}> 👍 {each.likes}" for each in week.liked]
    if week.best:
        lines.append(_("**Best results**"))
    lines += [f"- #{best.job_id} {_name(best)} <@{best.owner_id}> {verdict(best.ratio)}" for best in week.best[:_NAMED]]
    return "\n".join(lines)


def _name(best: BestResult | LikedPicture) -> str:
    # Escaping may double its length.
    return escape(shorten(best.name, _NAME_CHARACTERS), 2 * _NAME_CHARACTERS)


def _ends_line(week: WeeklyDigest) -> str:
    labels = {
        "succeeded": _("finished"),
        "stopped": _("ended early"),
        "failed": _("failed"),
        "cancelled": _("cancelled"),
    }
    ends = [f"{week.ends[state]} {label}" for state, label in labels.items() if state in week.ends]
    return _("**Jobs** {ends}", ends=", ".join(ends)) if ends else _("No job ended.")
