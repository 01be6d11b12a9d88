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

from bot.access import Ability, server_of
from bot.cogs import sample_command
from bot.cogs.interaction_gate import PAGES, REPORTS, ButtonHandler
from bot.cogs.lookups import as_seen, of_job, require_own
from bot.cogs.next_steps import NEXT_STEPS
from bot.cogs.notify_command import watch
from bot.cogs.page_links import show_page
from bot.cogs.replies import Acknowledgement, replace, reply
from bot.cogs.services import Services, allowance_of_member, context_of, require_hours
from bot.cogs.sharing import share_samples
from bot.errors import JobFilesDeleted
from bot.queue import Job, State, StopIntent
from bot.queue.domain.verbs import Verb, is_applicable
from bot.ui.gallery_pages import unshared_text
from bot.ui.job_posts import card_message, files_reply
from bot.ui.job_replies import (
    CANCEL_NOW,
    compare_reply,
    details_reply,
    log_reply,
    note_reply,
    samples_reply,
    spent_s,
    stop_question,
    verb_reply,
)
from bot.ui.layout import MessageContent, text_message
from bot.ui.queue_pages import MAX_LISTED, QUEUE_PAGE, BoardSnapshot, history_page, queue_board
from bot.ui.sample_pages import DRAW_AGAIN
from bot.web import LinkKind
from trainer.exchange.job_dir import log_tail
from trainer.protocol.events import Sampled, all_of, last_of

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
    require_own(interaction, job)
    if verb is Verb.SHARE:
        await share_samples(services, interaction, job)
        return
    if verb is Verb.UNSHARE:
        posts = await services.jobs.gallery.withdraw_all(job, by=user_id)
        await reply(interaction, text_message(unshared_text(len(posts)) if posts else verb_reply(verb, job, job)))
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
        case _:
            return job


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
            for content in files_reply(job, replace_fields(context, file_limit=-1), events):
                await reply(interaction, content)
            break
    if context.has_pages:
        await show_page(services, interaction, LinkKind.JOB, job.id)


@of_job
async def _open(services: Services, interaction: discord.Interaction, job: Job) -> None:
    await reply(interaction, card_message(job, await context_of(services, job, interaction.client)))


@of_job
async def _refresh(services: Services, interaction: discord.Interaction, job: Job) -> None:
    await replace(interaction, card_message(job, await context_of(services, job, interaction.client)))


@of_job
async def _show_samples(services: Services, interaction: discord.Interaction, job: Job) -> None:
    context = await context_of(services, job, interaction.client)
    await reply(interaction, samples_reply(job, context, last_of(await services.jobs.events(job.id), Sampled)))


async def ask_how_to_stop(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Answer with the ways to stop a job, and what each keeps.

    Raises:
        NotAllowed: It is another member's job.
    """
    require_own(interaction, job)
    await reply(interaction, stop_question(job, datetime.now(UTC)))


@of_job
async def _open_page(services: Services, interaction: discord.Interaction, job: Job) -> None:
    await show_page(services, interaction, LinkKind.JOB, job.id)


@of_job
async def _details(services: Services, interaction: discord.Interaction, job: Job) -> None:
    await reply(interaction, details_reply(job, await context_of(services, job, interaction.client)))


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
    require_own(interaction, job)
    after = await services.jobs.write_note(job.id, text.strip(), by=interaction.user.id)
    await reply(interaction, text_message(note_reply(after)))


async def show_history(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Answer with each start of a job, and who changed what."""
    attempts = await services.jobs.attempt_history(job.id)
    entries = await services.jobs.audit(guild_id=job.guild_id, job_id=job.id)
    await reply(interaction, history_page(job, attempts, entries))


async def board(services: Services, interaction: discord.Interaction, page: int = 0) -> MessageContent:
    """Make a page of the queue of a server, as it is now."""
    jobs = services.jobs
    counts = await jobs.count_living(server_of(interaction))
    # The queue may have become shorter since the button was made.
    page = min(page, max(0, counts.get(State.QUEUED, 0) - 1) // MAX_LISTED)
    shown = await jobs.living(server_of(interaction), most=MAX_LISTED, skip=page * MAX_LISTED)
    studies = [job.id for job in shown if job.study is not None and job.state.is_active]
    runs = {
        study: as_seen(interaction, [run for run in await jobs.studies.children(study) if not run.state.is_end])
        for study in studies
    }
    positions = await jobs.queue_positions([job.id for job in (*shown, *chain.from_iterable(runs.values()))])
    snapshot = BoardSnapshot(
        now=datetime.now(UTC),
        jobs=as_seen(interaction, shown),
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


async def _show_board(services: Services, interaction: discord.Interaction, page: int) -> None:
    await replace(interaction, await board(services, interaction, page))


@of_job
async def _compare(services: Services, interaction: discord.Interaction, job: Job) -> None:
    events = await services.jobs.events(job.id)
    context = await context_of(services, job, interaction.client)
    await reply(interaction, compare_reply(job, context, all_of(events, Sampled)))


_NEEDED = {Verb.RETRY: Ability.TRAIN, Verb.SHARE: Ability.SHARE}


HANDLERS: Mapping[str, ButtonHandler] = {
    **NEXT_STEPS,
    # An extension needs a number, which a button cannot ask for.
    **{
        verb: ButtonHandler(run=of_job(partial(perform, verb=verb)), ability=_NEEDED.get(verb))
        for verb in Verb
        if verb is not Verb.EXTEND
    },
    CANCEL_NOW: ButtonHandler(run=of_job(partial(perform, verb=Verb.CANCEL, is_sure=True))),
    "stop": ButtonHandler(run=of_job(ask_how_to_stop), rate=PAGES),
    "watch": ButtonHandler(run=watch, rate=PAGES),
    "details": ButtonHandler(run=_details, rate=PAGES),
    "web": ButtonHandler(run=_open_page, rate=PAGES),
    "log": ButtonHandler(run=of_job(show_log), rate=PAGES),
    "history": ButtonHandler(run=of_job(show_history), rate=PAGES),
    # The number of these is that of a page.
    QUEUE_PAGE: ButtonHandler(run=_show_board, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
    "compare": ButtonHandler(run=_compare, rate=PAGES),
    "open": ButtonHandler(run=_open, rate=PAGES),
    "refresh": ButtonHandler(run=_refresh, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
    "samples": ButtonHandler(run=_show_samples, rate=PAGES),
    "files": ButtonHandler(run=of_job(hand_over_files), rate=REPORTS),
    # To train may need another role.
    DRAW_AGAIN: ButtonHandler(
        run=sample_command.of_sampling(partial(perform, verb=Verb.RETRY)), ability=Ability.SAMPLE
    ),
    **sample_command.HANDLERS,
}
