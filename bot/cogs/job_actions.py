"""What members do with a job, by command or button: each use is authorized, and asking twice changes nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace as replace_fields
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path

import discord
from discord.ext import commands

from bot.access import Ability, manages
from bot.cogs.interaction_gate import PAGES, REPORTS, ButtonHandler
from bot.cogs.lookups import job_here
from bot.cogs.notify_command import watch
from bot.cogs.replies import Acknowledgement, AnswerFailed, announce, remove_message, replace, reply
from bot.cogs.services import Services, allowance_of_member, context_of, require_hours
from bot.errors import CheckpointsDeleted, JobFilesDeleted, StaleButton, TooManyEpochs
from bot.queue import Job, NewJob, State, StopIntent, require_control
from bot.queue.domain.job import fingerprint
from bot.queue.domain.verbs import Verb, is_applicable
from bot.queue.planning.retention import has_checkpoint
from bot.ui.job_posts import card_message, files_reply
from bot.ui.job_replies import (
    CANCEL_NOW,
    compare_reply,
    details_reply,
    log_reply,
    no_samples,
    note_reply,
    receipt,
    samples_reply,
    shared_post,
    spent_s,
    stop_question,
    verb_reply,
)
from bot.ui.layout import MessageContent, text_message
from bot.ui.queue_pages import MAX_LISTED, QUEUE_PAGE, BoardSnapshot, history_page, queue_board
from bot.ui.remedies import RETRY_PIXELS, RETRY_RATE, smaller_side
from trainer.exchange.job_dir import log_tail
from trainer.protocol.events import Sampled
from trainer.protocol.spec import Spec, at_resolution, extended, with_rates_divided
from trainer.protocol.text import _

_STOP_INTENTS = {
    Verb.CANCEL: StopIntent.CANCEL,
    Verb.KEEP_BEST: StopIntent.KEEP_BEST,
    Verb.PAUSE: StopIntent.PAUSE,
}
#: Status and Discord's code of a request that is too large.
_TOO_LARGE, _ENTITY_TOO_LARGE = 413, 40005


#: Cancelling a training asks once if it has trained for longer.
_ASK_AFTER_S = 600.0


async def perform(
    services: Services, interaction: discord.Interaction, job: Job, verb: Verb, *, is_sure: bool = False
) -> None:
    """Apply `verb` to a job on behalf of a member, and answer with the result; `is_sure`: they were asked already.

    Raises:
        NotAllowed: It is another member's job.
        JobRefused: It cannot be queued again, or the member has no room or no GPU hours left.
        NoSuchJob: It was deleted.
    """
    user_id = interaction.user.id
    require_control(job, user_id=user_id, can_manage=manages(interaction), verb=verb.words)
    if verb is Verb.SHARE and not job.is_shared:
        await _share(services, interaction, job)
        return
    now = datetime.now(UTC)
    if verb is Verb.CANCEL and not is_sure and is_applicable(verb, job) and spent_s(job, now) > _ASK_AFTER_S:
        await reply(interaction, stop_question(job, now))
        return
    if verb is Verb.RETRY:
        after = await _retry(services, interaction, job)
    else:
        after = await _change(services, job, verb, user_id)
    position = await services.jobs.queue_position(job.id)
    await reply(interaction, text_message(verb_reply(verb, job, after, position)))


async def extend(services: Services, interaction: discord.Interaction, job: Job, epochs: int) -> None:
    """Give a finished job more epochs on behalf of a member, and answer with the result.

    Raises:
        NotAllowed: It is another member's job.
        JobRefused: Its files are gone, or the member has no room, no epochs or no GPU hours left for it.
        NoSuchDataset: Its dataset was deleted.
        SpecError: A training cannot have so many epochs.
    """
    can_manage = manages(interaction)
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=Verb.EXTEND.words)
    if job.are_files_deleted:
        raise JobFilesDeleted(job_id=job.id)
    if not is_applicable(Verb.EXTEND, job):
        await reply(interaction, text_message(verb_reply(Verb.EXTEND, job, job)))
        return
    if not await asyncio.to_thread(has_checkpoint, services.jobs.job_dir(job)):
        raise CheckpointsDeleted(job_id=job.id)
    after = await _extend(services, interaction, job, epochs)
    position = await services.jobs.queue_position(job.id)
    await reply(interaction, text_message(verb_reply(Verb.EXTEND, job, after, position)))


async def _extend(services: Services, interaction: discord.Interaction, job: Job, epochs: int) -> Job:
    allowance = await allowance_of_member(services, interaction)
    spec = extended(job.spec, trained=job.progress.kept_epoch, epochs=epochs)
    if spec.training.epochs > allowance.max_epochs:
        raise TooManyEpochs(epochs=spec.training.epochs, allowed=allowance.max_epochs)
    dataset = await services.datasets.get(job.dataset_id)
    estimate = await services.estimates.of(spec, dataset.counts, job.gpus)
    seconds = None if estimate is None else estimate.seconds
    needed_h = None if seconds is None else job.gpus * seconds * epochs / spec.training.epochs / 3600
    await require_hours(services, allowance, needed_h, guild_id=job.guild_id, owner_id=job.owner_id)
    return await services.jobs.extend(
        job,
        spec,
        fingerprint=None if spec.mix else fingerprint(spec, dataset.digest),
        estimate_s=seconds,
        by=interaction.user.id,
        max_waiting=allowance.max_waiting,
    )


async def continue_training(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """[Continue] after an early stop: train the epochs that were planned and not trained.

    Raises:
        NotAllowed, JobRefused, NoSuchDataset: As `extend`.
    """
    left = job.spec.training.epochs - job.progress.kept_epoch
    await extend(services, interaction, job, left if left > 0 else max(1, job.spec.early_stopping.patience))


async def retry_with(services: Services, interaction: discord.Interaction, job: Job, spec: Spec) -> None:
    """Queue a training again with other settings, as a new job, and answer with its receipt.

    Raises:
        NotAllowed: It is another member's job.
        JobRefused: The member has no room or no GPU hours left, or such a job exists.
        NoSuchDataset: Its dataset was deleted.
    """
    can_manage = manages(interaction)
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=Verb.RETRY.words)
    allowance = await allowance_of_member(services, interaction)
    if spec.training.epochs > allowance.max_epochs:
        raise TooManyEpochs(epochs=spec.training.epochs, allowed=allowance.max_epochs)
    dataset = await services.datasets.get(job.dataset_id)
    estimate = await services.estimates.of(spec, dataset.counts, job.gpus)
    seconds = None if estimate is None else estimate.seconds
    needed_h = None if seconds is None else job.gpus * seconds / 3600
    await require_hours(services, allowance, needed_h, guild_id=job.guild_id, owner_id=interaction.user.id)
    new = NewJob(
        interaction_id=interaction.id,
        guild_id=job.guild_id,
        channel_id=job.channel_id,
        owner_id=interaction.user.id,
        dataset_id=job.dataset_id,
        spec=spec,
        gpus=job.gpus,
        max_running=allowance.max_running,
        max_waiting=allowance.max_waiting,
        # Of a mix the digests are not at hand; only a duplicate would be found by it.
        fingerprint=None if spec.mix else fingerprint(spec, dataset.digest),
        estimate_s=seconds,
    )
    queued = await services.jobs.submit(new)
    report = await services.datasets.report(dataset)
    await reply(interaction, receipt(queued, await context_of(services, queued, interaction.client), report))


async def _retry(services: Services, interaction: discord.Interaction, job: Job) -> Job:
    # Of the member who acts: a manager may retry for a member whose own line is full.
    allowance = await allowance_of_member(services, interaction)
    # For any other job the answer is its state, not that the week's hours are used up.
    if is_applicable(Verb.RETRY, job):
        needed_h = await services.limits.needed_h(job.id)
        await require_hours(
            services,
            allowance,
            needed_h,
            guild_id=job.guild_id,
            owner_id=job.owner_id,
            is_study=job.study is not None,
        )
    return await services.jobs.retry(job.id, by=interaction.user.id, max_waiting=allowance.max_waiting)


async def _change(services: Services, job: Job, verb: Verb, user_id: int) -> Job:
    jobs = services.jobs
    match verb:
        case Verb.CANCEL | Verb.KEEP_BEST | Verb.PAUSE:
            return await jobs.request_stop(job.id, by=user_id, intent=_STOP_INTENTS[verb])
        case Verb.RESUME:
            return await jobs.resume(job.id, by=user_id)
        case Verb.PIN | Verb.UNPIN if job.is_pinned is not (verb is Verb.PIN):
            return await jobs.pin(job.id, by=user_id, is_pinned=verb is Verb.PIN)
        case Verb.UNSHARE if job.is_shared:
            return await jobs.share(job.id, by=user_id, is_shared=False)
        case _:
            return job


async def _share(services: Services, interaction: discord.Interaction, job: Job) -> None:
    context = await context_of(services, job, interaction.client)
    content = shared_post(job, context, await _newest_samples(services, job))
    if content is None:
        await reply(interaction, no_samples(job))
        return
    # Marked first: retention must not delete the files of images that people see.
    await services.jobs.share(job.id, by=interaction.user.id)
    try:
        await announce(interaction, content)
    except (AnswerFailed, discord.HTTPException):
        await services.jobs.share(job.id, by=interaction.user.id, is_shared=False)
        raise


async def _unshare_message(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """[Unshare] below a shared image: remove the mark and the message.

    Raises:
        NotAllowed: It is another member's job.
    """
    can_manage = manages(interaction)
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=Verb.UNSHARE)
    if job.is_shared:
        await services.jobs.share(job.id, by=interaction.user.id, is_shared=False)
    await remove_message(interaction)


async def hand_over_files(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Answer with the files of a finished job.

    Raises:
        JobFilesDeleted: There are none any more.
    """
    if job.are_files_deleted:
        raise JobFilesDeleted(job_id=job.id)
    events = await services.jobs.events(job.id)
    context = await context_of(services, job, interaction.client)
    context = replace_fields(context, file_limit=interaction.filesize_limit)
    for content in files_reply(job, context, events):
        try:
            await reply(interaction, content)
        except discord.HTTPException as error:
            if error.status != _TOO_LARGE and error.code != _ENTITY_TOO_LARGE:
                raise
            # Whatever the limit was said to be: where they lie.
            for places in files_reply(job, replace_fields(context, file_limit=-1), events):
                await reply(interaction, places)
            return


async def _newest_samples(services: Services, job: Job) -> Sampled | None:
    events = await services.jobs.events(job.id)
    return next((event for event in reversed(events) if isinstance(event, Sampled)), None)


async def _open(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    await reply(interaction, card_message(job, await context_of(services, job, interaction.client)))


async def _refresh(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    await replace(interaction, card_message(job, await context_of(services, job, interaction.client)))


async def _show_samples(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    context = await context_of(services, job, interaction.client)
    await reply(interaction, samples_reply(job, context, await _newest_samples(services, job)))


async def _files(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await hand_over_files(services, interaction, await job_here(services, interaction, job_id))


async def _unshare(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await _unshare_message(services, interaction, await job_here(services, interaction, job_id))


async def _perform(verb: Verb, interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await perform(services, interaction, await job_here(services, interaction, job_id), verb)


async def _cancel_now(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    await perform(services, interaction, job, Verb.CANCEL, is_sure=True)


async def _ask_stop(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    can_manage = manages(interaction)
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=Verb.KEEP_BEST.words)
    await reply(interaction, stop_question(job, datetime.now(UTC)))


async def _details(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    await reply(interaction, details_reply(job, await context_of(services, job, interaction.client)))


async def _log(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await show_log(services, interaction, await job_here(services, interaction, job_id))


async def show_log(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Answer with the end of a trainer's log, without the paths of the machine."""
    if job.are_files_deleted:
        raise JobFilesDeleted(job_id=job.id)
    job_dir = services.jobs.job_dir(job)
    hidden = (str(job_dir), str(services.config.storage.data_dir.absolute()), str(Path.home()))
    tail = await asyncio.to_thread(log_tail, job_dir, hide=hidden)
    await reply(interaction, log_reply(job, tail))


async def write_note(services: Services, interaction: discord.Interaction, job: Job, text: str) -> None:
    """Write a note on a job on behalf of a member.

    Raises:
        NotAllowed: It is another member's job.
    """
    can_manage = manages(interaction)
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=_("write a note on"))
    after = await services.jobs.write_note(job.id, text.strip(), by=interaction.user.id)
    await reply(interaction, text_message(note_reply(after)))


async def _history(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await show_history(services, interaction, await job_here(services, interaction, job_id))


async def show_history(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Answer with each start of a job, and who changed what."""
    attempts = await services.jobs.attempt_history(job.id)
    entries = await services.jobs.audit(guild_id=job.guild_id, job_id=job.id)
    await reply(interaction, history_page(job, attempts, entries))


async def board(services: Services, interaction: discord.Interaction, page: int = 0) -> MessageContent:
    """Make a page of the queue of a server, as it is now."""
    assert interaction.guild_id is not None
    jobs = services.jobs
    counts = await jobs.count_living(interaction.guild_id)
    # The queue may have become shorter since the button was made.
    page = min(page, max(0, counts.get(State.QUEUED, 0) - 1) // MAX_LISTED)
    shown = await jobs.living(interaction.guild_id, most=MAX_LISTED, skip=page * MAX_LISTED)
    studies = [job.id for job in shown if job.study is not None and job.state.is_active]
    runs = {study: [run for run in await jobs.studies.children(study) if not run.state.is_end] for study in studies}
    positions = await jobs.queue_positions([job.id for job in (*shown, *chain.from_iterable(runs.values()))])
    snapshot = BoardSnapshot(
        now=datetime.now(UTC),
        jobs=shown,
        counts=counts,
        runs=runs,
        page=page,
        positions=positions,
        forecasts=await services.forecaster.all(),
        slots=await jobs.slots.all(with_unused=True),
        queue_pause=await jobs.control.read(),
        why_closed=services.why_closed(),
    )
    return queue_board(snapshot)


async def _show_board(interaction: discord.Interaction, services: Services, page: int) -> None:
    await replace(interaction, await board(services, interaction, page))


async def _compare(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    events = await services.jobs.events(job.id)
    context = await context_of(services, job, interaction.client)
    await reply(interaction, compare_reply(job, context, [event for event in events if isinstance(event, Sampled)]))


async def _continue(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await continue_training(services, interaction, await job_here(services, interaction, job_id))


async def _retry_rate(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    await retry_with(services, interaction, job, with_rates_divided(job.spec, 3))


async def _retry_pixels(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    side = smaller_side(job)
    if side is None:
        raise StaleButton
    await retry_with(services, interaction, job, at_resolution(job.spec, side))


def _verb_handler(verb: Verb) -> ButtonHandler:
    # A shared image is itself the first answer.
    how = Acknowledgement.NONE if verb is Verb.SHARE else Acknowledgement.THINKING
    return ButtonHandler(run=partial(_perform, verb), acknowledgement=how, ability=_NEEDED.get(verb))


_NEEDED = {Verb.RETRY: Ability.TRAIN, Verb.SHARE: Ability.SHARE}


HANDLERS: Mapping[str, ButtonHandler] = {
    # An extension needs a number, which a button cannot ask for.
    **{verb: _verb_handler(verb) for verb in Verb if verb is not Verb.EXTEND},
    CANCEL_NOW: ButtonHandler(run=_cancel_now),
    "stop": ButtonHandler(run=_ask_stop, rate=PAGES),
    "continue": ButtonHandler(run=_continue, ability=Ability.TRAIN),
    RETRY_RATE: ButtonHandler(run=_retry_rate, ability=Ability.TRAIN),
    RETRY_PIXELS: ButtonHandler(run=_retry_pixels, ability=Ability.TRAIN),
    "watch": ButtonHandler(run=watch, rate=PAGES),
    "details": ButtonHandler(run=_details, rate=PAGES),
    "log": ButtonHandler(run=_log, rate=PAGES),
    "history": ButtonHandler(run=_history, rate=PAGES),
    # The number of these is that of a page.
    QUEUE_PAGE: ButtonHandler(run=_show_board, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
    "compare": ButtonHandler(run=_compare, rate=PAGES),
    "open": ButtonHandler(run=_open, rate=PAGES),
    "refresh": ButtonHandler(run=_refresh, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
    "samples": ButtonHandler(run=_show_samples, rate=PAGES),
    "files": ButtonHandler(run=_files, rate=REPORTS),
    Verb.UNSHARE: ButtonHandler(run=_unshare, acknowledgement=Acknowledgement.UPDATE),
}


class JobButtons(commands.Cog):
    """Presses on the buttons of job cards and posts, including those that an earlier bot made."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @commands.Cog.listener()
    async def on_job_button(self, interaction: discord.Interaction, job_id: int, verb: str) -> None:
        await self._services.gate.press(interaction, HANDLERS, verb, "", self._services, job_id)
