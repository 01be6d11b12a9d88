"""The posts that a training makes on its way: base, epoch, early stop, warning, lost, paused."""

from __future__ import annotations

from pathlib import Path

import discord

from bot.queue.domain.job import Job
from bot.queue.domain.verbs import Verb
from bot.ui.card import best_of, paused_line, validation_words
from bot.ui.layout import Colour, FileToSend, MessageContent, box, button, layout, picture, row, sendable
from bot.ui.standing import Standing
from bot.ui.text import counted, duration, plain, rough_duration, sparkline, trend
from trainer.protocol.events import BaseValidated, EpochEnded, Sampled, StageBegan, StoppedEarly

#: Blocks of the model that a post names.
_MOST_PARTS = 8


def base_post(job: Job, standing: Standing, sampled: Sampled | None, validated: BaseValidated | None) -> MessageContent:
    """What the base model draws and loses before the first step: the measure of all that follows."""
    line = f"{_head(job)} · **before training** · base {plain(Path(job.spec.base.source).name, 60)}"
    if validated:
        line += f" · val loss {validated.validation.loss:.4f} = 1.00×"
    return _with_sheet(job, standing, line, sampled)


def epoch_post(job: Job, standing: Standing, sampled: Sampled | None, ended: EpochEnded) -> MessageContent:
    """One epoch, in one line and one picture."""
    known = tuple(epoch for epoch in job.progress.epochs if epoch.epoch < ended.epoch)
    history = (*known, ended)
    before = known[-1].train_loss if known else None
    line = (
        f"{_head(job)} · **epoch {ended.epoch}/{job.spec.training.epochs}**"
        f" · loss {ended.train_loss:.4f}{trend(ended.train_loss, before)}"
        f" · {validation_words(ended, best_of(history))}{_measures(ended)}"
        f" · {duration(ended.seconds)} · {sparkline([epoch.validation.ratio for epoch in history])}"
    )
    return _with_sheet(job, standing, line, sampled)


def early_stop_post(job: Job, standing: Standing, stopped: StoppedEarly) -> MessageContent:
    """Why it ends before its last epoch, what is kept, what that saved."""
    text = (
        f"⏹ {_head(job)} · **early stop at epoch {stopped.epoch}/{job.spec.training.epochs}**\n"
        f"{plain(stopped.reason, 400)}\n"
        f"Kept: epoch {stopped.best_epoch} (val {stopped.best_ratio:.2f}× base)"
        f" · saved {counted(stopped.epochs_saved, 'epoch')}, about {rough_duration(stopped.seconds_saved)}"
    )
    return MessageContent(layout=layout(box(Colour.STOPPING, text, f"-# {standing.footer(job)}")), is_silent=True)


def stage_post(job: Job, standing: Standing, began: StageBegan) -> MessageContent:
    """What is trained from here on, and how fast."""
    name = f" “{plain(began.name, 40)}”" if began.name else ""
    parts = [part for part in began.parts if part.trainable]
    listed = ", ".join(plain(part.name, 60) for part in parts[:_MOST_PARTS])
    more = f" and {len(parts) - _MOST_PARTS} more" if len(parts) > _MOST_PARTS else ""
    text = (
        f"🔓 {_head(job)} · **stage {began.stage}{name}**, epochs {began.first_epoch}–{began.last_epoch}"
        f" · {began.trainable_parameters:,} weights at lr {began.learning_rate:g} ({plain(began.optimizer, 40)},"
        f" {plain(began.schedule, 40)}) · {began.resolution} px\n-# {listed}{more}"
    )
    return MessageContent(layout=layout(f"{text}\n-# {standing.footer(job)}"), is_silent=True)


def warning_post(job: Job, standing: Standing, message: str) -> MessageContent:
    text = f"⚠️ {_head(job)} · {plain(message, 1000)}"
    return MessageContent(layout=layout(box(Colour.NOTE, text, f"-# {standing.footer(job)}")), is_silent=True)


def lost_post(job: Job, standing: Standing, detail: str) -> MessageContent:
    """A start came to nothing (its process died, or it failed in a way that may pass), and the job goes on."""
    happened = detail.removeprefix(f"#{job.id} ") or "This start was lost; the job goes on."
    text = f"🔌 {_head(job)} · {plain(happened, 1000)}"
    return MessageContent(layout=layout(box(Colour.NOTE, text, f"-# {standing.footer(job)}")), is_silent=True)


def paused_post(job: Job, standing: Standing, detail: str) -> MessageContent:
    """Who paused it, and how it goes on; the buttons are here too: the card may be far up."""
    text = f"⏸️ {_head(job)} · {paused_line(job, None)}"
    if detail:
        text += f" {plain(detail, 400)}"
    buttons = row(
        button(job.id, Verb.RESUME, "Resume", style=discord.ButtonStyle.success),
        button(job.id, Verb.CANCEL, "Cancel", style=discord.ButtonStyle.danger),
    )
    body = box(Colour.WAITING, text, f"-# {standing.footer(job)}", buttons)
    return MessageContent(layout=layout(body), is_silent=True)


def samples_alt(sampled: Sampled) -> str:
    """What the sheet shows: prompts and seeds, in reading order."""
    pictures = "; ".join(f"{n}. “{s.prompt}” (seed {s.seed})" for n, s in enumerate(sampled.samples, start=1))
    when = "Base model" if sampled.epoch == 0 else f"Epoch {sampled.epoch}"
    return f"{when}, {counted(len(sampled.samples), 'sample')}: {pictures}"


def _measures(ended: EpochEnded) -> str:
    """` · gap 4 % · accuracy 92 %`: what else was measured."""
    gap = "" if ended.gap is None else f" · gap {ended.gap:.0%}"
    return gap + "".join(f" · {_words(name)} {share:.0%}" for name, share in ended.metrics.items())


def _words(name: str) -> str:
    return plain(name.replace("_", " "), 30)


def _head(job: Job) -> str:
    return f"**#{job.id} {plain(job.name)}**"


def _with_sheet(job: Job, standing: Standing, line: str, sampled: Sampled | None) -> MessageContent:
    footer = f"-# {standing.footer(job)}"
    if sampled is None:
        return MessageContent(layout=layout(f"{line}\n{footer}"), is_silent=True)
    file = FileToSend(path=standing.job_dir / sampled.sheet, name=f"samples-e{sampled.epoch}.png")
    if not sendable([file], standing.file_limit):
        note = f"-# The sample sheet is missing or larger than this server takes: {plain(str(file.path))}"
        return MessageContent(layout=layout(f"{line}\n{note}\n{footer}"), is_silent=True)
    body = layout(line, picture(file, samples_alt(sampled)), footer)
    return MessageContent(layout=body, files=(file,), is_silent=True)
