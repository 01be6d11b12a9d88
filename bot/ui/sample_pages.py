"""What members see of samplings: the live card, the grid with its votes, all images, and the news that it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import discord
from discord import ui

from bot.queue.domain.job import Job, State
from bot.queue.domain.verbs import Verb, is_applicable
from bot.queue.store.sample_votes import Ballot
from bot.ui.buttons import JobButton, SampleMenu, job_button, page_button
from bot.ui.discord_text import escape, first_lines, mention, progress_bar, shorten
from bot.ui.end_reasons import end_reason_text
from bot.ui.job_context import JobContext, forecast_line, job_name, pause_line, position_words
from bot.ui.layout import (
    MAX_FILES,
    Color,
    FileToSend,
    MessageContent,
    box,
    images_gallery,
    layout,
    row,
    sendable,
    text_message,
)
from bot.ui.remedies import failure_lines
from trainer.protocol.events import Failed, FailureKind, SamplingFinished
from trainer.protocol.sampling import Cell, SampledJob, SamplingSpec
from trainer.protocol.text import _, duration, listed, ngettext, rough_duration

#: Verbs of the buttons of trainings that ask what to draw, and of samplings.
TRY_PROMPTS, COMPARE_EPOCHS = "try_prompts", "compare_epochs"
OTHER_SEEDS, ALL_IMAGES, SHARE_IMAGES, DRAW_AGAIN = "other_seeds", "all_images", "share_images", "draw_again"
#: Discord's limits of a menu.
_MAX_OPTIONS, _MAX_OPTION_CHARS = 25, 100
_SHOWN_PROMPTS = 6
#: The same request would fail in the same way.
_REPEATS = frozenset({FailureKind.BAD_SPEC, FailureKind.MISSING_MODEL, FailureKind.OUT_OF_MEMORY})
_STATE_COLORS = {
    State.SUCCEEDED: Color.DONE,
    State.FAILED: Color.FAILED,
    State.STOPPING: Color.STOPPING,
    State.PREPARING: Color.WORKING,
    State.RUNNING: Color.TRAINING,
}


def sample_card(job: Job, context: JobContext) -> MessageContent:
    """The card of a sampling: how far it is with its newest images, then the whole grid."""
    sign, words = sampling_words(job, context.position)
    images = _images(job, context)
    sent = sendable([file for file, _alt in images], context.file_limit)
    shown = [(file, alt) for file, alt in images if file in sent]
    body = box(
        _STATE_COLORS.get(job.state, Color.WAITING),
        f"### {sign} #{job.id} {escape(job.name)} · {mention(job.owner_id)}\n**{words}**",
        "\n".join(_lines(job, context)) or None,
        images_gallery(shown) if shown else None,
        "\n".join(f"-# {line}" for line in [*_prompt_lines(job.sampling), grid_words(job.sampling)]),
        _note_on_size(job, images, shown),
        *_controls(job, context),
    )
    return MessageContent(layout=layout(body), files=sent, is_silent=True)


def sampling_words(job: Job, position: int | None = None) -> tuple[str, str]:
    """The sign and the words of a sampling's state."""
    progress = job.progress
    match job.state:
        case State.QUEUED:
            words = _("Waiting to continue") if job.attempt else _("Waiting to be drawn")
            return "🕓", words + (" · " + position_words(position) if position else "")
        case State.PREPARING:
            return "🔵", _("Loading the model")
        case State.RUNNING:
            return "🎨", _("Drawing, {done} of {total}", done=progress.drawn, total=progress.images)
        case State.STOPPING:
            return "🟠", _("Stopping")
        case State.PAUSED:
            return "⏸️", _("Paused")
        case State.SUCCEEDED:
            return "🖼️", ngettext("{n} image", "{n} images", job.sampling.images)
        case State.FAILED:
            return "❌", _("Failed")
        case _:
            return "🚫", _("Cancelled")


def grid_words(spec: SamplingSpec) -> str:
    """`4 epochs × 3 strengths × 4 prompts · 25 steps · guidance 7`: what the images differ in, and what they share."""
    strengths = listed([f"{each:g}" for each in spec.strengths])
    counts = (
        listed([escape(model.label, 60) for model in spec.models], most=8),
        ngettext("strength {strengths}", "strengths {strengths}", len(spec.strengths), strengths=strengths),
        ngettext("{n} prompt", "{n} prompts", len(spec.prompts)) if len(spec.prompts) > 1 else "",
        ngettext("seed {seeds}", "seeds {seeds}", len(spec.seeds), seeds=listed(map(str, spec.seeds), most=8)),
    )
    shared = (
        ngettext("{n} step", "{n} steps", spec.steps),
        _("guidance {guidance}", guidance=f"{spec.guidance:g}"),
        f"{spec.width} × {spec.height}" if spec.width else "",
    )
    return " · ".join(part for part in (" × ".join(filter(None, counts)), *shared) if part)


def _prompt_lines(spec: SamplingSpec) -> list[str]:
    lines = []
    for number, each in enumerate(spec.prompts, start=1):
        line = f"{number}. {escape(each.prompt, 150)}"
        lines.append(f"{line} · {_('without “{words}”', words=escape(each.negative, 80))}" if each.negative else line)
    return first_lines(lines, most=_SHOWN_PROMPTS)


def _lines(job: Job, context: JobContext) -> list[str]:
    lines = [f"📝 {escape(job.note, 300)}"] if job.note else []
    if job.state is State.QUEUED:
        lines += sampling_wait_lines(job, context)
    if job.progress.images and not job.state.is_end:
        share = min(1.0, job.progress.drawn / job.progress.images)
        lines.append(f"{progress_bar(share)} {100 * share:.0f} %{_left_words(job, context)}")
    finished = job.terminal_event
    if isinstance(finished, SamplingFinished):
        lines += _result_lines(job, finished, context)
    elif isinstance(finished, Failed) and job.state is State.FAILED:
        lines += [escape(finished.message, 1000), escape(finished.hint, 500)]
    if job.end_reason:
        lines.append(escape(end_reason_text(job.end_reason), 300))
    if job.state is State.CANCELLED:
        if job.stopped_by:
            lines.append(_("Cancelled by {by}.", by=mention(job.stopped_by)))
        if job.progress.drawn:
            lines.append(
                ngettext(
                    "{n} image was drawn before; it is kept.",
                    "{n} images were drawn before; they are kept.",
                    job.progress.drawn,
                )
            )
    if job.are_files_deleted:
        lines.append(_("Its files were deleted to free disk space."))
    return [line for line in lines if line]


def _left_words(job: Job, context: JobContext) -> str:
    """` · about 40 s left`, by what the images so far took, loading included; empty before the second one."""
    done, total = job.progress.drawn, job.progress.images
    if job.state is not State.RUNNING or done < 2 or job.started_at is None or job.attempt > 1:
        return ""
    seconds = (context.now - job.started_at).total_seconds() / done * (total - done)
    return " · " + _("about {duration} left", duration=rough_duration(seconds)) if seconds >= 1 else ""


def _result_lines(job: Job, finished: SamplingFinished, context: JobContext) -> list[str]:
    liked = liked_lines(job.sampling, context.votes, lambda label: f"**{escape(label, 60)}**")
    return [_("Drawn in {duration}.", duration=duration(finished.seconds)), *liked]


def liked_lines(
    spec: SamplingSpec, votes: Mapping[Ballot, Mapping[int, int]], shown: Callable[[str], str] = str
) -> Iterator[str]:
    """Which model and which image have most votes; `shown` writes the name of one."""
    for ballot, counts in votes.items():
        labels = vote_labels(spec, ballot)
        most = max(counts.values(), default=0)
        if most:
            yield ngettext(
                "👍 Most liked: {names}, with {n} vote.",
                "👍 Most liked: {names}, with {n} votes.",
                most,
                names=listed([shown(labels[index]) for index in counts if counts[index] == most], most=8),
            )


def votes_words(n: int) -> str:
    """How many votes there are; empty for none."""
    return ngettext("{n} vote", "{n} votes", n) if n else ""


def vote_labels(spec: SamplingSpec, ballot: Ballot) -> list[str]:
    """What is voted for: the models, or the images by their numbers."""
    if ballot is Ballot.MODEL:
        return [model.label for model in spec.models]
    return [_("image {number}", number=cell.index + 1) for cell in spec.cells]


def sampling_wait_lines(job: Job, context: JobContext) -> list[str]:
    """Why a sampling has not begun, and when it is expected to."""
    if context.queue_pause is not None:
        return [pause_line(context.queue_pause)]
    if context.why_closed:
        return [escape(context.why_closed, 300)]
    lines = []
    if context.owner_may_run is not None and context.owner_runs >= context.owner_may_run:
        lines.append(_("I draw one request of each person at a time. This one is next."))
    elif context.slots and not context.free_slots:
        lines.append(
            _("All places are taken now. This is drawn as soon as one is free, before the trainings that wait.")
        )
    return [*lines, forecast_line(context.forecast, context.now)]


# -- images ---------------------------------------------------------------------------------------------------------


def _images(job: Job, context: JobContext) -> list[tuple[FileToSend, str]]:
    """What a card shows: the newest images while it draws, then the sheets of the grid."""
    finished = job.terminal_event
    if job.are_files_deleted:
        return []
    if job.state is State.SUCCEEDED and isinstance(finished, SamplingFinished):
        sheets = finished.sheets[:MAX_FILES]
        return [
            (FileToSend(folder=context.job_dir, path=sheet.path, name=f"{job.id}-grid-{number}.png"), sheet.alt)
            for number, sheet in enumerate(sheets, start=1)
        ]
    cells = job.sampling.cells
    newest = [cells[index] for index in job.progress.newest_cells if index < len(cells)]
    return [(image_file(job, context, cell), cell_words(job.sampling, cell)) for cell in newest]


def image_file(job: Job, context: JobContext, cell: Cell) -> FileToSend:
    """The file of one image."""
    return FileToSend(folder=context.job_dir, path=cell.path, name=f"{job.id}-{cell.index + 1}.png")


def cell_words(spec: SamplingSpec, cell: Cell) -> str:
    """One image as text: `epoch 4, strength 0.7: “a fox” (seed 12)`."""
    values = {
        "model": spec.models[cell.model].label,
        "prompt": spec.prompts[cell.prompt].prompt,
        "seed": cell.seed,
    }
    if cell.strength is None or len(spec.strengths) == 1:
        return _("{model}: “{prompt}” (seed {seed})", **values)
    strength = f"{cell.strength:g}"
    return _("{model}, strength {strength}: “{prompt}” (seed {seed})", strength=strength, **values)


def _note_on_size(
    job: Job, images: Sequence[tuple[FileToSend, str]], shown: Sequence[tuple[FileToSend, str]]
) -> str | None:
    if len(shown) == len(images) or not job.state.is_end:
        return None
    return "-# " + _("Some images are missing, or too large for this server. [All images] shows them one by one.")


def images_messages(job: Job, context: JobContext) -> list[MessageContent]:
    """Every image that was drawn, ten to a message, with what it shows."""
    if job.are_files_deleted:
        return [text_message(_("The files of #{job} were deleted to free disk space.", job=job.id))]
    spec = job.sampling
    rest = {image_file(job, context, cell): cell for cell in spec.cells}
    found: list[MessageContent] = []
    while batch := sendable(list(rest), context.file_limit):
        cells = [rest.pop(file) for file in batch]
        title = _("**#{job} {name}**, {first} to {last}", job=job.id, name=escape(job.name), **_ends(cells))
        lines = first_lines([f"-# {cell.index + 1}. {escape(cell_words(spec, cell), 180)}" for cell in cells])
        gallery = images_gallery((file, cell_words(spec, cell)) for file, cell in zip(batch, cells, strict=True))
        menu = row(_image_menu(job, cells, context)) if len(spec.cells) > 1 and job.state is State.SUCCEEDED else None
        found.append(MessageContent(layout=layout(title, gallery, "\n".join(lines), menu), files=batch))
    return found or [text_message(_("#{job} has drawn no images yet.", job=job.id))]


def _ends(cells: Sequence[Cell]) -> dict[str, int]:
    return {"first": cells[0].index + 1, "last": cells[-1].index + 1}


# -- buttons and menus ----------------------------------------------------------------------------------------------


def drawing_buttons(job_id: int) -> tuple[JobButton, JobButton]:
    """Ask what to draw with a training: own prompts, or the same with several of its epochs."""
    return (
        job_button(job_id, TRY_PROMPTS, _("Try prompts"), emoji="🎨"),
        job_button(job_id, COMPARE_EPOCHS, _("Compare epochs")),
    )


def _controls(job: Job, context: JobContext) -> list[ui.ActionRow[Any] | None]:
    styles = discord.ButtonStyle
    buttons = []
    if is_applicable(Verb.RESUME, job):
        buttons.append(job_button(job.id, Verb.RESUME, _("Resume"), style=styles.success))
    failed = job.terminal_event.kind if isinstance(job.terminal_event, Failed) else None
    if is_applicable(Verb.RETRY, job) and failed not in _REPEATS:
        buttons.append(job_button(job.id, DRAW_AGAIN, _("Try again"), emoji="🔁", style=styles.primary))
    if job.state is State.SUCCEEDED:
        buttons.append(job_button(job.id, OTHER_SEEDS, _("Other seeds"), emoji="🎲"))
    if job.state.is_end and job.progress.drawn and not job.are_files_deleted:
        buttons.append(job_button(job.id, ALL_IMAGES, _("All images"), emoji="🖼️"))
    if job.state is State.SUCCEEDED and not job.are_files_deleted:
        buttons.append(job_button(job.id, SHARE_IMAGES, _("Show in the gallery")))
        if context.has_pages:
            buttons.append(page_button(job.id))
    if is_applicable(Verb.CANCEL, job):
        buttons.append(job_button(job.id, Verb.CANCEL, _("Cancel"), style=styles.danger))
    menus = _menus(job, context) if job.state is State.SUCCEEDED else []
    return [row(menu) for menu in menus] + [row(*buttons) if buttons else None]


def _menus(job: Job, context: JobContext) -> list[SampleMenu]:
    """Votes for one of several models, else for one of few images; and which epoch becomes the training's result."""
    models, cells = list(enumerate(job.sampling.models))[:_MAX_OPTIONS], job.sampling.cells
    if len(models) < 2:
        # Of many, [All images] has a menu for every ten.
        return [_image_menu(job, cells, context)] if 1 < len(cells) <= _MAX_OPTIONS else []
    votes = [_vote_option(index, model.label, context.votes.get(Ballot.MODEL, {})) for index, model in models]
    menus = [SampleMenu.of(job.id, "vote", votes, _("👍 Which one is best? One vote for each person"))]
    epochs = [
        discord.SelectOption(label=_("Use epoch {epoch}", epoch=model.epoch), value=str(model.epoch))
        for _index, model in models
        if isinstance(model, SampledJob) and model.epoch is not None
    ]
    if job.source_id is not None and epochs:
        menus.append(SampleMenu.of(job.id, "use", epochs, _("📦 Make one of them the result of the training")))
    return menus


def _image_menu(job: Job, cells: Sequence[Cell], context: JobContext) -> SampleMenu:
    """Votes for one of these images; each person has one for all images of the sampling."""
    spec, votes = job.sampling, context.votes.get(Ballot.IMAGE, {})
    options = [_vote_option(cell.index, f"{cell.index + 1}. {cell_words(spec, cell)}", votes) for cell in cells]
    return SampleMenu.of(job.id, "image", options, _("👍 Which image is best? One vote for each person"))


def _vote_option(index: int, label: str, votes: Mapping[int, int]) -> discord.SelectOption:
    words = votes_words(votes.get(index, 0)) or None
    return discord.SelectOption(label=shorten(label, _MAX_OPTION_CHARS), value=str(index), description=words)


# -- answers and news -----------------------------------------------------------------------------------------------


def sampling_receipt(job: Job, context: JobContext) -> MessageContent:
    """What is going to be drawn, when, and where it appears."""
    images = ngettext("{n} image", "{n} images", job.sampling.images)
    lines = [
        _("They appear in {channel} as they are drawn.", channel=f"<#{job.channel_id}>"),
        *sampling_wait_lines(job, context),
    ]
    line = " · " + position_words(context.position) if context.position else ""
    body = box(
        Color.DONE,
        f"🎨 {_('**#{job}: {images} of “{name}”**', job=job.id, images=images, name=escape(job.name))}{line}",
        "\n".join(each for each in lines if each),
        "\n".join(f"-# {each}" for each in [*_prompt_lines(job.sampling), grid_words(job.sampling)]),
        row(
            job_button(job.id, "open", _("Open card")),
            job_button(job.id, Verb.CANCEL, _("Cancel"), style=discord.ButtonStyle.danger),
        ),
    )
    return MessageContent(layout=layout(body))


def drawn_post(job: Job, link: str) -> MessageContent:
    """Calls those who wait for the images, with the way to the card that has them."""
    images = ngettext("{n} image is drawn", "{n} images are drawn", job.sampling.images)
    name = job_name(job)
    return MessageContent(layout=layout(f"🖼️ {name} · {images} · {link}"))


def sampling_failed_post(job: Job, failed: Failed | None, detail: str) -> MessageContent:
    """Why a sampling failed, and what to do."""
    head = _("#{job} {name} could not be drawn", job=job.id, name=escape(job.name))
    lines = failure_lines(job, head, failed, detail)
    return MessageContent(layout=layout(box(Color.FAILED, "\n".join(lines))), mentions=(job.owner_id,))
