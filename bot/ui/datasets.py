"""What people see of a dataset: its report card, the list, and what it says before it is deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import discord
from discord import ui

from bot.datasets import Dataset
from bot.datasets.decisions import is_settled, to_review
from bot.queue.planning.estimates import Estimate
from bot.ui.card import rates_words, size_words
from bot.ui.dataset_buttons import DatasetButton, dataset_button
from bot.ui.layout import Colour, FileToSend, MessageContent, box, layout, picture, row, sendable
from bot.ui.receipts import split_words
from bot.ui.study import order_words
from bot.ui.text import ago, counted, plain, rough_duration, size
from trainer.protocol.report import CaptionStatistics, DatasetReport, Finding, Image
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyOrder

LIST_PAGE = 10
_SHOWN_KINDS, _SHOWN_BUCKETS, _SHOWN_WORDS = 10, 5, 6


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A dataset as its card shows it."""

    dataset: Dataset
    report: DatasetReport
    #: Largest file that the server takes, bytes.
    file_limit: int
    #: Contact sheet that is open, from 0.
    sheet: int = 0
    #: Said above all else.
    note: str = ""
    #: The request that waits for this dataset, and what it would train.
    draft_id: int | None = None
    spec: Spec | None = None
    #: What it asks of these settings, if it is a study.
    study: StudyOrder | None = None
    #: How long that would take; None: no job like it ran yet.
    estimate: Estimate | None = None


def report_card(shown: Shown) -> MessageContent:
    """What is in a dataset, what was found and done, and its contact sheets."""
    dataset, report = shown.dataset, shown.report
    sheet, alt = _sheet(shown)
    body = box(
        Colour.NOTE if _undecided(shown) else Colour.DONE,
        plain(shown.note, 300) or None,
        f"### 🖼️ {plain(dataset.name)} · {counted(report.counts.kept, 'picture')}\n"
        f"-# of <@{dataset.owner_id}> · handed in {ago(dataset.created_at)}",
        plain(dataset.summary, 900),
        "✏️ Decisions are written down and not applied yet; the numbers are from before."
        if dataset.is_pending
        else None,
        "\n".join(_found_lines(report)) or "Nothing was found that would need a look.",
        "\n".join(_numbers(report)),
        picture(sheet, alt) if sheet else None,
        _request(shown),
        *_rows(shown, has_sheet=sheet is not None),
    )
    return MessageContent(layout=layout(body), files=(sheet,) if sheet else ())


def report_file(dataset: Dataset, packed: Path, file_limit: int) -> FileToSend | None:
    """The most telling form of the report that the server takes: pages with pictures, words, numbers."""
    for path in (packed, dataset.folder / "report.md", dataset.folder / "report.json"):
        if found := sendable([FileToSend(path=path, name=f"{dataset.name}-{path.name}")], file_limit):
            return found[0]
    return None


def report_reply(dataset: Dataset, file: FileToSend) -> MessageContent:
    """The report as a file."""
    words = f"The whole report of **{plain(dataset.name)}**: every picture, what was found, and what was done."
    if file.path.suffix == ".zip":
        words += " Unpack it and open report.html."
    return MessageContent(layout=layout(words, ui.File[ui.LayoutView](file.url)), files=(file,))


def dataset_list(datasets: Sequence[tuple[Dataset, int]], *, page: int, count: int) -> MessageContent:
    """Datasets of a server with the bytes that were handed in, the newest first, `LIST_PAGE` a page."""
    lines = [_list_line(dataset, source_bytes) for dataset, source_bytes in datasets]
    pages = max(1, -(-count // LIST_PAGE))
    body = box(
        Colour.WAITING,
        f"### Datasets · {count}",
        "\n".join(lines) or "No datasets yet: `/dataset upload` makes the first.",
        f"-# page {page + 1} of {pages}" if pages > 1 else None,
        row(*_turning(0, "list", page, pages)) if pages > 1 else None,
    )
    return MessageContent(layout=layout(body))


def delete_question(dataset: Dataset) -> MessageContent:
    """Asked once before a dataset is deleted."""
    text = (
        f"Delete **{plain(dataset.name)}** ({counted(dataset.counts.kept, 'picture')} of <@{dataset.owner_id}>)? "
        "Trainings that used it keep what they need; nobody can train on it anew."
    )
    danger = discord.ButtonStyle.danger
    buttons = row(
        dataset_button(dataset.id, "delete", "Delete", style=danger), dataset_button(dataset.id, "spare", "Keep it")
    )
    return MessageContent(layout=layout(box(Colour.FAILED, text, buttons)))


def spec_words(spec: Spec) -> str:
    """What a request would train, in one line."""
    early = ", early stop" if spec.early_stopping.enabled else ""
    parts = (
        f"**{plain(spec.name)}**",
        f"{counted(spec.training.epochs, 'epoch')}{early}",
        f"base {plain(spec.base.source, 60)}",
        f"preset {plain(spec.preset, 40)}",
        size_words(spec),
        f"lr {rates_words(spec)}",
    )
    return " · ".join(part for part in parts if part)


def estimate_words(estimate: Estimate) -> str:
    """`runs about 48 min (4 of 5 like it: 41 min to 1 h 02 min; usually ±15 %)`."""
    asides = []
    if estimate.high_s > estimate.low_s * 1.05:
        asides.append(f"4 of 5 like it: {rough_duration(estimate.low_s)} to {rough_duration(estimate.high_s)}")
    if estimate.usual_error is not None:
        asides.append(f"usually ±{estimate.usual_error:.0%}")
    return f"runs about {rough_duration(estimate.seconds)}" + (f" ({'; '.join(asides)})" if asides else "")


def _undecided(shown: Shown) -> int:
    return sum(not is_settled(each, shown.dataset.edits) for each in to_review(shown.report))


def _found_lines(report: DatasetReport) -> list[str]:
    """`3 blur · 2 near duplicate (dropped)`: kinds with their counts, what was dropped first."""
    kinds = Counter(
        (finding.action, finding.kind.replace("_", " ")) for image in report.images for finding in _distinct(image)
    )
    lines = []
    for action, words in (("dropped", "Dropped"), ("kept", "To look at")):
        found = [(kind, number) for (done, kind), number in kinds.most_common() if done == action]
        if found:
            shown = ", ".join(f"{number} {kind}" for kind, number in found[:_SHOWN_KINDS])
            rest = f" and {len(found) - _SHOWN_KINDS} more kinds" if len(found) > _SHOWN_KINDS else ""
            lines.append(f"{words}: {shown}{rest}")
    if report.refused:
        reasons = Counter(refused.kind.replace("_", " ") for refused in report.refused)
        lines.append("Not opened: " + ", ".join(f"{number} {kind}" for kind, number in reasons.most_common(5)))
    return lines


def _distinct(image: Image) -> list[Finding]:
    """One finding of a kind and an action for each picture: a picture counts once."""
    return list({(finding.kind, finding.action): finding for finding in image.findings}.values())


def _numbers(report: DatasetReport) -> list[str]:
    counts = report.counts
    lines = [f"Split: {split_words(counts)}"]
    if report.advised_folds:
        lines.append(f"Few different pictures: cross-validation in {report.advised_folds} parts would judge it better.")
    captions = f"Captions: {counts.captioned} of {counts.kept}"
    lines.append(captions + (_caption_words(report.captions) if report.captions else ""))
    if counts.automatic:
        lines.append(f"{counted(counts.automatic, 'caption')} by a model, not looked at yet")
    if report.buckets:
        shown = sorted(report.buckets, key=lambda bucket: -bucket.images)[:_SHOWN_BUCKETS]
        words = ", ".join(f"{each.images} at {each.width}×{each.height} ({each.mean_cropped:.0%})" for each in shown)
        rest = f" and {len(report.buckets) - len(shown)} more sizes" if len(report.buckets) > len(shown) else ""
        lines.append(f"-# trained at {report.resolution} px, share cut away: {words}{rest}")
    return lines


def _caption_words(captions: CaptionStatistics) -> str:
    words = (
        f", {captions.distinct} different · {captions.median_tokens:g} tokens, the longest {captions.longest_tokens}"
    )
    if captions.too_long:
        words += f", {captions.too_long} too long"
    if captions.trigger:
        words += f" · “{plain(captions.trigger, 50)}” in {captions.with_trigger}"
    common = ", ".join(f"{plain(each.word, 30)} ×{each.images}" for each in captions.words[:_SHOWN_WORDS])
    return f"{words} · {common}" if common else words


def _sheet(shown: Shown) -> tuple[FileToSend | None, str]:
    sheets = shown.report.sheets
    if not 0 <= shown.sheet < len(sheets):
        return None, ""
    dataset = shown.dataset
    # The revision in the name: a client goes on showing the picture that it has under a name.
    name = f"{dataset.name}-{dataset.folder.name}-{shown.sheet + 1}.png"
    file = FileToSend(path=dataset.folder / sheets[shown.sheet], name=name)
    if not sendable([file], shown.file_limit):
        return None, ""
    counts = shown.report.counts
    alt = (
        f"Contact sheet {shown.sheet + 1} of {len(sheets)} of {dataset.name}: its pictures with their numbers, "
        f"{split_words(counts)}, then {counts.dropped} dropped."
    )
    return file, alt


def _request(shown: Shown) -> str | None:
    if shown.spec is None:
        return None
    kind = "" if shown.study is None else f"{order_words(shown.study)} of "
    run = f"\n{estimate_words(shown.estimate)}" if shown.estimate else ""
    return f"{kind}{spec_words(shown.spec)}{run}\nNothing is queued yet. **Go on** with this dataset?"


def _rows(shown: Shown, *, has_sheet: bool) -> list[ui.ActionRow[ui.LayoutView]]:
    dataset, draft = shown.dataset, shown.draft_id
    review: list[DatasetButton] = []
    if reviewable := to_review(shown.report):
        undecided = _undecided(shown)
        words = f"Review {counted(undecided, 'finding')}" if undecided else f"Review {len(reviewable)} again"
        review.append(dataset_button(dataset.id, "review", words if draft is None else f"Fix: {words.lower()}"))
    if dataset.is_pending:
        review.append(dataset_button(dataset.id, "done", "Apply decisions"))
    review.append(dataset_button(dataset.id, "report", "Download report"))
    rows = [row(*review)]
    if has_sheet and len(shown.report.sheets) > 1:
        tail = "" if draft is None else f"d{draft}"
        rows.insert(0, row(*_turning(dataset.id, "sheet", shown.sheet, len(shown.report.sheets), tail)))
    if draft is not None:
        go = dataset_button(dataset.id, "go", "Go on", arg=draft, style=discord.ButtonStyle.success)
        rows.append(row(go, dataset_button(dataset.id, "cancel", "Cancel", arg=draft)))
    return rows


def _turning(dataset_id: int, verb: str, page: int, pages: int, tail: str = "") -> tuple[DatasetButton, DatasetButton]:
    """◀ ▶; what there is no page for cannot be pressed, but has an id of its own."""
    return (
        dataset_button(dataset_id, verb, emoji="◀️", arg=f"{max(page - 1, 0)}{tail}", is_disabled=page <= 0),
        dataset_button(dataset_id, verb, emoji="▶️", arg=f"{page + 1}{tail}", is_disabled=page >= pages - 1),
    )


def _list_line(dataset: Dataset, source_bytes: int) -> str:
    counts = dataset.counts
    dropped = f", {counts.dropped} dropped" if counts.dropped else ""
    return (
        f"**{plain(dataset.name)}** · {counted(counts.kept, 'picture')}{dropped}, {counts.captioned} captioned"
        f" · {size(source_bytes)} · <@{dataset.owner_id}> · {ago(dataset.created_at)}"
    )
