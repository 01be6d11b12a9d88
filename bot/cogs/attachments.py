"""From Discord attachments to a dataset: download them, track the upload, and prepare it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
import discord

from bot.bot_failpoints import failpoint
from bot.cogs.interaction_gate import explain
from bot.cogs.replies import Acknowledgement, AnswerFailed, acknowledge, reply
from bot.cogs.services import Services, allowance_of_member
from bot.datasets import Dataset, PendingUpload, Received, Upload, UploadKind, progress_told, title_of
from bot.errors import DatasetRefused, DatasetTooLarge
from bot.ui.layout import text_message
from bot.ui.upload_posts import Unanswered, progress_words
from trainer.protocol.progress import PrepareProgress
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
    attachments: Sequence[discord.Attachment],
    *,
    kind: UploadKind,
    request: str = "{}",
    is_at_once: bool = False,
    dataset_id: int | None = None,
) -> AsyncIterator[None]:
    """Track an upload, acknowledge its interaction, and run the body; errors are reported to the member and swallowed.

    The upload is stored first and removed once its member is answered. If the bot ends in between, its next start
    finishes the upload (`bot.scheduled.interrupted_uploads`). If Discord takes no answer, this bot gives it in the
    channel.

    Raises:
        AnswerFailed: The interaction came too late or twice; nothing was done.
    """
    assert interaction.guild_id is not None
    upload = PendingUpload(
        interaction_id=interaction.id,
        guild_id=interaction.guild_id,
        channel_id=interaction.channel_id or 0,
        owner_id=interaction.user.id,
        kind=kind,
        request=request,
        is_at_once=is_at_once,
        dataset_id=dataset_id,
        title=title_of([each.filename for each in attachments]),
    )
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
            await reply(interaction, text_message(sentence))
    except AnswerFailed as failed:
        await services.finish_upload(interaction.id, failed.why, sentence)
        return
    failpoint("upload_answered")
    await services.uploads.remove(interaction.id)


@asynccontextmanager
async def progress_shown(interaction: discord.Interaction, title: str) -> AsyncIterator[None]:
    """Show in place of "… is thinking" how far the preparation in the body has come.

    A progress that Discord does not take is left out: the answer follows it.
    """

    async def show(progress: PrepareProgress) -> None:
        try:
            async with asyncio.timeout(_PROGRESS_TIMEOUT_S):
                await interaction.edit_original_response(view=text_message(progress_words(title, progress)).layout)
        except (discord.HTTPException, aiohttp.ClientError, OSError, TimeoutError) as error:
            log.info("interaction %s: the progress was not taken (%r)", interaction.id, error)

    with progress_told(show):
        yield


async def ingest_attachments(
    services: Services, interaction: discord.Interaction, attachments: Sequence[discord.Attachment]
) -> Dataset:
    """Download attachments and prepare them; content that the server has already is that dataset.

    Raises:
        DatasetRefused: They are too large, cannot be trained on, or could not be prepared.
    """
    assert interaction.guild_id is not None
    received = await download_attachments(services, interaction, attachments)
    async with progress_shown(interaction, received.title):
        dataset = await services.datasets.prepare(received, guild_id=interaction.guild_id, owner_id=interaction.user.id)
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
