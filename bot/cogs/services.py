"""What commands and buttons may ask for: the bot's services, made by the composition root."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import discord

from bot.cogs.downloads import Download, streamed
from bot.config import Config
from bot.datasets import DatasetStore
from bot.queue import DraftStore, Job, JobStore
from bot.ui.card import Standing

#: Of a server without boosts, and of one that is not in the cache.
_DEFAULT_FILE_LIMIT = 10 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Services:
    """Beside the Discord client, and older than it: a client may come and go."""

    config: Config
    jobs: JobStore
    datasets: DatasetStore
    drafts: DraftStore
    download: Download = streamed


async def standing_of(job: Job, services: Services, client: discord.Client | None, marker: str = "") -> Standing:
    """What a message about a job needs beside the job, asked for now."""
    guild = client.get_guild(job.guild_id) if client else None
    return Standing(
        job_dir=services.jobs.job_dir(job.id),
        now=datetime.now(UTC),
        place=await services.jobs.place_in_line(job.id),
        file_limit=guild.filesize_limit if guild else _DEFAULT_FILE_LIMIT,
        marker=marker,
    )
