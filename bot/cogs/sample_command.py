"""`/sample`, [Try prompts] and [Compare epochs]: draw with what was trained; votes, and which epoch is the result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import PurePath

import discord
from discord import app_commands

from bot.access import Ability, server_of
from bot.cogs.autocomplete import answered, choose_base, job_choices
from bot.cogs.finetune_command import require_permissions
from bot.cogs.interaction_gate import PAGES, REPORTS, UPLOADS, ButtonHandler, handled
from bot.cogs.job_request import UnknownBase
from bot.cogs.lookups import find_job, job_here, of_job, require_own
from bot.cogs.replies import Acknowledgement, open_form, reply
from bot.cogs.sampling_request import (
    EpochNotKept,
    SamplingRequest,
    kept_epochs_of,
    other_seeds,
    sampling_of_base,
    sampling_of_job,
    suggested,
)
from bot.cogs.services import ServiceCog, Services, allowance_of_member, context_of, require_hours
from bot.cogs.sharing import require_may_share, share_picture
from bot.cogs.uploaded_adapter import copied_adapter, received_adapter
from bot.errors import JobRefused, StaleButton
from bot.queue import Job, NewJob
from bot.queue.domain.job import State
from bot.queue.store.gallery_store import Picture, ShownImage
from bot.queue.store.sample_votes import Ballot
from bot.ui.dataset_forms import Form, FormCallback
from bot.ui.layout import text_message
from bot.ui.sample_pages import (
    ALL_IMAGES,
    COMPARE_EPOCHS,
    OTHER_SEEDS,
    SHARE_IMAGES,
    TRY_PROMPTS,
    images_messages,
    sampling_receipt,
    vote_labels,
)
from trainer.exchange.kept_epochs import checkpoint_epochs
from trainer.protocol.events import Finished, SamplingFinished
from trainer.protocol.sampling import SampledJob, SamplingSpec
from trainer.protocol.text import N_, _

Prompts = app_commands.Range[str, 1, 2000]
Negative = app_commands.Range[str, 0, 500]
Short = app_commands.Range[str, 1, 200]
Steps = app_commands.Range[int, 1, 200]
Guidance = app_commands.Range[float, 0, 30]

#: Images that a message in the gallery shows the prompts of.
_MAX_SHARED_IMAGES = 8


_choose_drawable = answered(partial(job_choices, can_draw=True))


class SampleCommand(ServiceCog):
    """`/sample`."""

    @app_commands.command(
        description=N_("Draw with a training of this server, with a LoRA file, or with a base model."),
        extras=handled(rate=UPLOADS),
    )
    @app_commands.guild_only()
    @app_commands.describe(
        prompts=N_("What to draw; put | between prompts"),
        job=N_("Number or name of the training to draw with"),
        file=N_("… or a LoRA from elsewhere, as a .safetensors file"),
        base=N_("The base model that the file was made for; or draw with this base alone"),
        epochs=N_("Epochs to compare: base, 2, 4-8, best, all (default: the result)"),
        strengths=N_("How strongly it changes the base model, 0 to 1.5, such as 0.7, 1"),
        seeds=N_("Numbers that decide the image, such as 1, 2, 3; the same number gives the same image again"),
        negative=N_("What should not be in the images"),
        size=N_("Width x height, such as 512x768 (default: as it was trained)"),
        steps=N_("Steps for each image; more take longer (default: 25)"),
        guidance=N_("How closely images follow the prompt (default: 7)"),
        with_base=N_("Also draw with the base model alone, to compare"),
    )
    @app_commands.autocomplete(job=_choose_drawable, base=choose_base)
    async def sample(
        self,
        interaction: discord.Interaction,
        prompts: Prompts,
        job: str | None = None,
        file: discord.Attachment | None = None,
        base: str | None = None,
        epochs: Short | None = None,
        strengths: Short | None = None,
        seeds: Short | None = None,
        negative: Negative = "",
        size: Short | None = None,
        steps: Steps | None = None,
        guidance: Guidance | None = None,
        with_base: bool = False,
    ) -> None:
        request = SamplingRequest(
            prompts=prompts,
            negative=negative,
            epochs=epochs or "",
            strengths=strengths or "",
            seeds=seeds or "",
            size=size or "",
            steps=steps,
            guidance=guidance,
        )
        if job is not None:
            if file is not None or base is not None:
                raise JobRefused(_("Give one of these: job, or file with its base, or base alone. Nothing was queued."))
            found = await find_job(self._services, interaction, job)
            await draw_with_job(self._services, interaction, found, request.with_base() if with_base else request)
            return
        await self._draw_with_base(interaction, base, file, request, with_base=with_base)

    async def _draw_with_base(
        self,
        interaction: discord.Interaction,
        label: str | None,
        file: discord.Attachment | None,
        request: SamplingRequest,
        *,
        with_base: bool,
    ) -> None:
        services, models = self._services, self._services.config.models
        if file is None and label is None:
            raise JobRefused(_("Say what to draw with: job, file, or base. Nothing was queued."))
        if request.epochs:
            raise JobRefused(_("Only a training has epochs: give job. Nothing was queued."))
        require_permissions(interaction)
        label = label or models.default_label
        if label is None or label not in models.sources:
            raise UnknownBase(label=label, known=models.sources)
        base = models.base_of(label)
        alone = {"kind": "base", "label": _("base model")}
        if file is None:
            spec = await sampling_of_base(services, base, [alone], request)
            await submit_sampling(services, interaction, spec, title=label)
            return
        # Before the download: what was typed may be wrong.
        stem = PurePath(file.filename).stem[:60] or "lora"
        drawn = [alone] if with_base else []
        first = {"kind": "file", "label": stem, "path": "adapter.safetensors"}
        spec = await sampling_of_base(services, base, [*drawn, first], request)
        async with received_adapter(services, interaction, file) as folder:
            await submit_sampling(services, interaction, spec, title=stem, folder=folder)


async def draw_with_job(
    services: Services, interaction: discord.Interaction, job: Job, request: SamplingRequest
) -> None:
    """Queue a sampling of a training on behalf of a member, and answer with its receipt.

    Raises:
        JobRefused: It cannot be drawn, or the member has no room or no GPU hours left.
        SpecError: A value is out of range.
    """
    spec = await sampling_of_job(services, job, request)
    await submit_sampling(services, interaction, spec, title=job.name, source=job)


async def submit_sampling(
    services: Services,
    interaction: discord.Interaction,
    spec: SamplingSpec,
    *,
    title: str,
    source: Job | None = None,
    folder: str = "",
) -> None:
    """Queue a sampling, and answer with its receipt.

    Args:
        services: The bot's services.
        interaction: Of the member who asks for it.
        spec: What is drawn.
        title: What its card calls it.
        source: The training whose results it draws with; its thread gets the card.
        folder: The job's folder, if files are in it already.

    Raises:
        JobRefused: The member has no room or no GPU hours left.
    """
    allowance = await allowance_of_member(services, interaction)
    estimate = await services.estimates.of_sampling(spec)
    seconds = None if estimate is None else estimate.seconds
    needed_h = None if seconds is None else seconds / 3600
    await require_hours(services, allowance, needed_h, guild_id=server_of(interaction), owner_id=interaction.user.id)
    new = NewJob(
        interaction_id=interaction.id,
        guild_id=server_of(interaction),
        channel_id=await _channel_of(services, interaction, source),
        owner_id=interaction.user.id,
        dataset_id=0 if source is None else source.dataset_id,
        source_id=None if source is None else source.id,
        spec=spec,
        title=title,
        # Each person's in turn: no one waits for all images of another.
        max_running=1,
        estimate_s=seconds,
        folder=folder,
    )
    job = await services.jobs.submit(new)
    await reply(interaction, sampling_receipt(job, await context_of(services, job, interaction.client)))


async def _channel_of(services: Services, interaction: discord.Interaction, source: Job | None) -> int:
    """The channel of a sampling's card: the thread of its training, else where it was asked for."""
    if source is None:
        return interaction.channel_id or 0
    card = await services.outbox.cards.of(source.id)
    return source.channel_id if card is None else card.thread_id or source.channel_id


# -- forms ------------------------------------------------------------------------------------------------------------


async def _ask(services: Services, interaction: discord.Interaction, job: Job, *, compares: bool) -> None:
    first = await suggested(services, job, compares=compares)

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        again = await job_here(services, interaction, job.id)
        typed = form.texts
        request = SamplingRequest(
            prompts=typed["prompts"],
            negative=typed.get("negative", ""),
            epochs=typed.get("epochs", ""),
            strengths=typed["strengths"],
            seeds=typed["seeds"],
            size=typed.get("size", ""),
        )
        await draw_with_job(services, interaction, again, request)

    form = sampling_form(services.gate.form(submitted, UPLOADS, is_answer_new=True), job, first, compares=compares)
    await open_form(interaction, form)


def sampling_form(submitted: FormCallback, job: Job, first: SamplingRequest, *, compares: bool) -> Form:
    """What to draw with a training; `compares`: with several of its epochs."""
    title = _("Compare epochs of {name}", name=job.name) if compares else _("Draw with {name}", name=job.name)
    form = Form(title, submitted)
    form.add_text("prompts", _("Prompts"), _("One on each line"), value=first.prompts, max_length=2000, is_long=True)
    if compares:
        form.add_text(
            "epochs",
            _("Epochs"),
            _("Commas between them; “base” is the model before the training"),
            value=first.epochs,
        )
    else:
        form.add_text("negative", _("What should not be in the images"), value=first.negative, max_length=500)
    form.add_text(
        "strengths", _("Strength"), _("0 is the base model, 1 is as trained, up to 1.5"), value=first.strengths
    )
    form.add_text("seeds", _("Seeds"), _("Each prompt is drawn once with each of these numbers"), value=first.seeds)
    if not compares:
        form.add_text(
            "size", _("Size"), _("Width x height; empty: as it was trained"), max_length=20, placeholder="512x768"
        )
    return form


# -- buttons and menus of a sampling ----------------------------------------------------------------------------------


def of_sampling(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make the handler of a button about a sampling, as `of_job`; one about a training is refused."""

    @of_job
    async def handle(services: Services, interaction: discord.Interaction, job: Job, *arguments: str) -> None:
        if not job.is_sampling:
            raise StaleButton
        await run(services, interaction, job, *arguments)

    return handle


@of_sampling
async def _other_seeds(services: Services, interaction: discord.Interaction, job: Job) -> None:
    source = None if job.source_id is None else await job_here(services, interaction, job.source_id)
    async with copied_adapter(services, interaction, job) as folder:
        await submit_sampling(
            services, interaction, other_seeds(job.sampling), title=job.name, source=source, folder=folder
        )


@of_sampling
async def _all_images(services: Services, interaction: discord.Interaction, job: Job) -> None:
    for content in images_messages(job, await context_of(services, job, interaction.client)):
        await reply(interaction, content)


@of_sampling
async def _share(services: Services, interaction: discord.Interaction, job: Job) -> None:
    # Before it is looked at: whether it is drawn is no matter of theirs.
    require_may_share(interaction, job)
    model = None if job.source_id is None else await job_here(services, interaction, job.source_id)
    picture = _picture_of(job)
    await share_picture(services, interaction, job, picture, model=model, base=PurePath(job.sampling.base.source).name)


def _picture_of(job: Job) -> Picture:
    """The picture of a sampling that is shown to others: its only image, or its first sheet."""
    spec, finished = job.sampling, job.terminal_event
    if not isinstance(finished, SamplingFinished) or not finished.sheets:
        raise StaleButton
    cells = spec.cells
    sheet = finished.sheets[0]
    is_one = len(cells) == 1
    epochs = {model.epoch for model in spec.models if isinstance(model, SampledJob)}
    return Picture(
        path=cells[0].path if is_one else sheet.path,
        images=tuple(
            ShownImage(
                prompt=spec.prompts[cell.prompt].prompt,
                seed=cell.seed,
                negative_prompt=spec.prompts[cell.prompt].negative,
                strength=cell.strength,
            )
            for cell in cells[:_MAX_SHARED_IMAGES]
        ),
        alt_text="" if is_one else sheet.alt,
        epoch=epochs.pop() if len(epochs) == 1 and len(spec.models) == 1 else None,
    )


async def _vote(services: Services, interaction: discord.Interaction, job: Job, chosen: str, *, ballot: Ballot) -> None:
    labels = vote_labels(job.sampling, ballot)
    if job.state is not State.SUCCEEDED or int(chosen) >= len(labels):
        raise StaleButton
    label = labels[int(chosen)]
    if await services.jobs.votes.vote(job, interaction.user.id, ballot, int(chosen)):
        text = _("👍 Your vote for {label} counts. Choose another to change it, the same to take it back.", label=label)
    else:
        text = _("Your vote for {label} is taken back.", label=label)
    await reply(interaction, text_message(text))


@of_sampling
async def _use_epoch(services: Services, interaction: discord.Interaction, sampling: Job, chosen: str) -> None:
    """Make an epoch the result of the training that was drawn with: its files are tested, saved and handed over."""
    if sampling.source_id is None:
        raise StaleButton
    job, epoch = await job_here(services, interaction, sampling.source_id), int(chosen)
    require_own(interaction, job)
    finished = job.terminal_event
    if isinstance(finished, Finished) and finished.best_epoch == epoch:
        await reply(interaction, text_message(_("Epoch {epoch} is the result of #{job} already.", **_of(job, epoch))))
        return
    if job.state not in {State.SUCCEEDED, State.STOPPED}:
        await reply(interaction, text_message(_("#{job} is not finished. Choose an epoch when it is.", job=job.id)))
        return
    kept = await kept_epochs_of(services, job)
    if epoch not in kept.paths:
        raise EpochNotKept(job_id=job.id, epoch=epoch, kept=list(kept.paths))
    if epoch not in await asyncio.to_thread(checkpoint_epochs, services.jobs.job_dir(job)):
        # Only its small file is left: that is what there is to use.
        text = _(
            "Only the small file of epoch {epoch} of #{job} is left. You find it under [All files].", **_of(job, epoch)
        )
        await reply(interaction, text_message(text))
        return
    after = await services.jobs.choose_epoch(job.id, epoch, by=interaction.user.id)
    if after.round == job.round:
        text = _("#{job} has changed meanwhile; nothing was done. Try again.", job=job.id)
    else:
        text = _(
            "📦 Epoch {epoch} becomes the result of #{job}. It is being tested and saved; I will tell you when its "
            "files are ready.",
            **_of(job, epoch),
        )
    await reply(interaction, text_message(text))


def _of(job: Job, epoch: int) -> dict[str, int]:
    return {"job": job.id, "epoch": epoch}


_form = partial(ButtonHandler, acknowledgement=Acknowledgement.NONE, rate=PAGES, ability=Ability.SAMPLE)

HANDLERS: Mapping[str, ButtonHandler] = {
    TRY_PROMPTS: _form(run=of_job(partial(_ask, compares=False))),
    COMPARE_EPOCHS: _form(run=of_job(partial(_ask, compares=True))),
    OTHER_SEEDS: ButtonHandler(run=_other_seeds, rate=UPLOADS, ability=Ability.SAMPLE),
    ALL_IMAGES: ButtonHandler(run=_all_images, rate=REPORTS),
    SHARE_IMAGES: ButtonHandler(run=_share, ability=Ability.SHARE),
}

MENUS: Mapping[str, ButtonHandler] = {
    "vote": ButtonHandler(run=of_sampling(partial(_vote, ballot=Ballot.MODEL)), argument="[0-9]{1,2}", rate=PAGES),
    "image": ButtonHandler(run=of_sampling(partial(_vote, ballot=Ballot.IMAGE)), argument="[0-9]{1,4}", rate=PAGES),
    "use": ButtonHandler(run=_use_epoch, argument="[0-9]{1,4}", ability=Ability.TRAIN),
}
