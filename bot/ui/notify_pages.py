"""What people are notified of because they asked for it: direct messages, mentions, and the page of `/notify`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from zoneinfo import available_timezones

import discord
from discord import ui

from bot.errors import DarkroomError
from bot.outbox.audience import NotifyEvent, NotifyPlace, Preferences, QuietHours
from bot.outbox.cards import NO_THREAD, Card
from bot.outbox.notification import Notification, NotificationKind
from bot.queue.domain.job import Job
from bot.ui.buttons import NotifyButton, NotifyMenu
from bot.ui.dataset_forms import Form, FormCallback
from bot.ui.discord_text import mention
from bot.ui.job_context import job_name
from bot.ui.layout import Color, MessageContent, box, layout, row, with_line
from trainer.protocol.text import _

_TIME = re.compile(r"(?P<hour>[0-9]{1,2})(?:[:.](?P<minute>[0-9]{2}))? *(?P<half>am|pm)?")


def notification_words(notification: Notification, job: Job) -> str:
    """What happened to a job, as one sentence."""
    name = job_name(job)
    match notification.kind:
        case NotificationKind.QUEUED:
            return _("{job} is in the queue.", job=name)
        case NotificationKind.STARTED:
            return _("{job} has started.", job=name)
        case NotificationKind.EPOCH:
            return _("{job} has finished another epoch.", job=name)
        case NotificationKind.EARLY_STOP:
            return _("{job} stopped early: it was no longer getting better. Its best version is kept.", job=name)
        case NotificationKind.DONE:
            return _("{job} is finished.", job=name)
        case NotificationKind.DRAWN:
            return _("{job}: the images are drawn.", job=name)
        case NotificationKind.CANCELLED:
            return _("{job} was cancelled.", job=name)
        case _:
            return _("{job} failed.", job=name)


def called_post(notification: Notification, job: Job) -> MessageContent:
    """News that only those get who asked for it, in the job's thread."""
    return MessageContent(layout=layout(notification_words(notification, job)), is_silent=True)


def direct_post(notification: Notification, job: Job, card: Card | None) -> MessageContent:
    """News as a direct message, with a link; in the thread, if the person takes no direct messages."""
    (user_id,) = notification.mentions
    news = notification_words(notification, job)
    if notification.is_returned:
        why = _(
            "I could not send you a direct message, because you do not accept them from this server. "
            "`/notify` changes where I tell you."
        )
        view = layout(box(Color.NOTE, f"{mention(user_id)} {news}\n{why}"))
    else:
        view = layout(news, job_link(job, card))
    return MessageContent(layout=view, mentions=(user_id,), is_silent=notification.is_quiet)


def job_link(job: Job, card: Card | None) -> str:
    """Where a job is: its thread, or its card, or its channel; Discord shows such an address as a link."""
    server = f"https://discord.com/channels/{job.guild_id}"
    if card is None or card.message_id is None:
        return f"{server}/{job.channel_id}"
    if card.thread_id not in {None, NO_THREAD}:
        return f"{server}/{card.thread_id}"
    return f"{server}/{card.channel_id}/{card.message_id}"


def thread_linked(content: MessageContent, card: Card | None) -> MessageContent:
    """A card with a link to the job's thread, if that started from an earlier card; Discord shows its name."""
    if card is None or card.thread_id in {None, NO_THREAD, card.message_id}:
        return content
    return with_line(content, f"-# <#{card.thread_id}>")


# -- /notify ------------------------------------------------------------------------------------------------------


class NoQuietHours(DarkroomError):
    """The quiet hours that were typed cannot be read."""


def notify_page(preferences: Preferences, note: str = "") -> MessageContent:
    """What a person is notified of: one menu for each event, and their quiet hours."""
    menus = [_menu(event, preferences.places[event]) for event in NotifyEvent]
    button = ui.Button[ui.LayoutView](
        custom_id="notify:quiet", label=_("Quiet hours…"), emoji="🌙", style=discord.ButtonStyle.secondary
    )
    return MessageContent(
        layout=layout(
            f"### 🔔 {_('What I tell you about')}\n"
            + _("This is about your own trainings, and about those where you press 🔔."),
            *[row(menu) for menu in menus],
            quiet_words(preferences.quiet),
            f"ℹ️ {note}" if note else None,
            row(NotifyButton(button)),
        )
    )


def plain_words(*, is_plain: bool) -> str:
    """How a person is answered from now on."""
    if is_plain:
        return _("My answers to you are plain text now, for screen readers. Posts that others see stay as they are.")
    return _("My answers to you have boxes and pictures again.")


def _menu(event: NotifyEvent, chosen: NotifyPlace) -> NotifyMenu:
    select: ui.Select[ui.LayoutView] = ui.Select(custom_id=f"notify:at:{event}")
    for place in NotifyPlace:
        select.add_option(label=_choice_words(event, place), value=place, default=place is chosen)
    return NotifyMenu(select)


def _choice_words(event: NotifyEvent, place: NotifyPlace) -> str:
    name = event_words(event)
    match place:
        case NotifyPlace.MENTION:
            if event in {NotifyEvent.DONE, NotifyEvent.FAILED}:
                return _("{event}: mention me in the channel", event=name)
            return _("{event}: mention me in the thread", event=name)
        case NotifyPlace.DIRECT:
            return _("{event}: send me a direct message", event=name)
        case NotifyPlace.NONE:
            return _("{event}: do not tell me", event=name)


def event_words(event: NotifyEvent) -> str:
    """What a person may be notified of, at the beginning of a sentence."""
    match event:
        case NotifyEvent.QUEUED:
            return _("In the queue")
        case NotifyEvent.STARTED:
            return _("Started")
        case NotifyEvent.EPOCH:
            return _("Each epoch")
        case NotifyEvent.EARLY_STOP:
            return _("Stopped early")
        case NotifyEvent.DONE:
            return _("Finished")
        case NotifyEvent.FAILED:
            return _("Failed or cancelled by others")


def quiet_words(quiet: QuietHours | None) -> str:
    """When a person's messages make no sound."""
    if quiet is None:
        return _("🌙 You have no quiet hours.")
    return _(
        "🌙 From {begins} to {ends} ({zone}) my messages make no sound. You find them when you look.",
        begins=_time_words(quiet.begins),
        ends=_time_words(quiet.ends),
        zone=quiet.zone,
    )


def quiet_form(submitted: FormCallback, quiet: QuietHours | None, *, zone: str) -> Form:
    """The form of quiet hours; `zone` is suggested to who has none."""
    form = Form(_("Quiet hours"), submitted)
    form.add_text(
        "begins",
        _("From"),
        _("Such as 22:00. Leave both times empty to have no quiet hours."),
        value=_time_words(quiet.begins) if quiet else "",
        max_length=20,
        placeholder="22:00",
    )
    form.add_text("ends", _("To"), value=_time_words(quiet.ends) if quiet else "", max_length=20, placeholder="07:30")
    form.add_text(
        "zone",
        _("Your time zone"),
        _("Continent/City, such as Europe/Berlin or Asia/Shanghai"),
        value=quiet.zone if quiet else zone,
        max_length=40,
    )
    return form


def parse_quiet_hours(texts: Mapping[str, str]) -> QuietHours | None:
    """Parse what was typed into `quiet_form`; None: no quiet hours.

    Raises:
        NoQuietHours: A time or the zone is none.
    """
    begins, ends, zone = (texts[name].strip() for name in ("begins", "ends", "zone"))
    if not begins and not ends:
        return None
    if not begins or not ends:
        raise NoQuietHours(_("Write both times. Leave both empty to have no quiet hours."))
    found = QuietHours(begins=_minutes(begins), ends=_minutes(ends), zone=_zone(zone))
    if found.begins == found.ends:
        raise NoQuietHours(
            _("The quiet hours begin and end at {time}. Write two different times.", time=_time_words(found.begins))
        )
    return found


def _minutes(text: str) -> int:
    match = _TIME.fullmatch(text.lower())
    if match is None:
        raise NoQuietHours(_("“{text}” is not a time of day. Write it as 22:00 or 10 pm.", text=text))
    hour, minute, half = int(match["hour"]), int(match["minute"] or 0), match["half"]
    if half:
        hour = hour % 12 + (12 if half == "pm" else 0) if 1 <= hour <= 12 else 24
    if hour > 23 or minute > 59:
        raise NoQuietHours(_("“{text}” is not a time of day. Write it as 22:00 or 10 pm.", text=text))
    return 60 * hour + minute


def _zone(text: str) -> str:
    zones = {name.lower(): name for name in available_timezones()}
    wanted = text.lower().replace(" ", "_")
    if wanted in zones:
        return zones[wanted]
    # A city alone is enough, if there is one of that name.
    cities = {name.rpartition("/")[2]: name for name in sorted(zones, reverse=True)}
    if wanted in cities:
        return zones[cities[wanted]]
    near = get_close_matches(wanted.rpartition("/")[2], list(cities), n=1)
    if near:
        raise NoQuietHours(
            _(
                "I do not know the time zone “{text}”. Did you mean {zone}?",
                text=text,
                zone=zones[cities[near[0]]],
            )
        )
    raise NoQuietHours(
        _("I do not know the time zone “{text}”. Write the name of a large city near you, such as Berlin.", text=text)
    )


def _time_words(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def direct_test() -> str:
    """The first direct message to a person."""
    return _("🔔 Here I will tell you about your trainings. `/notify` in the server changes that.")


def direct_refused() -> str:
    """Why that did not arrive, and what to do."""
    return _(
        "I could not send you a direct message. Allow them in this server's privacy settings, or choose another place: "
        "until then I mention you in the training's thread."
    )


def watch_reply(job: Job, preferences: Preferences, *, is_watching: bool) -> str:
    """What follows a press on [🔔]."""
    name = job_name(job)
    if not is_watching:
        return _("🔕 I no longer tell you about {job}. Press 🔔 again to change that.", job=name)
    told = [event_words(event) for event, place in preferences.places.items() if place is not NotifyPlace.NONE]
    if not told:
        return _("🔔 You follow {job}, but you chose to be told of nothing: `/notify` changes that.", job=name)
    return _(
        "🔔 You follow {job}. I will tell you about: {events}. `/notify` changes what I tell you and where.",
        job=name,
        events=" · ".join(told),
    )
