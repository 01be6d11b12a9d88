"""A request that waits for "Go on": its card, and how it becomes a job."""

from __future__ import annotations

import discord

from bot.cogs.members import allowance_of_member, require_hours
from bot.cogs.replies import reply
from bot.cogs.services import Services, standing_of
from bot.cogs.wishes import Wishes, make_spec
from bot.datasets import Dataset
from bot.errors import DarkroomError, DuplicateJob, NotYourRequest
from bot.queue import Allowance, Draft, NewJob, State
from bot.queue.domain.duplicates import fingerprint
from bot.queue.planning.estimates import Estimate
from bot.queue.store.limits import require_gpus, require_priority
from bot.ui.datasets import Shown, report_card
from bot.ui.duplicates import duplicate_notice
from bot.ui.layout import MessageContent
from bot.ui.receipts import receipt, said
from trainer.protocol.spec import Spec, SpecError


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
    spec, study, estimate = None, None, None
    if draft is not None:
        wishes = Wishes.from_json(draft.wishes)
        spec = await _spec(services, interaction, wishes, dataset)
        study = wishes.study_order
        estimate = await _estimate(services, wishes, spec, dataset)
    shown = Shown(
        dataset=dataset,
        report=await services.datasets.report(dataset),
        file_limit=interaction.filesize_limit,
        sheet=sheet,
        note=note,
        draft_id=None if draft is None else draft.id,
        spec=spec,
        study=study,
        estimate=estimate,
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


async def queue(
    services: Services, interaction: discord.Interaction, draft_id: int, *, may_repeat: bool = False
) -> MessageContent:
    """Queue the job of a draft for its owner, who acts, with all that was decided about its dataset; its receipt.

    Twice is one job. `may_repeat`: also where the same data and settings wait, run, or have succeeded.

    Raises:
        DraftEnded: it is older than a day, or was cancelled.
        DuplicateJob: there is such a job, and it may not be repeated; the draft goes on waiting.
        DarkroomError, SpecError: it cannot be queued; the draft goes on waiting.
    """
    draft = await services.drafts.get(draft_id)
    if draft.state is not State.DRAFT:
        job = await services.jobs.get(draft.id)
    else:
        job = await services.jobs.submit(await _new_job(services, interaction, draft, may_repeat=may_repeat))
    dataset = await services.datasets.get(job.dataset_id)
    standing = await standing_of(job, services, None)
    return receipt(job, standing, await services.datasets.report(dataset))


async def queue_at_once(services: Services, interaction: discord.Interaction, draft: Draft) -> None:
    """Queue the job of a draft that nobody is to confirm, and tell whoever acts; a duplicate waits for "Queue anyway".

    Raises:
        DarkroomError, SpecError: it cannot be queued; the draft is forgotten.
    """
    try:
        await reply(interaction, await queue(services, interaction, draft.id))
    except DuplicateJob as error:
        # The draft stays, for "Queue anyway".
        await reply(interaction, duplicate_notice(error, draft))
    except (DarkroomError, SpecError):
        # It was to go at once or not at all: it must not wait for a "Go on" that nobody is asked for.
        await services.drafts.cancel(draft.id, by=interaction.user.id)
        raise


async def _new_job(services: Services, interaction: discord.Interaction, draft: Draft, *, may_repeat: bool) -> NewJob:
    """The job of a draft, within what its owner may ask for at this moment."""
    wishes = Wishes.from_json(draft.wishes)
    allowance = await require_order(services, interaction, wishes)
    dataset = await services.datasets.apply(draft.dataset_id)
    spec = await _spec(services, interaction, wishes, dataset)
    study = wishes.study_order
    gpus = _gpus(wishes)
    estimate = await _estimate(services, wishes, spec, dataset)
    needed_h = None if estimate is None else gpus * estimate.seconds / 3600
    await require_hours(services, allowance, needed_h, guild_id=draft.guild_id, owner_id=draft.owner_id)
    if study is not None:
        await services.studies.check(spec, study)
    return NewJob(
        interaction_id=draft.interaction_id,
        guild_id=draft.guild_id,
        channel_id=draft.channel_id,
        owner_id=draft.owner_id,
        dataset_id=dataset.id,
        spec=spec,
        priority=wishes.order,
        gpus=gpus,
        run_after=wishes.run_after or 0.0,
        max_running=allowance.max_running,
        max_waiting=allowance.max_waiting,
        fingerprint=fingerprint(spec, (await services.datasets.report(dataset)).digest, study=study),
        may_repeat=may_repeat,
        estimate_s=None if estimate is None else estimate.seconds,
        study=wishes.study,
    )


def _gpus(wishes: Wishes) -> int:
    """Slots that it needs itself; a study leaves them to its runs."""
    return 0 if wishes.study is not None else wishes.gpus or 1


async def _estimate(services: Services, wishes: Wishes, spec: Spec, dataset: Dataset) -> Estimate | None:
    if wishes.study is not None:
        # Nobody can say: how many of its runs are ended early is what it finds out.
        return None
    return await services.estimates.of(spec, dataset.counts, _gpus(wishes))


async def _spec(services: Services, interaction: discord.Interaction, wishes: Wishes, dataset: Dataset) -> Spec:
    allowance = await allowance_of_member(services, interaction)
    return make_spec(
        wishes,
        services.config,
        dataset_name=dataset.name,
        folder=str(dataset.folder),
        max_epochs=allowance.max_epochs,
    )


async def require_order(services: Services, interaction: discord.Interaction, wishes: Wishes) -> Allowance:
    """What whoever acts may ask for, if their place in line and their GPUs are within it.

    Raises:
        JobRefused: more GPUs than there are, or a priority that is not theirs to ask for.
    """
    require_priority(wishes.order, can_manage=interaction.permissions.manage_guild)
    require_gpus(wishes.gpus or 1, sum(slot.is_enabled for slot in await services.jobs.slots.all()))
    return await allowance_of_member(services, interaction)


async def cancel(services: Services, draft: Draft) -> MessageContent:
    """Forget a draft that waits."""
    if await services.drafts.cancel(draft.id, by=draft.owner_id):
        return said("⬛ Cancelled; nothing was queued. The dataset is kept.")
    return said("This request was queued already. /job list shows it.")


def require_own(draft: Draft, user_id: int) -> None:
    """Nothing, if the draft is theirs.

    Raises:
        NotYourRequest: it is somebody else's.
    """
    if draft.owner_id != user_id:
        raise NotYourRequest(owner_id=draft.owner_id)
