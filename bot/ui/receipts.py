"""What the person who asked is told, and nobody else: the receipt, the sample sheet, the state of a job."""

from __future__ import annotations

import os
from collections import Counter

from bot.queue.domain.job import Job, Priority
from bot.ui.card import best_of, settings_line, share_done, state_words
from bot.ui.layout import Colour, FileToSend, MessageContent, box, button, layout, picture, row, sendable
from bot.ui.posts import samples_alt
from bot.ui.standing import Standing
from bot.ui.text import counted, ordinal, plain
from bot.ui.waiting import waiting_lines
from trainer.protocol.events import Sampled
from trainer.protocol.report import Counts, DatasetReport

#: How many skipped pictures are named; the rest is counted.
_SHOWN_SKIPPED = 8
#: Kinds of what was left out that are counted as things.
_THINGS = {"archive", "duplicate", "link", "outlier", "screenshot"}


def receipt(job: Job, standing: Standing, report: DatasetReport) -> MessageContent:
    """What was accepted, where it stands in line and when it is expected to start, what was kept of the pictures."""
    line = f" · {ordinal(standing.place)} in line" if standing.place else ""
    spec = job.spec
    early = f", early stop after {spec.early_stopping.patience} without gain" if spec.early_stopping.enabled else ""
    text = (
        f"✅ **Queued #{job.id} “{plain(job.name)}”**{line}\n"
        f"{dataset_words(report)}\n"
        f"{counted(spec.training.epochs, 'epoch')}{early} · {settings_line(job)}"
    )
    outlook = [*waiting_lines(job, standing), *_order_words(job)]
    skipped = skipped_lines(report)
    body = box(
        Colour.DONE,
        text,
        "\n".join(outlook) or None,
        "\n".join(skipped) if skipped else None,
        row(button(job.id, "cancel", "Cancel")),
    )
    return MessageContent(layout=layout(body))


def _order_words(job: Job) -> list[str]:
    """What was asked for beyond the usual: `low priority · 2 GPUs`."""
    words = [] if job.priority is Priority.NORMAL else [f"{job.priority.name.lower()} priority"]
    words += [f"{job.gpus} GPUs"] if job.gpus > 1 else []
    return [" · ".join(words)] if words else []


def dataset_words(report: DatasetReport) -> str:
    """`37 images, 2 skipped (1 corrupt, 1 exact duplicate) · split 26 train / 5 validation / 4 test`."""
    counts = report.counts
    words = counted(counts.kept, "image")
    reasons = skipped_reasons(report)
    if skipped := counts.dropped + counts.refused:
        words += f", {skipped} skipped ({', '.join(_reason(number, why) for why, number in reasons.most_common(5))})"
    captions = "all captioned" if counts.captioned == counts.kept else f"{counts.captioned} captioned"
    return f"{words}, {captions} · split {split_words(counts)}"


def _reason(number: int, why: str) -> str:
    """`2 exact duplicates`, `2 too small`: some kinds are things, some say how a picture is."""
    return counted(number, why) if why.split()[-1] in _THINGS else f"{number} {why}"


def split_words(counts: Counts) -> str:
    return f"{counts.train} train / {counts.validation} validation / {counts.test} test"


def skipped_reasons(report: DatasetReport) -> Counter[str]:
    """Why pictures and files were left out, in words, counted."""
    reasons: Counter[str] = Counter()
    for image in report.images:
        if image.status == "dropped":
            kinds = [finding.kind for finding in image.findings if finding.action == "dropped"]
            reasons[(kinds[0] if kinds else "dropped").replace("_", " ")] += 1
    for refused in report.refused:
        reasons[refused.kind.replace("_", " ")] += 1
    return reasons


def skipped_lines(report: DatasetReport) -> list[str]:
    """The skipped ones by name, the first few; without the folder that all of them share."""
    lines = []
    sources = [image.source for image in report.images] + [refused.source for refused in report.refused]
    shared = _folder(os.path.commonprefix(sources))  # noqa: RUF071 - cut at the end of a folder.
    for image in report.images:
        if image.status == "dropped":
            why = next((finding.message for finding in image.findings if finding.action == "dropped"), "dropped")
            lines.append(_left_out("skipped", image.source, why, shared))
    lines += [_left_out("refused", each.source, each.reason, shared) for each in report.refused]
    rest = len(lines) - _SHOWN_SKIPPED
    return lines if rest <= 0 else [*lines[:_SHOWN_SKIPPED], f"-# … and {rest} more"]


def _folder(path: str) -> str:
    """Up to the last `/`, or the `!` after an archive's name."""
    return path[: max(path.rfind("/"), path.rfind("!")) + 1]


def _left_out(verb: str, source: str, why: str, shared: str) -> str:
    name, why = source.removeprefix(shared), why.replace(shared, "") if shared else why
    return f"-# {verb} {plain(name, 80)}: {plain(why, 120)}"


def samples_reply(job: Job, standing: Standing, sampled: Sampled | None) -> MessageContent:
    """The newest sample sheet."""
    if sampled is None:
        return said(f"#{job.id} has drawn no samples yet.")
    when = "before training (base model)" if sampled.epoch == 0 else f"after epoch {sampled.epoch}"
    file = FileToSend(path=standing.job_dir / sampled.sheet, name=f"samples-e{sampled.epoch}.png")
    prompts = "\n".join(
        f"-# {number}. {plain(sample.prompt, 150)} · seed {sample.seed}"
        for number, sample in enumerate(sampled.samples, start=1)
    )
    if not sendable([file], standing.file_limit):
        return said(f"The sample sheet of #{job.id} is missing or larger than this server takes: {file.path}")
    title = f"**#{job.id} {plain(job.name)}** · samples {when}"
    return MessageContent(layout=layout(title, picture(file, samples_alt(sampled)), prompts), files=(file,))


def said(sentence: str) -> MessageContent:
    """One sentence, as it is."""
    return MessageContent(layout=layout(sentence))


def job_choice(job: Job) -> str:
    """A job in an autocomplete list: `#42 · fox-lora · running 61 %` (no markdown there)."""
    percent = f" {share_done(job):.0%}" if job.progress.step and not job.state.is_end else ""
    return f"#{job.id} · {job.name} · {job.state}{percent}"[:100]


def job_line(job: Job, place: int | None = None, *, is_among_waiting: bool = False) -> str:
    """A job in a list, one line; among those that wait, its place says enough."""
    sign, words, _ = state_words(job)
    percent = f" {share_done(job):.0%}" if job.progress.step and not job.state.is_end else ""
    if percent and not job.state.is_active:
        percent = f" at{percent}"
    if place is not None:
        stands = "" if is_among_waiting and not job.attempt else f"{words}{percent} · "
        words, percent = f"{stands}{ordinal(place)} in line", ""
    best = best_of(job.progress.epochs)
    result = f" · best val {best.validation.ratio:.2f}× @ e{best.epoch}" if best else ""
    return f"{sign} **#{job.id} {plain(job.name)}** · <@{job.owner_id}> · {words}{percent}{result}"
