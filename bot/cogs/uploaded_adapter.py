"""A LoRA from elsewhere that a member brings: downloaded, and its header checked before anything is queued."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import discord

from bot.cogs.services import Services
from bot.errors import JobFilesDeleted, JobRefused
from bot.queue import Job
from bot.queue.planning.retention import BROUGHT_FILES
from bot.runners.child_process import run_and_capture
from trainer.protocol.sampling import SampledFile
from trainer.protocol.text import _, current_language

_MIB = 1024 * 1024
#: Its name in the folder of the sampling.
ADAPTER_FILE = "adapter.safetensors"
#: Reads a header only; loading the libraries takes the most of it.
_CHECK_S, _CHECK_MEMORY = 60.0, 4096 * _MIB


@asynccontextmanager
async def received_adapter(
    services: Services, interaction: discord.Interaction, attachment: discord.Attachment
) -> AsyncIterator[str]:
    """Download a file into the folder of a job that the body queues; yields the folder's name.

    If the body raises, the folder is removed again.

    Raises:
        JobRefused: It is too large, no LoRA, or Discord does not give it.
    """
    most = services.config.sampling.max_file_mib * _MIB
    if not attachment.filename.lower().endswith(".safetensors"):
        raise JobRefused(
            _(
                "{file} is not a .safetensors file. Other kinds of files can run programs when they are opened, so I "
                "take no others. Nothing was queued.",
                file=attachment.filename,
            )
        )
    if attachment.size > most:
        raise _too_large(attachment, most)
    # Named by the interaction, which makes one job only: the job has no number yet.
    name = f"{BROUGHT_FILES}{interaction.id}"
    folder = services.jobs.folder(name)
    try:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        await _download(services, attachment, folder / ADAPTER_FILE, most)
        await _check(services, attachment, folder / ADAPTER_FILE)
        yield name
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        raise


@asynccontextmanager
async def copied_adapter(services: Services, interaction: discord.Interaction, job: Job) -> AsyncIterator[str]:
    """Give the file of a sampling to another one that the body queues; yields its folder, empty if it has no file.

    Raises:
        JobFilesDeleted: It is gone.
    """
    if not any(isinstance(model, SampledFile) for model in job.sampling.models):
        yield ""
        return
    source = services.jobs.job_dir(job) / ADAPTER_FILE
    name = f"{BROUGHT_FILES}{interaction.id}"
    folder = services.jobs.folder(name)
    try:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        try:
            # It never changes.
            await asyncio.to_thread(os.link, source, folder / ADAPTER_FILE)
        except OSError as error:
            raise JobFilesDeleted(job_id=job.id) from error
        yield name
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        raise


async def _download(services: Services, attachment: discord.Attachment, path: Path, most: int) -> None:
    free = (await asyncio.to_thread(shutil.disk_usage, path.parent)).free
    if free - attachment.size < services.config.health.min_free_bytes:
        raise JobRefused(_("The machine has no space for the file now. Nothing was queued; try again later."))
    count = 0
    with await asyncio.to_thread(path.open, "wb") as file:
        async for chunk in services.download(attachment):
            count += len(chunk)
            # Discord states a size; what arrives is counted.
            if count > most:
                raise _too_large(attachment, most)
            await asyncio.to_thread(file.write, chunk)


async def _check(services: Services, attachment: discord.Attachment, path: Path) -> None:
    """Let a confined trainer process read the header.

    Raises:
        JobRefused: It is no LoRA that can be drawn with; the trainer's sentence.
    """
    command = [*services.trainer_command, "adapter", str(path), f"--language={current_language()}"]
    try:
        child = await run_and_capture(
            command,
            services.config.confined_environment(),
            timeout_s=_CHECK_S,
            memory_bytes=_CHECK_MEMORY,
            is_confined=True,
        )
    except (TimeoutError, OSError) as error:
        raise JobRefused(
            _("{file} could not be checked ({why}). Nothing was queued.", file=attachment.filename, why=error)
        ) from error
    if child.status != 0:
        why = child.last_error_line or _("It is not a LoRA of a Stable Diffusion model.")
        raise JobRefused(_("I cannot draw with {file}: {why} Nothing was queued.", file=attachment.filename, why=why))


def _too_large(attachment: discord.Attachment, most: int) -> JobRefused:
    return JobRefused(
        _(
            "{file} is larger than {most} MiB, which is the most that is allowed here. Nothing was queued.",
            file=attachment.filename,
            most=most // _MIB,
        )
    )
