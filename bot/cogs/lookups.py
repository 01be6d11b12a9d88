"""Finds what an interaction is about: in its server only, and only what its member may act on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import discord

from bot.access import manages, server_of
from bot.cogs.services import Services
from bot.datasets import Dataset, may_see, require_change
from bot.errors import NoSuchDataset, NotFound, NotYourRequest
from bot.queue import Draft, Job, require_control
from bot.queue.domain.verbs import may_open, require_open
from bot.ui.job_card import unnamed
from trainer.protocol.run_options import JobKind
from trainer.protocol.text import _

#: Jobs that are searched for those that the member may open.
MAX_SEARCHED = 100


async def find_job(services: Services, interaction: discord.Interaction, typed: str) -> Job:
    """Return the job that a number (`42`, `#42`) or a name means.

    Raises:
        NotFound: This server has no such job, or the member may not open one of this name.
        PrivateTraining: The job of this number is of a private dataset that is not for the member.
    """
    number = typed.strip().removeprefix("#")
    if number.isascii() and number.isdigit() and len(number) < 19:
        return await job_here(services, interaction, int(number))
    # Samplings have the name of their training, which is what a name means.
    search = partial(services.jobs.search, server_of(interaction), storable(typed), limit=MAX_SEARCHED)
    found = openable(interaction, await search(kind=JobKind.TRAIN)) or openable(interaction, await search())
    if not found:
        raise NotFound(_("There is no job “{name}” here. /job list shows them all.", name=typed[:60]))
    return found[0]


def openable(interaction: discord.Interaction, jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs that the member may open."""
    can_manage = manages(interaction)
    return [job for job in jobs if may_open(job, user_id=interaction.user.id, can_manage=can_manage)]


def as_seen(interaction: discord.Interaction, jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs of a list, without the names of those that the member may not open."""
    return [job if openable(interaction, [job]) else unnamed(job) for job in jobs]


async def job_here(services: Services, interaction: discord.Interaction, job_id: int) -> Job:
    """Return a job of the interaction's server.

    Raises:
        NoSuchJob: The server has none of that number.
        PrivateTraining: It is of a private dataset that is not for the member.
    """
    job = await services.jobs.get_in(server_of(interaction), job_id)
    require_open(job, user_id=interaction.user.id, can_manage=manages(interaction))
    return job


async def dataset_here(services: Services, interaction: discord.Interaction, which: int | str) -> Dataset:
    """Return a dataset of the interaction's server by its number or name.

    Raises:
        NoSuchDataset: The server has none that the member may see.
    """
    if isinstance(which, int):
        dataset = await services.datasets.get_in(server_of(interaction), which)
    else:
        dataset = await services.datasets.named(server_of(interaction), storable(which))
    if not may_see(dataset, user_id=interaction.user.id, can_manage=manages(interaction)):
        raise NoSuchDataset(wanted=which)
    return dataset


def viewer_of(interaction: discord.Interaction) -> int | None:
    """The member whose private datasets a list shows; None for a manager, who sees all."""
    return None if manages(interaction) else interaction.user.id


async def own_dataset(services: Services, interaction: discord.Interaction, which: int | str) -> Dataset:
    """Return a dataset of the interaction's server that its member may change.

    Raises:
        NoSuchDataset: The server has none.
        NotYourDataset: It is another member's.
    """
    dataset = await dataset_here(services, interaction, which)
    can_manage = manages(interaction)
    require_change(dataset, user_id=interaction.user.id, can_manage=can_manage)
    return dataset


async def own_draft(services: Services, interaction: discord.Interaction, draft_id: int, *, dataset_id: int) -> Draft:
    """Return the member's own draft for a dataset of the interaction's server.

    Raises:
        DraftEnded: The server has no such draft for this dataset, or it has expired or was cancelled.
        NotYourRequest: It is another member's.
    """
    draft = await services.drafts.get_in(server_of(interaction), draft_id, dataset_id=dataset_id)
    if draft.owner_id != interaction.user.id:
        raise NotYourRequest(owner_id=draft.owner_id)
    return draft


def require_own(interaction: discord.Interaction, job: Job) -> None:
    """Require that the member may act on a job.

    Raises:
        NotAllowed: It is another member's job.
    """
    require_control(job, user_id=interaction.user.id, can_manage=manages(interaction))


# -- what a button names, for its handler -----------------------------------------------------------------------------


def of_job(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make the handler of a button about a job: it looks the job up for `run(services, interaction, job, …)`."""

    async def handle(services: Services, interaction: discord.Interaction, job_id: int, *arguments: str) -> None:
        await run(services, interaction, await job_here(services, interaction, job_id), *arguments)

    return handle


def of_dataset(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make the handler of a button about a dataset: `run(services, interaction, dataset, …)`."""

    async def handle(services: Services, interaction: discord.Interaction, dataset_id: int, *arguments: str) -> None:
        await run(services, interaction, await dataset_here(services, interaction, dataset_id), *arguments)

    return handle


def of_draft(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make the handler of a button about the member's own draft: `run(services, interaction, draft)`."""

    async def handle(services: Services, interaction: discord.Interaction, dataset_id: int, draft_id: str) -> None:
        draft = await own_draft(services, interaction, int(draft_id), dataset_id=dataset_id)
        await run(services, interaction, draft)

    return handle


def storable(text: str) -> str:
    """Typed text without what SQLite cannot store: half of a surrogate pair."""
    return text.encode(errors="ignore").decode()
