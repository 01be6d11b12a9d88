"""How a job ended: done with its files, failed with what to do, cancelled by whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import discord
from discord import ui

from bot.queue.domain.job import Job, State
from bot.queue.domain.verbs import Verb
from bot.ui.card import settings_line
from bot.ui.layout import Colour, FileToSend, MessageContent, box, button, layout, picture, row, sendable
from bot.ui.standing import Standing
from bot.ui.text import duration, plain, size
from trainer.protocol.events import Event, Exported, ExportFormat, Failed, Finished, Stopped, Tested
from trainer.protocol.settings import MethodKind, TaskKind

#: What a finished job hands over.
_THINGS = {
    MethodKind.LORA: "LoRA",
    MethodKind.DORA: "DoRA",
    MethodKind.LOHA: "LoHa",
    MethodKind.LOKR: "LoKr",
    MethodKind.IA3: "(IA)³",
    MethodKind.OFT: "OFT",
    MethodKind.TEXTUAL_INVERSION: "new word",
}


def done_post(job: Job, standing: Standing, events: Sequence[Event]) -> MessageContent:
    """The result: a sentence with its numbers, base and best side by side, the files and how to use them."""
    finished = next((event for event in events if isinstance(event, Finished)), None)
    tested = next((event for event in events if isinstance(event, Tested)), None)
    weights = [_Weights(job, standing.job_dir, event) for event in events if isinstance(event, Exported)]
    comparison = (
        FileToSend(path=standing.job_dir / finished.comparison, name=f"{job.name}-base-and-best.png")
        if finished
        else None
    )
    sent = sendable(
        [*([comparison] if comparison else []), *(each.file for each in weights if not each.is_folder)],
        standing.file_limit,
    )
    shown = picture(comparison, finished.comparison_alt) if comparison in sent and comparison and finished else None
    result = f"<@{job.owner_id}> {_result(job, finished, tested)}{_ended_by(job)}"
    body = box(
        Colour.DONE,
        f"## ✅ #{job.id} {plain(job.name)} is done\n{result}",
        shown,
        _how_to_use(job, weights, sent),
        f"-# {settings_line(job)} · {standing.footer(job)}",
        row(button(job.id, "samples", "Samples", emoji="🖼️")),
    )
    carried = [ui.File[ui.LayoutView](each.file.url) for each in weights if each.file in sent]
    return MessageContent(layout=layout(body, *carried), files=sent, mentions=job.owner_id)


def failed_post(job: Job, standing: Standing, failed: Failed | None, detail: str) -> MessageContent:
    """What happened, why, what to do; the log stays in the log."""
    what = failed.message if failed else detail or job.end_reason or "The trainer ended without a word."
    lines = [f"### ❌ #{job.id} {plain(job.name)} failed", f"<@{job.owner_id}> {plain(what, 1200)}"]
    if failed and failed.hint:
        lines.append(f"→ {plain(failed.hint, 800)}")
    if failed and detail:
        lines.append(plain(detail, 400))
    if failed and job.progress.epochs:
        lines.append(f"The checkpoints up to epoch {job.progress.epochs[-1].epoch} are kept on the machine.")
    retry = row(button(job.id, Verb.RETRY, "Retry", emoji="🔁", style=discord.ButtonStyle.primary))
    body = box(Colour.FAILED, "\n".join(lines), f"-# {settings_line(job)} · {standing.footer(job)}", retry)
    return MessageContent(layout=layout(body), mentions=job.owner_id)


def cancelled_post(job: Job, standing: Standing, stopped: Stopped | None, detail: str = "") -> MessageContent:
    """Who stopped it and what is left of it."""
    by = f" by <@{job.stopped_by}>" if job.stopped_by else ""
    if detail:
        left = plain(detail, 400)
    elif stopped and stopped.checkpoint:
        left = f"It had reached epoch {stopped.epoch}, step {stopped.step:,}; the checkpoint is kept on the machine."
    elif job.progress.epochs:
        left = "Its checkpoints are kept on the machine."
    else:
        left = "Nothing had been trained yet."
    text = f"⬛ **#{job.id} {plain(job.name)}** was cancelled{by}. {left}"
    return MessageContent(layout=layout(box(Colour.WAITING, text, f"-# {standing.footer(job)}")), is_silent=True)


def _ended_by(job: Job) -> str:
    if job.state is not State.STOPPED:
        return ""
    return f"\nIt was ended early{f' by <@{job.stopped_by}>' if job.stopped_by else ' by a person'}."


class _Weights:
    """One exported file or folder, and how to use it."""

    def __init__(self, job: Job, job_dir: Path, event: Exported) -> None:
        path = job_dir / event.path
        self.is_folder = not path.suffix
        self.file = FileToSend(path=path, name=f"{job.name}-{event.format}{path.suffix}")
        if event.format is ExportFormat.EMBEDDING:
            # The name of the file is the word in the prompt.
            self.file = FileToSend(path=path, name=path.name)
        self.size = size(event.bytes)
        self.use = self._use(job, event.format)

    def _use(self, job: Job, kind: ExportFormat) -> str:
        name = self.file.name
        match kind:
            case ExportFormat.DIFFUSERS if job.spec.method.kind is MethodKind.FULL:
                return "diffusers: `DiffusionPipeline.from_pretrained(folder)`"
            case ExportFormat.DIFFUSERS if self.is_folder:
                return "peft: `PeftModel.from_pretrained(pipe.unet, folder)`"
            case ExportFormat.DIFFUSERS:
                return f"diffusers: `pipe.load_lora_weights('{name}')`"
            case ExportFormat.KOHYA:
                use = f"then `<lora:{job.name}-kohya:1>` in the prompt"
                return f"A1111, Forge, ComfyUI: `{name}` into the Lora folder, {use}"
            case ExportFormat.EMBEDDING:
                return (
                    f"diffusers: `pipe.load_textual_inversion('{name}')`;"
                    f" A1111, ComfyUI: `{name}` into the embeddings folder"
                )
            case ExportFormat.CHECKPOINT:
                return f"A1111, Forge, ComfyUI: `{name}` into the checkpoints folder"
            case ExportFormat.TRANSFORMERS:
                return "transformers: `AutoModelForImageClassification.from_pretrained(folder)`"


def _how_to_use(job: Job, weights: Sequence[_Weights], sent: Sequence[FileToSend]) -> str | None:
    if not weights:
        return None
    lines = ["**Your files**"]
    for each in weights:
        lines.append(f"• {each.use} · {each.size}")
        if each.is_folder:
            lines.append(f"-# A folder, on the machine: `{each.file.path}`")
        elif each.file not in sent:
            lines.append(f"-# Too large to send here ({each.size}); it lies in `{each.file.path}`")
    if trigger := job.spec.training.trigger:
        lines.append(f"• Say **{plain(trigger, 60)}** in the prompt: that is the word it was taught.")
    return "\n".join(lines)


def _result(job: Job, finished: Finished | None, tested: Tested | None) -> str:
    thing = _THINGS.get(job.spec.method.kind, "model") if job.spec.task is TaskKind.DIFFUSION else "classifier"
    if finished is None:
        return f"your {thing} is ready."
    early = " (early stop)" if finished.stopped_early else ""
    words = (
        f"your {thing} is ready. Validation loss **{finished.best_ratio:.2f}× the base's**"
        f" ({finished.best_loss:.4f} instead of {finished.base_loss:.4f}),"
        f" best epoch {finished.best_epoch} of {finished.epochs}{early}, in {duration(finished.seconds)}."
    )
    if finished.best_ratio >= 1:
        words += " That is no better than the base: look at the samples before you use it."
    if tested:
        words += f" On the test pictures, never seen before: {tested.test.loss:.4f} instead of {tested.base_loss:.4f}."
        words += "".join(
            f" {plain(name.replace('_', ' '), 30).capitalize()} {value:.1%}." for name, value in tested.metrics.items()
        )
    return words
