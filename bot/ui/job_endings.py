"""The posts at the end of a training: done with its files, failed with advice, or cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import discord
from discord import ui

from bot.queue.domain.job import Job, State
from bot.queue.domain.verbs import Verb
from bot.ui.buttons import job_button
from bot.ui.discord_text import escape, inline_code, mention
from bot.ui.job_card import files_button, result_verdict, settings_line
from bot.ui.job_context import JobContext
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable, text_message
from trainer.protocol.events import Event, Exported, ExportFormat, Failed, Finished, Reader, Stopped, Tested
from trainer.protocol.exported_files import loading_code, newest_files
from trainer.protocol.settings import MethodKind, SplitKind, TaskKind
from trainer.protocol.text import _, duration, ngettext, noise_levels, size, verdict

_LIBRARIES = {Reader.DIFFUSERS, Reader.PEFT, Reader.TRANSFORMERS}
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
    files = [_exported_file(job, context, event) for event in newest_files(events)]
    # Of the files of epochs only the newest are kept.
    files = [each for each in files if each.exported.epoch is None or each.is_there]
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
    weights = [_exported_file(job, context, event) for event in newest_files(events)]
    best = [each.file for each in weights if each.exported.epoch is None and not each.is_folder]
    comparison = None
    if finished:
        comparison = FileToSend(folder=context.job_dir, path=finished.comparison, name=f"{job.name}-base-and-best.png")
    sent = sendable(
        [*([comparison] if comparison else []), *best],
        context.file_limit,
    )
    shown = image_gallery(comparison, finished.comparison_alt) if finished and comparison in sent else None
    is_no_better = finished is not None and finished.best_ratio >= 1
    sign, color = ("⚠️", Color.NOTE) if is_no_better else ("✅", Color.DONE)
    body = box(
        color,
        f"## {sign} {_('#{job} {name} is done', job=job.id, name=escape(job.name))}\n"
        f"{mention(job.owner_id)} {_result(job, finished, tested)}{_ended_by(job)}",
        shown,
        _how_to_use(job, weights, sent, files_hint(job)),
        f"-# {settings_line(job)} · {context.footer(job)}",
        row(job_button(job.id, "samples", _("Samples"), emoji="🖼️"), files_button(job.id)),
    )
    carried = [ui.File[ui.LayoutView](file.url) for file in best if file in sent]
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
    exported: Exported
    file: FileToSend

    @property
    def is_folder(self) -> bool:
        return not PurePath(self.file.path).suffix

    @property
    def is_there(self) -> bool:
        try:
            self.file.locate()
        except FileNotFoundError:
            return False
        return True

    @property
    def size(self) -> str:
        """`12 MiB`."""
        return size(self.exported.bytes)


def _exported_file(job: Job, context: JobContext, event: Exported) -> _ExportedFile:
    path = PurePath(event.path)
    # The file name of an embedding is the word in the prompt; that of an epoch has its number.
    is_named = event.format is ExportFormat.EMBEDDING or event.epoch is not None
    name = path.name if is_named else f"{job.name}-{event.format}{path.suffix}"
    return _ExportedFile(exported=event, file=FileToSend(folder=context.job_dir, path=event.path, name=name))


def _how_to_use(job: Job, weights: Sequence[_ExportedFile], sent: Sequence[FileToSend], hint: str = "") -> str | None:
    """The files and how to load each; `hint`: a line if some are not in the message."""
    if not weights:
        return None
    lines = [_("**Your files**")]
    best = [each for each in weights if each.exported.epoch is None]
    for each in best:
        name = PurePath(each.file.path).name if each.is_folder else each.file.name
        lines.append(f"• `{name}` · {each.size}")
        lines += [f"-# {use}" for use in _uses(each.exported, name)]
        if each.is_folder:
            lines.append("-# " + _("A folder, on the machine: `{path}`", path=each.file.public_path))
        elif each.file not in sent:
            lines.append("-# " + _not_sent(each))
    lines += _epoch_lines(job, [each for each in weights if each.exported.epoch is not None], sent)
    if hint and any(not each.is_folder and each.file not in sent for each in best):
        lines.append(f"-# {hint}")
    if trigger := job.spec.training.trigger:
        lines.append("• " + _("Use **{trigger}** in the prompt: it is the trigger word.", trigger=escape(trigger, 60)))
    return "\n".join(lines)


def _epoch_lines(job: Job, files: Sequence[_ExportedFile], sent: Sequence[FileToSend]) -> Iterator[str]:
    """The files of other epochs, which are used as that of the best one."""
    if not files:
        return
    epochs = ", ".join(str(each.exported.epoch) for each in files)
    largest = max(files, key=lambda each: each.exported.bytes).size
    what = ngettext("Epoch {epochs}, to compare", "Epochs {epochs}, to compare", len(files), epochs=epochs)
    lacking = [each for each in files if each.file not in sent]
    where = ": " + inline_code(f"/job files id:{job.id}") if len(lacking) == len(files) else ""
    yield f"• {what} · {largest}{where}"
    if not where:
        yield from (f"-# {_not_sent(each)}" for each in lacking)


def _uses(exported: Exported, name: str) -> Iterator[str]:
    """One line for each way to use a file: which programs read it exactly, and how to load it there."""
    if webuis := [each for each in exported.readers if each in {Reader.A1111, Reader.FORGE}]:
        yield _in_webui(exported.format, ", ".join(webuis), PurePath(name).stem)
    if Reader.COMFYUI in exported.readers:
        yield _in_comfyui(exported.format, PurePath(name).stem)
    if Reader.SD_CPP in exported.readers:
        yield _(
            "stable-diffusion.cpp: into the folder of `--lora-model-dir`, then `<lora:{name}:1>` in the prompt",
            name=PurePath(name).stem,
        )
    if code := loading_code(exported, name):
        library = next(each for each in exported.readers if each in _LIBRARIES)
        yield f"{library}: " + " · ".join(inline_code(line) for line in code)
    if exported.format is ExportFormat.CHECKPOINT and not exported.readers:
        yield _("A file of this kind cannot say that the model predicts the velocity: choose *v-prediction* by hand.")
    if set(exported.readers) == {Reader.LYCORIS}:
        yield _("For LyCORIS: no other program reads it exactly.")


def _in_webui(kind: ExportFormat, programs: str, name: str) -> str:
    match kind:
        case ExportFormat.EMBEDDING:
            return _(
                "{programs}: into the embeddings folder, then `{name}` in the prompt", programs=programs, name=name
            )
        case ExportFormat.CHECKPOINT:
            return _("{programs}: into the checkpoints folder", programs=programs)
        case _:
            return _(
                "{programs}: into the Lora folder, then `<lora:{name}:1>` in the prompt", programs=programs, name=name
            )


def _in_comfyui(kind: ExportFormat, name: str) -> str:
    match kind:
        case ExportFormat.EMBEDDING:
            return _("ComfyUI: into `models/embeddings`, then `embedding:{name}` in the prompt", name=name)
        case ExportFormat.CHECKPOINT:
            return _("ComfyUI: into `models/checkpoints`, then the node *Load Checkpoint*")
        case _:
            return _("ComfyUI: into `models/loras`, then the node *Load LoRA*")


def _not_sent(each: _ExportedFile) -> str:
    path = each.file.public_path
    if not each.is_there:
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
    if finished is None:
        return _("your {product} is ready.", product=_product(job))
    epoch = _("epoch {epoch} of {epochs}", epoch=finished.best_epoch, epochs=finished.epochs)
    if finished.stopped_early:
        epoch += _(", stopped early")
    ready = (
        _("your {product} is trained, but it is **{verdict}** ({epoch}, {duration}).")
        if finished.best_ratio >= 1
        else _("your {product} is ready: **{verdict}** ({epoch}, {duration}).")
    )
    values = {"product": _product(job), "verdict": result_verdict(job, finished), "epoch": epoch}
    sentences = [ready.format(**values, duration=duration(finished.seconds))]
    if finished.best_ratio >= 1:
        sentences.append(_("Try a third of the learning rate, and check that the captions say what the images show."))
    if job.spec.split.kind is SplitKind.ALL:
        sentences.append(_("It was measured on its own training images, as none are held out."))
    best = next((ended for ended in job.progress.epochs if ended.epoch == finished.best_epoch), None)
    if best and (levels := noise_levels([band.ratio for band in best.validation.bands])):
        sentences.append(_("By level: {levels}.", levels=levels))
    if tested:
        test = tested.test
        on_test = verdict(test.ratio, test.ratio_low, test.ratio_high)
        sentences.append(_("On the test images, never seen before: {verdict}.", verdict=on_test))
        for name, value in tested.metrics.items():
            sentences.append(f"{escape(name.replace('_', ' '), 30).capitalize()} {value:.1%}.")
    return " ".join(sentences)
