"""From Discord attachments to a dataset: download them, track the upload, and prepare it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace as replace_fields
from typing import Any

import aiohttp
import discord

from bot.access import manages, server_of
from bot.bot_failpoints import failpoint
from bot.cogs.interaction_gate import explain
from bot.cogs.page_links import page_message
from bot.cogs.replies import Acknowledgement, AnswerFailed, acknowledge, replace, reply
from bot.cogs.services import Services, allowance_of_member
from bot.datasets import (
    Dataset,
    ImportRequest,
    PendingUpload,
    Received,
    Upload,
    UploadKind,
    import_files,
    progress_reported,
)
from bot.datasets.dataset_files import copy_folder, temporary_folder
from bot.errors import DarkroomError, DatasetRefused, DatasetTooLarge, UploadClosed
from bot.ui.layout import MessageContent, text_message
from bot.ui.upload_posts import Unanswered, progress_words, upload_cancelled, upload_link
from bot.web import LinkKind
from trainer.protocol.progress import PrepareProgress
from trainer.protocol.spec import SpecError
from trainer.protocol.text import _

_CHUNK_BYTES = 256 * 1024
#: Between two chunks; the whole download may take as long as it needs.
_SILENCE_S = 30
#: For one line of progress: the next one is newer.
_PROGRESS_TIMEOUT_S = 10

log = logging.getLogger(__name__)


@asynccontextmanager
async def tracked_upload(
    services: Services,
    interaction: discord.Interaction,
    upload: PendingUpload,
) -> AsyncIterator[None]:
    """Track an upload, acknowledge its interaction, and run the body; errors are reported to the member and swallowed.

    The upload is stored first and removed once its member is answered. If the bot ends in between, its next start
    finishes the upload (`bot.scheduled.interrupted_uploads`). If Discord takes no answer, this bot gives it in the
    channel.

    Raises:
        AnswerFailed: The interaction came too late or twice; nothing was done.
    """
    if not await services.uploads.add(upload):
        raise AnswerFailed(Unanswered.REPEATED)
    failpoint("upload_recorded")
    try:
        await acknowledge(interaction, Acknowledgement.THINKING)
    except (AnswerFailed, discord.HTTPException):
        await services.uploads.remove(interaction.id)
        raise
    failpoint("upload_acknowledged")
    sentence = ""
    try:
        try:
            yield
        except AnswerFailed:
            raise
        except Exception as error:  # noqa: BLE001 - an edge to Discord: the upload is removed only once the member knows.
            sentence = explain(interaction, error)
            if isinstance(error, DatasetTooLarge) and await _offer_instead(services, interaction, sentence):
                return
            await reply(interaction, text_message(sentence))
    except AnswerFailed as failed:
        await services.finish_upload(interaction.id, failed.why, sentence)
        return
    failpoint("upload_answered")
    await services.uploads.remove(interaction.id)


async def offer_page(services: Services, interaction: discord.Interaction, upload: PendingUpload) -> None:
    """Acknowledge an interaction, and answer it with a link to the upload page in place of attachments.

    Raises:
        AnswerFailed: The interaction came too late or twice; nothing was done.
    """
    await acknowledge(interaction, Acknowledgement.THINKING)
    await services.datasets.require_share(interaction.user.id, datasets=int(upload.dataset_id is None), more_bytes=1)
    await services.uploads.add(replace_fields(upload, is_by_page=True, is_open=True))
    await show_upload_link(services, interaction, upload.interaction_id)


def upload_of(interaction: discord.Interaction, kind: UploadKind, title: str = "", **more: Any) -> PendingUpload:
    """Return the upload that an interaction asks for; `title`: of its files; `more`: its other fields."""
    return PendingUpload(
        interaction_id=interaction.id,
        guild_id=server_of(interaction),
        channel_id=interaction.channel_id or 0,
        owner_id=interaction.user.id,
        kind=kind,
        title=title,
        **more,
    )


async def _offer_instead(services: Services, interaction: discord.Interaction, sentence: str) -> bool:
    """Let an upload that is too large for attachments come by the page; False if there are no pages."""
    if not services.links.are_on:
        return False
    await services.uploads.expect_by_page(interaction.id)
    await show_upload_link(services, interaction, interaction.id, sentence)
    return True


async def show_upload_link(
    services: Services, interaction: discord.Interaction, upload_id: int, sentence: str = ""
) -> None:
    """Answer with a new link to the upload page; earlier ones of this upload end.

    Raises:
        UploadClosed: The member has no such upload that takes files.
    """
    upload = await services.uploads.find(upload_id)
    if upload is None or not upload.is_open or upload.owner_id != interaction.user.id:
        raise UploadClosed
    await services.links.revoke(LinkKind.UPLOAD, upload_id)
    url = await services.links.create(LinkKind.UPLOAD, upload_id, user_id=upload.owner_id, guild_id=upload.guild_id)
    if url is None:
        await reply(interaction, page_message(LinkKind.UPLOAD, None, days=0))
        return
    by_role = await services.limits.dataset_bytes_of_roles(
        upload.guild_id, {role.id for role in getattr(interaction.user, "roles", ())}
    )
    web = services.config.web
    limit_bytes = web.max_upload_bytes if by_role is None else min(by_role, web.max_upload_bytes)
    content = upload_link(upload_id, url, limit_bytes=limit_bytes, days=web.link_days, sentence=sentence)
    await reply(interaction, content)


async def cancel_page_upload(services: Services, interaction: discord.Interaction, upload_id: int) -> None:
    """Delete an upload by page with what has arrived; its link ends.

    Raises:
        UploadClosed: The member has no such upload that takes files.
    """
    upload = await services.uploads.find(upload_id)
    if upload is None or upload.owner_id != interaction.user.id:
        raise UploadClosed
    await services.resumable.cancel(upload)
    await services.links.revoke(LinkKind.UPLOAD, upload_id)
    await reply(interaction, upload_cancelled())


@asynccontextmanager
async def progress_shown(
    interaction: discord.Interaction, title: str, again: Callable[[], Awaitable[MessageContent]] | None = None
) -> AsyncIterator[None]:
    """Show in place of "… is thinking" how far the preparation in the body has come.

    A progress that Discord does not take is left out: the answer follows it.

    Args:
        interaction: Acknowledged, and not answered yet.
        title: What is prepared.
        again: Makes the message that a button was to replace, for when the body fails after progress was shown.
    """
    shown: list[PrepareProgress] = []

    async def show(progress: PrepareProgress) -> None:
        shown.append(progress)
        try:
            async with asyncio.timeout(_PROGRESS_TIMEOUT_S):
                await interaction.edit_original_response(view=text_message(progress_words(title, progress)).layout)
        except (discord.HTTPException, aiohttp.ClientError, OSError, TimeoutError) as error:
            log.info("interaction %s: the progress was not taken (%r)", interaction.id, error)

    try:
        with progress_reported(show):
            yield
    except (DarkroomError, SpecError):
        if shown and again is not None:
            with suppress(DarkroomError, SpecError):
                await replace(interaction, await again())
        raise


async def ingest_attachments(
    services: Services,
    interaction: discord.Interaction,
    attachments: Sequence[discord.Attachment],
    *,
    is_private: bool = False,
) -> Dataset:
    """Download attachments and prepare them; raises what `prepare_received` raises, and if they are too large."""
    received = await download_attachments(services, interaction, attachments)
    request = ImportRequest(can_manage=manages(interaction))
    return await prepare_received(services, interaction, received, request, is_private=is_private)


async def prepare_received(
    services: Services,
    interaction: discord.Interaction,
    received: Received,
    request: ImportRequest,
    *,
    is_private: bool,
) -> Dataset:
    """Prepare files as a dataset, with the progress shown; content that the server has already is that dataset.

    Raises:
        DatasetRefused: They cannot be trained on, or could not be prepared.
        NotYourDataset: They are another member's dataset already, and the request would change it.
    """
    async with progress_shown(interaction, received.title):
        dataset = await import_files(
            services.datasets,
            received,
            request,
            guild_id=server_of(interaction),
            owner_id=interaction.user.id,
            captions=services.config.captions,
            is_private=is_private,
        )
    failpoint("upload_prepared")
    return dataset


async def download_attachments(
    services: Services, interaction: discord.Interaction, attachments: Sequence[discord.Attachment]
) -> Received:
    """Download the attachments of a tracked upload, within the member's limit, without opening them.

    Raises:
        DatasetRefused: They are too large or empty, or the download failed.
    """
    max_bytes = (await allowance_of_member(services, interaction)).max_dataset_bytes
    # By the size that Discord states, before a byte is downloaded; the bytes that arrive are counted again.
    left = max_bytes
    for attachment in attachments:
        left -= attachment.size
        if left < 0:
            raise DatasetTooLarge(file_name=attachment.filename, max_bytes=max_bytes)
    uploads = [Upload(name=each.filename, chunks=services.download(each)) for each in attachments]
    received = await services.datasets.receive(uploads, max_bytes=max_bytes, owner_id=interaction.user.id)
    await services.uploads.mark_received(interaction.id, received)
    failpoint("upload_received")
    return received


async def copy_server_folder(services: Services, interaction: discord.Interaction, label: str) -> Received:
    """Copy a folder of this machine, as the upload of a tracked interaction.

    Raises:
        DatasetRefused: The member does not manage the server, or the folder is missing, too large, or unreadable.
    """
    config = services.config
    folder = config.datasets.folders.get(label)
    if not manages(interaction) or folder is None:
        raise DatasetRefused(_("I have no folder of that name for you. Choose one from the list."))
    await services.datasets.require_share(interaction.user.id, datasets=1, more_bytes=1)
    await services.datasets.require_disk()
    limits = {"max_files": config.web.max_upload_files, "max_bytes": config.web.max_upload_bytes}
    try:
        with temporary_folder(config.storage.data_dir / "incoming") as copies:
            paths = await asyncio.to_thread(copy_folder, folder, copies, **limits)
            received = await services.datasets.adopt(paths)
    except OSError as error:
        why = error.strerror or str(error)
        raise DatasetRefused(_("The folder {label} cannot be read ({why}).", label=label, why=why)) from error
    await services.uploads.mark_received(interaction.id, received)
    failpoint("upload_received")
    return received


async def stream_attachment(attachment: discord.Attachment) -> AsyncIterator[bytes]:
    """Download an attachment in chunks. At once: its address expires within a day.

    Raises:
        DatasetRefused: The download failed.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(attachment.url) as response,
        ):
            response.raise_for_status()
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _download_failed(attachment, error) from error


async def read_attachment(attachment: discord.Attachment) -> AsyncIterator[bytes]:
    """Read an attachment through discord.py's client, for a simulated Discord that has no addresses.

    Raises:
        DatasetRefused: The download failed.
    """
    try:
        yield await attachment.read()
    except discord.HTTPException as error:
        raise _download_failed(attachment, error) from error


def _download_failed(attachment: discord.Attachment, error: Exception) -> DatasetRefused:
    why = str(error) or type(error).__name__
    return DatasetRefused(
        _("Discord did not give me {file} ({why}). Nothing was queued; try again.", file=attachment.filename, why=why)
    )
