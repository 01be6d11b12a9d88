"""The posts at the end of a training: done with its files, failed with advice, or cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from discord import ui

from bot.queue.domain.job import Job, State
from bot.queue.domain.verbs import Verb, is_applicable, is_drawable
from bot.ui.buttons import JobButton, job_button, page_button
from bot.ui.discord_text import escape, inline_code, mention
from bot.ui.job_card import files_button, finished_words, metric_words, settings_line
from bot.ui.job_context import JobContext, job_name
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable, text_message
from bot.ui.remedies import failure_buttons, failure_lines, remedy_buttons, share_button
from bot.ui.sample_pages import TRY_PROMPTS
from trainer.protocol.events import (
    Event,
    Exported,
    ExportFormat,
    Failed,
    FailureKind,
    Finished,
    Reader,
    Stopped,
    Tested,
    last_of,
)
from trainer.protocol.exported_files import loading_code, name_of, newest_files
from trainer.protocol.settings import TINY, MethodKind, SplitKind, TaskKind
from trainer.protocol.text import _, ngettext, noise_levels, size, verdict

_LIBRARIES = {Reader.DIFFUSERS, Reader.PEFT, Reader.TRANSFORMERS}


def files_messages(job: Job, context: JobContext, events: Sequence[Event]) -> list[MessageContent]:
    """All files of a job for one person, the report last, in as many messages as they need; empty if there are none."""
    files = [_exported_file(job, context, event) for event in newest_files(events)]
    # Of the files of epochs only the newest are kept.
    files = [each for each in files if each.exported.epoch is None or each.is_there]
    report = _report_file(job, context, events)
    return split_files(
        [each.file for each in files if not each.is_folder] + ([report] if report and files else []),
        context.file_limit,
        lambda sent: _how_to_use(job, files, sent),
        title=job_name(job),
    )


def _report_file(job: Job, context: JobContext, events: Sequence[Event]) -> FileToSend | None:
    """The report of a training (one page with its pictures in it); None if there is none."""
    finished = last_of(events, Finished)
    if finished is None or finished.shared_report is None:
        return None
    return FileToSend(folder=context.job_dir, path=finished.shared_report, name=f"{job.name}-report.html")


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
    """The result: base and best side by side, then the verdict, then the file that most people need."""
    finished = last_of(events, Finished)
    tested = last_of(events, Tested)
    weights = [_exported_file(job, context, event) for event in newest_files(events)]
    main = _main_file(weights)
    comparison = None
    if finished:
        comparison = FileToSend(folder=context.job_dir, path=finished.comparison, name=f"{job.name}-base-and-best.png")
    report = _report_file(job, context, events)
    wanted = [comparison, None if main is None or main.is_folder else main.file, report]
    sent = sendable([file for file in wanted if file is not None], context.file_limit)
    shown = image_gallery(comparison, finished.comparison_alt) if finished and comparison in sent else None
    is_no_better = finished is not None and not finished.best_ratio < 1
    sign, color = ("⚠️", Color.NOTE) if is_no_better else ("✅", Color.DONE)
    body = box(
        color,
        f"## {sign} {_('#{job} {name} is done', job=job.id, name=escape(job.name))} · {mention(job.owner_id)}",
        shown,
        "\n".join(_result_lines(job, finished, tested)),
        _main_file_words(job, main, sent, has_pages=context.has_pages),
        f"-# {settings_line(job)}",
        row(*_done_buttons(job, context, is_no_better=is_no_better)),
    )
    carried = [ui.File[ui.LayoutView](file.url) for file in sent if file is not comparison]
    return MessageContent(layout=layout(body, *carried), files=sent, mentions=(job.owner_id,))


def _done_buttons(job: Job, context: JobContext, *, is_no_better: bool) -> list[JobButton]:
    """What most people do next, in one row; the rest is below the details."""
    found = remedy_buttons(job, FailureKind.DIVERGED) if is_no_better else []
    found.append(files_button(job.id))
    if is_drawable(job):
        found.append(job_button(job.id, TRY_PROMPTS, _("Try prompts"), emoji="🎨"))
    if is_applicable(Verb.SHARE, job) and not is_no_better:
        found.append(share_button(job.id))
    if context.has_pages:
        found.append(page_button(job.id))
    return [*found, job_button(job.id, "details", _("More…"))]


def failed_post(job: Job, context: JobContext, failed: Failed | None, detail: str) -> MessageContent:
    """What happened, why, and what to do; the log stays in the log."""
    lines = failure_lines(job, _("#{job} {name} failed", job=job.id, name=escape(job.name)), failed, detail)
    if failed and detail:
        lines.append(escape(detail, 400))
    if failed and job.progress.epochs:
        epoch = job.progress.epochs[-1].epoch
        lines.append(_("What it learned up to epoch {epoch} is kept.", epoch=epoch))
    buttons = [*failure_buttons(job.changed(terminal_event=failed)), job_button(job.id, "details", _("Details"))]
    body = box(Color.FAILED, "\n".join(lines), f"-# {settings_line(job)}", row(*buttons))
    return MessageContent(layout=layout(body), mentions=(job.owner_id,))


def cancelled_post(job: Job, context: JobContext, stopped: Stopped | None, detail: str = "") -> MessageContent:
    """Who cancelled a job, and what is left of it."""
    if detail:
        left = escape(detail, 400)
    elif job.progress.epochs:
        left = _(
            "What it learned up to epoch {epoch} is kept: Retry continues from there.", epoch=job.progress.kept_epoch
        )
    elif stopped and stopped.checkpoint:
        left = _("What it has learned so far is kept: Retry continues from there.")
    else:
        left = _("Nothing had been trained yet.")
    name = job_name(job)
    if job.stopped_by:
        cancelled = _("{job} was cancelled by {by}.", job=name, by=mention(job.stopped_by))
    else:
        cancelled = _("{job} was cancelled.", job=name)
    return MessageContent(layout=layout(box(Color.WAITING, f"🚫 {cancelled} {left}")), is_silent=True)


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
    file = FileToSend(folder=context.job_dir, path=event.path, name=name_of(event, job.name))
    return _ExportedFile(exported=event, file=file)


def _main_file(weights: Sequence[_ExportedFile]) -> _ExportedFile | None:
    """The file that most people need: of the best epoch, one that the most programs read; a folder only if alone."""
    best = [each for each in weights if each.exported.epoch is None]
    # Of two that as many programs read, not the one for libraries.
    return max(
        best,
        key=lambda each: (
            not each.is_folder,
            len(each.exported.readers),
            each.exported.format is not ExportFormat.DIFFUSERS,
        ),
        default=None,
    )


def _main_file_words(
    job: Job, main: _ExportedFile | None, sent: Sequence[FileToSend], *, has_pages: bool
) -> str | None:
    """The file, how to load it, and the trigger word."""
    if main is None:
        return None
    lines = list(_file_lines(main, sent))
    if not main.is_folder and main.file not in sent:
        lines.append(f"-# {files_hint(has_pages=has_pages)}")
    if trigger := trigger_line(job):
        lines.append(trigger)
    return "\n".join(lines)


def trigger_line(job: Job) -> str:
    """How to call up what was learned; empty if there is no trigger word."""
    trigger = job.spec.training.trigger
    return (
        _("Use **{trigger}** in your prompt: it is the trigger word.", trigger=escape(trigger, 60)) if trigger else ""
    )


def _file_lines(each: _ExportedFile, sent: Sequence[FileToSend]) -> Iterator[str]:
    name = PurePath(each.file.path).name if each.is_folder else each.file.name
    yield f"📦 `{name}` · {each.size}"
    yield from (f"-# {use}" for use in _uses(each.exported, name))
    if each.is_folder:
        yield "-# " + _("A folder, on the machine: `{path}`", path=each.file.public_path)
    elif each.file not in sent:
        yield "-# " + _not_sent(each)


def _how_to_use(job: Job, weights: Sequence[_ExportedFile], sent: Sequence[FileToSend]) -> str | None:
    """All files and how to load each."""
    if not weights:
        return None
    lines: list[str] = []
    for each in weights:
        if each.exported.epoch is None:
            lines += _file_lines(each, sent)
    lines += _epoch_lines(job, [each for each in weights if each.exported.epoch is not None], sent)
    if trigger := trigger_line(job):
        lines.append(trigger)
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
        yield _("Programs cannot tell from this file that it needs v-prediction: choose *v-prediction* by hand.")
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


def files_hint(*, has_pages: bool) -> str:
    """Where to get what a post does not carry: the limit for a member's own answer may be larger."""
    if has_pages:
        return _("[Open page] has it, whatever its size.")
    return _("[All files] tries to hand it over to you alone: your own limit may be larger.")


def _product(job: Job) -> str:
    if job.spec.task is not TaskKind.DIFFUSION:
        return _("classifier")
    if job.spec.method.kind is MethodKind.TEXTUAL_INVERSION:
        return _("new word")
    return job.spec.method.kind.adapter_name or _("model")


def _result_lines(job: Job, finished: Finished | None, tested: Tested | None) -> list[str]:
    """The verdict first, then what it rests on."""
    if finished is None:
        return [_("Your {product} is ready.", product=_product(job)), *_ended_by(job)]
    lines = [finished_words(job, finished), *_ended_by(job)]
    if not finished.best_ratio < 1:
        lines.append(
            _(
                "Look at the samples before you use it. A third of the learning rate often helps; so do captions that "
                "say what the images show."
            )
        )
    if job.spec.base.source == TINY:
        lines.append(
            _(
                "This is the toy model of the demo: it draws simple shapes at 64 px. For photos or drawings of your "
                "own, use a real base model."
            )
        )
    if job.spec.split.kind is SplitKind.ALL:
        lines.append(_("It was measured on its own training images, because no others were set aside."))
    best = next((ended for ended in job.progress.epochs if ended.epoch == finished.best_epoch), None)
    if best and (levels := noise_levels([band.ratio for band in best.validation.bands])):
        lines.append("-# " + _("Where it learned: {levels}.", levels=levels))
    if tested:
        test = tested.test
        on_test = verdict(test.ratio, test.ratio_low, test.ratio_high)
        lines.append("-# " + _("On the test images, which it never saw: {verdict}.", verdict=on_test))
        lines += [f"-# {words}" for words in metric_words(tested.metrics)]
    return lines


def _ended_by(job: Job) -> list[str]:
    if job.state is not State.STOPPED:
        return []
    return [
        _("Stopped early by {by}.", by=mention(job.stopped_by)) if job.stopped_by else _("Stopped early by a person.")
    ]
