"""Makes the messages of notifications: each from the state that its job has when it is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import discord

from bot.cogs.services import Services, context_of
from bot.cogs.sharing import post_context
from bot.outbox import MessageForm, Notification, NotificationKind
from bot.queue import Job
from bot.ui.admin_news import news_post
from bot.ui.gallery_pages import gallery_post_message, smaller
from bot.ui.help_pages import welcome_post
from bot.ui.job_context import JobContext
from bot.ui.job_posts import card_message, notification_message, undelivered_post
from bot.ui.layout import MessageContent, mentioning, stacked, text_form, without_pictures
from bot.ui.notify_pages import direct_post, job_link, thread_linked
from bot.ui.sample_pages import drawn_post
from bot.ui.upload_posts import upload_answered_card, upload_card, upload_post
from trainer.protocol.text import _, speak

#: Messages that are edited.
_EDITED = frozenset({NotificationKind.CARD, NotificationKind.LATEST, NotificationKind.GALLERY, NotificationKind.UPLOAD})
#: Largest file in a smaller form of a message, bytes.
_FILE_LIMITS = {MessageForm.SMALL_FILES: 1024 * 1024, MessageForm.NO_FILES: -1, MessageForm.TEXT: -1}


class MessageRenderer:
    """Renders notifications for the sender, in the language of who reads them."""

    def __init__(self, services: Services, client: Callable[[], discord.Client | None]) -> None:
        self._services = services
        self._client = client

    async def name_thread(self, job_id: int) -> str:
        """Return the name of a job's thread."""
        job = await self._services.jobs.get(job_id)
        return f"#{job.id} {job.name}"

    async def render(self, notification: Notification, form: MessageForm) -> MessageContent:
        """Make the message of a notification from the current state of its job."""
        content = await self._in_full(notification, file_limit=_FILE_LIMITS.get(form))
        if form is not MessageForm.TEXT:
            return content
        job_id = notification.job_id
        hint = _("`/job status id:{job}` shows it, `/job files id:{job}` its files.", job=job_id) if job_id else ""
        text = text_form(content, hint)
        # A card is edited, and Discord turns no message without a layout into one that has one.
        return replace(text, text="") if notification.kind in _EDITED else text

    async def _in_full(self, notification: Notification, *, file_limit: int | None) -> MessageContent:
        job = await self._services.jobs.get(notification.job_id) if notification.job_id else None
        # Each channel's messages are rendered in a task of its own.
        speak(self._language_of(notification, job))
        if notification.kind is NotificationKind.NEWS:
            return news_post(notification)
        if notification.kind is NotificationKind.WELCOME:
            return welcome_post()
        if notification.kind is NotificationKind.UPLOAD:
            return await self._upload_card(notification.post_id)
        if notification.kind is NotificationKind.ANSWER:
            return upload_post(notification)
        if notification.kind is NotificationKind.UNDELIVERED:
            return undelivered_post(notification, job)
        assert job is not None
        if notification.kind is NotificationKind.GALLERY:
            post = await self._services.jobs.gallery.get(notification.post_id)
            assert post is not None
            shown = await post_context(self._services, post, self._client())
            return gallery_post_message(smaller(shown, file_limit))
        if notification.is_direct:
            return direct_post(notification, job, await self._services.outbox.cards.of(job.id))
        content = await self._of_job(notification, job, file_limit)
        if not job.hides_pictures:
            return content
        return without_pictures(
            content,
            _(
                "🔒 It is made from a private dataset: `/job status id:{job}` and `/job files id:{job}` show its "
                "pictures to those who may see them.",
                job=job.id,
            ),
        )

    async def _of_job(self, notification: Notification, job: Job, file_limit: int | None) -> MessageContent:
        """Make a message about a job for its channel or thread."""
        context = await context_of(self._services, job, self._client())
        if file_limit is not None:
            context = replace(context, file_limit=min(file_limit, context.file_limit))
        if notification.kind is NotificationKind.CARD:
            card = await self._services.outbox.cards.of(job.id)
            return thread_linked(card_message(job, context), card)
        if notification.kind is NotificationKind.LATEST:
            return stacked([await self._news(part, job, context) for part in notification.parts])
        if notification.kind is NotificationKind.DRAWN:
            content = drawn_post(job, job_link(job, await self._services.outbox.cards.of(job.id)))
        else:
            content = await self._news(notification, job, context)
        return mentioning(content, notification.mentions, is_quiet=notification.is_quiet)

    async def _upload_card(self, interaction_id: int) -> MessageContent:
        upload = await self._services.uploads.find(interaction_id)
        if upload is None:
            # Answered meanwhile: this message is deleted next.
            return upload_answered_card()
        speak(self._services.languages.of_server(upload.guild_id))
        return upload_card(upload, await self._services.resumable.arrived(upload))

    def _language_of(self, notification: Notification, job: Job | None) -> str:
        languages = self._services.languages
        if notification.is_direct and not notification.is_returned:
            return languages.of_person(notification.mentions[0])
        return languages.of_server(job.guild_id if job else notification.guild_id)

    async def _news(self, notification: Notification, job: Job, context: JobContext) -> MessageContent:
        """Make the message of news of a job; a post is about the attempt that caused it."""
        return notification_message(
            notification,
            replace(job, attempt=notification.attempt or job.attempt),
            context,
            events=await self._services.jobs.events_of(notification),
            reason=await self._services.jobs.end_reason_of(notification),
        )
