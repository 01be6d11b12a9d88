"""A request that waits for "Go on": its card, and how it becomes a job."""

from __future__ import annotations

import discord

from bot.cogs.services import Services
from bot.cogs.wishes import Wishes, make_spec
from bot.datasets import Dataset
from bot.errors import NotYourRequest
from bot.queue import Draft, NewJob
from bot.ui.datasets import Shown, report_card
from bot.ui.layout import MessageContent
from bot.ui.receipts import receipt, said


async def dataset_card(
    services: Services,
    interaction: discord.Interaction,
    dataset: Dataset,
    *,
    sheet: int = 0,
    draft: Draft | None = None,
    note: str = "",
) -> MessageContent:
    """The report card of a dataset, with the request that waits for it if there is one."""
    spec = None
    if draft is not None:
        wishes = Wishes.from_json(draft.wishes)
        spec = make_spec(wishes, services.config, dataset_name=dataset.name, folder=str(dataset.folder))
    shown = Shown(
        dataset=dataset,
        report=await services.datasets.report(dataset),
        file_limit=interaction.filesize_limit,
        sheet=sheet,
        note=note,
        draft_id=None if draft is None else draft.id,
        spec=spec,
    )
    return report_card(shown)


async def draft_card(
    services: Services, interaction: discord.Interaction, draft: Draft, *, sheet: int = 0, note: str = ""
) -> MessageContent:
    """What a request would train on, and the question whether to go on.

    Raises:
        NoSuchDataset: the dataset was deleted.
    """
    dataset = await services.datasets.get(draft.dataset_id)
    return await dataset_card(services, interaction, dataset, sheet=sheet, draft=draft, note=note)


async def queue(services: Services, draft_id: int) -> MessageContent:
    """Queue the job of a draft, with all that was decided about its dataset; its receipt. Twice is one job.

    Raises:
        DraftEnded: it is older than a day, or was cancelled.
        DarkroomError, SpecError: it cannot be queued; the draft goes on waiting.
    """
    draft = await services.drafts.go(draft_id)
    try:
        dataset = await services.datasets.apply(draft.dataset_id)
        wishes = Wishes.from_json(draft.wishes)
        spec = make_spec(wishes, services.config, dataset_name=dataset.name, folder=str(dataset.folder))
        job = await services.jobs.submit(
            NewJob(
                interaction_id=draft.interaction_id,
                guild_id=draft.guild_id,
                channel_id=draft.channel_id,
                owner_id=draft.owner_id,
                dataset_id=dataset.id,
                spec=spec,
            )
        )
    except BaseException:
        await services.drafts.stay(draft_id)
        raise
    place = await services.jobs.place_in_line(job.id)
    return receipt(job, place, await services.datasets.report(dataset))


async def cancel(services: Services, draft: Draft) -> MessageContent:
    """Forget a draft that waits."""
    if await services.drafts.cancel(draft.id):
        return said("⬛ Cancelled; nothing was queued. The dataset is kept.")
    return said("This request was queued already. /job list shows it.")


def require_own(draft: Draft, user_id: int) -> None:
    """Nothing, if the draft is theirs.

    Raises:
        NotYourRequest: it is somebody else's.
    """
    if draft.owner_id != user_id:
        raise NotYourRequest(owner_id=draft.owner_id)
