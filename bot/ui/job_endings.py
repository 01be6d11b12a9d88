"""The posts at the end of a training: done with its files, failed with advice, or cancelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import discord
from discord import ui

from bot.queue.domain.job import Job, State
from bot.queue.domain.verbs import Verb
from bot.ui.buttons import job_button
from bot.ui.discord_text import escape, mention
from bot.ui.job_card import files_button, settings_line
from bot.ui.job_context import JobContext
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable, text_message
from trainer.protocol.events import Event, Exported, ExportFormat, Failed, Finished, Stopped, Tested
from trainer.protocol.settings import MethodKind, TaskKind
from trainer.protocol.text import _, duration, size

#: What a finished job hands over; names of methods are not translated.
_PRODUCTS = {
    MethodKind.LORA: "LoRA",
    MethodKind.DORA: "DoRA",
    MethodKind.LOHA: "LoHa",
    MethodKind.LOKR: "LoKr",
    MethodKind.IA3: "(IA)³",
    MethodKind.OFT: "OFT",
}


def files_messages(job: Job, context: JobContext, events: Sequence[Event]) -> list[MessageContent]:
    """The exported files of a job for one person, in as many messages as they need; empty if there are none."""
    weights = list({event.format: event for event in events if isinstance(event, Exported)}.values())
    files = [_exported_file(job, context, event) for event in weights]
    return split_files(
        [each.file for each in files if not each.is_folder],
        context.file_limit,
        lambda sent: _how_to_use(job, files, sent),
        title=_("**#{job} {name}**", job=job.id, name=escape(job.name)),
    )


def split_files(
    files: Sequence[FileToSend], limit: int, describe: Callable[[Sequence[FileToSend]], str | None], *, title: str
) -> list[MessageContent]:
    """Return messages that carry all files within `limit`; `describe(sent)` is the text of the first."""
    batches = []
    rest = list(files)
    while batch := sendable(rest, limit):
        batches.append(batch)
        rest = [file for file in rest if file not in batch]
    text = describe([file for batch in batches for file in batch])
    if not batches:
        return [] if text is None else [text_message(f"{title}\n{text}")]
    return [
        MessageContent(
            layout=layout(title, None if number else text, *(ui.File[ui.LayoutView](file.url) for file in batch)),
            files=batch,
        )
        for number, batch in enumerate(batches)
    ]


def done_post(job: Job, context: JobContext, events: Sequence[Event]) -> MessageContent:
    """The result: its numbers, base and best side by side, the files, and how to use them."""
    finished = next((event for event in events if isinstance(event, Finished)), None)
    tested = next((event for event in events if isinstance(event, Tested)), None)
    weights = [_exported_file(job, context, event) for event in events if isinstance(event, Exported)]
    comparison = None
    if finished:
        comparison = FileToSend(folder=context.job_dir, path=finished.comparison, name=f"{job.name}-base-and-best.png")
    sent = sendable(
        [*([comparison] if comparison else []), *(each.file for each in weights if not each.is_folder)],
        context.file_limit,
    )
    shown = image_gallery(comparison, finished.comparison_alt) if finished and comparison in sent else None
    body = box(
        Color.DONE,
        f"## ✅ {_('#{job} {name} is done', job=job.id, name=escape(job.name))}\n"
        f"{mention(job.owner_id)} {_result(job, finished, tested)}{_ended_by(job)}",
        shown,
        _how_to_use(job, weights, sent, files_hint(job)),
        f"-# {settings_line(job)} · {context.footer(job)}",
        row(job_button(job.id, "samples", _("Samples"), emoji="🖼️"), files_button(job.id)),
    )
    carried = [ui.File[ui.LayoutView](each.file.url) for each in weights if each.file in sent]
    return MessageContent(layout=layout(body, *carried), files=sent, mentions=job.owner_id)


def failed_post(job: Job, context: JobContext, failed: Failed | None, detail: str) -> MessageContent:
    """What happened, why, and what to do; the log stays in the log."""
    what = failed.message if failed else detail or _("The trainer ended without a reason.")
    lines = [
        f"### ❌ {_('#{job} {name} failed', job=job.id, name=escape(job.name))}",
        f"{mention(job.owner_id)} {escape(what, 1200)}",
    ]
    if failed and failed.hint:
        lines.append(f"→ {escape(failed.hint, 800)}")
    if failed and detail:
        lines.append(escape(detail, 400))
    if failed and job.progress.epochs:
        epoch = job.progress.epochs[-1].epoch
        lines.append(_("The checkpoints up to epoch {epoch} are kept on the machine.", epoch=epoch))
    retry = row(job_button(job.id, Verb.RETRY, _("Retry"), emoji="🔁", style=discord.ButtonStyle.primary))
    body = box(Color.FAILED, "\n".join(lines), f"-# {settings_line(job)} · {context.footer(job)}", retry)
    return MessageContent(layout=layout(body), mentions=job.owner_id)


def cancelled_post(job: Job, context: JobContext, stopped: Stopped | None, detail: str = "") -> MessageContent:
    """Who cancelled a job, and what is left of it."""
    if detail:
        left = escape(detail, 400)
    elif stopped and stopped.checkpoint:
        left = _(
            "It had reached epoch {epoch}, step {step}; the checkpoint is kept on the machine.",
            epoch=stopped.epoch,
            step=f"{stopped.step:,}",
        )
    elif job.progress.epochs:
        left = _("Its checkpoints are kept on the machine.")
    else:
        left = _("Nothing had been trained yet.")
    name = f"**#{job.id} {escape(job.name)}**"
    if job.stopped_by:
        cancelled = _("{job} was cancelled by {by}.", job=name, by=mention(job.stopped_by))
    else:
        cancelled = _("{job} was cancelled.", job=name)
    body = box(Color.WAITING, f"⬛ {cancelled} {left}", f"-# {context.footer(job)}")
    return MessageContent(layout=layout(body), is_silent=True)


def _ended_by(job: Job) -> str:
    if job.state is not State.STOPPED:
        return ""
    if job.stopped_by:
        return "\n" + _("It was ended early by {by}.", by=mention(job.stopped_by))
    return "\n" + _("It was ended early by a person.")


@dataclass(frozen=True, kw_only=True)
class _ExportedFile:
    file: FileToSend
    #: `12 MiB`.
    size: str
    #: How to load it, in one line.
    use: str

    @property
    def is_folder(self) -> bool:
        return not PurePath(self.file.path).suffix


def _exported_file(job: Job, context: JobContext, event: Exported) -> _ExportedFile:
    path = PurePath(event.path)
    # The file name of an embedding is the word in the prompt.
    name = path.name if event.format is ExportFormat.EMBEDDING else f"{job.name}-{event.format}{path.suffix}"
    file = FileToSend(folder=context.job_dir, path=event.path, name=name)
    return _ExportedFile(file=file, size=size(event.bytes), use=_use(job, event.format, file))


def _use(job: Job, kind: ExportFormat, file: FileToSend) -> str:
    name = file.name
    match kind:
        case ExportFormat.DIFFUSERS if job.spec.method.kind is MethodKind.FULL:
            return "diffusers: `DiffusionPipeline.from_pretrained(folder)`"
        case ExportFormat.DIFFUSERS if not PurePath(file.path).suffix:
            return "peft: `PeftModel.from_pretrained(pipe.unet, folder)`"
        case ExportFormat.DIFFUSERS:
            return f"diffusers: `pipe.load_lora_weights('{name}')`"
        case ExportFormat.KOHYA:
            return _(
                "A1111, Forge, ComfyUI: `{file}` into the Lora folder, then `<lora:{name}-kohya:1>` in the prompt",
                file=name,
                name=job.name,
            )
        case ExportFormat.EMBEDDING:
            return _(
                "diffusers: `pipe.load_textual_inversion('{file}')`; "
                "A1111, ComfyUI: `{file}` into the embeddings folder",
                file=name,
            )
        case ExportFormat.CHECKPOINT:
            return _("A1111, Forge, ComfyUI: `{file}` into the checkpoints folder", file=name)
        case ExportFormat.TRANSFORMERS:
            return "transformers: `AutoModelForImageClassification.from_pretrained(folder)`"


def _how_to_use(job: Job, weights: Sequence[_ExportedFile], sent: Sequence[FileToSend], hint: str = "") -> str | None:
    """The files and how to load each; `hint`: a line if some are not in the message."""
    if not weights:
        return None
    lines = [_("**Your files**")]
    for each in weights:
        lines.append(f"• {each.use} · {each.size}")
        if each.is_folder:
            lines.append("-# " + _("A folder, on the machine: `{path}`", path=each.file.public_path))
        elif each.file not in sent:
            lines.append("-# " + _not_sent(each))
    if hint and any(not each.is_folder and each.file not in sent for each in weights):
        lines.append(f"-# {hint}")
    if trigger := job.spec.training.trigger:
        lines.append("• " + _("Use **{trigger}** in the prompt: it is the trigger word.", trigger=escape(trigger, 60)))
    return "\n".join(lines)


def _not_sent(each: _ExportedFile) -> str:
    path = each.file.public_path
    try:
        each.file.locate()
    except FileNotFoundError:
        return _("It is no longer on the machine: `{path}`", path=path)
    return _("Too large to send here ({size}); it is on the machine: `{path}`", size=each.size, path=path)


def files_hint(job: Job) -> str:
    """Where to get what a post does not carry: the limit for a member's own answer may be larger."""
    return _("`/job files id:{job}` tries to hand over what is missing here.", job=job.id)


def _product(job: Job) -> str:
    if job.spec.task is not TaskKind.DIFFUSION:
        return _("classifier")
    if job.spec.method.kind is MethodKind.TEXTUAL_INVERSION:
        return _("new word")
    return _PRODUCTS.get(job.spec.method.kind) or _("model")


def _result(job: Job, finished: Finished | None, tested: Tested | None) -> str:
    sentences = [_("your {product} is ready.", product=_product(job))]
    if finished is None:
        return sentences[0]
    epoch = _("best epoch {epoch} of {epochs}", epoch=finished.best_epoch, epochs=finished.epochs)
    if finished.stopped_early:
        epoch += " " + _("(early stop)")
    sentences.append(
        _(
            "Validation loss **{ratio}× the base's** ({loss} instead of {base_loss}), {best_epoch}, in {duration}.",
            ratio=f"{finished.best_ratio:.2f}",
            loss=f"{finished.best_loss:.4f}",
            base_loss=f"{finished.base_loss:.4f}",
            best_epoch=epoch,
            duration=duration(finished.seconds),
        )
    )
    if finished.best_ratio >= 1:
        sentences.append(_("That is no better than the base: look at the samples before you use it."))
    if tested:
        sentences.append(
            _(
                "On the test images, never seen before: {loss} instead of {base_loss}.",
                loss=f"{tested.test.loss:.4f}",
                base_loss=f"{tested.base_loss:.4f}",
            )
        )
        for name, value in tested.metrics.items():
            sentences.append(f"{escape(name.replace('_', ' '), 30).capitalize()} {value:.1%}.")
    return " ".join(sentences)
