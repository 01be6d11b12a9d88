"""What members see of a dataset: its report card, the list of datasets, and the question before it is deleted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import discord
from discord import ui

from bot.datasets import Dataset
from bot.datasets.decisions import images_to_review, is_settled
from bot.queue.planning.estimates import Estimate
from bot.ui.buttons import DatasetButton, dataset_button
from bot.ui.discord_text import escape, mention, relative_time
from bot.ui.job_card import rank_words, rates_words
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable
from bot.ui.study_card import request_words
from trainer.protocol.report import CaptionStatistics, Counts, DatasetReport, Finding, Image
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyRequest
from trainer.protocol.text import _, ngettext, rough_duration, size

LIST_PAGE = 10
_SHOWN_KINDS, _SHOWN_BUCKETS, _SHOWN_WORDS, _SHOWN_REASONS = 10, 5, 6, 5
#: Skipped images that a receipt names; the rest is counted.
_SHOWN_SKIPPED = 8
#: Last words of the kinds that are nouns.
_NOUNS = frozenset({"archive", "duplicate", "link", "outlier", "screenshot"})


@dataclass(frozen=True, kw_only=True)
class ReportView:
    """A dataset as its card shows it."""

    dataset: Dataset
    report: DatasetReport
    #: Largest file that the server accepts, bytes.
    file_limit: int
    #: Contact sheet that is open, from 0.
    sheet: int = 0
    #: Shown above everything else.
    note: str = ""
    #: The draft that waits for a confirmation, and what it would train.
    draft_id: int | None = None
    spec: Spec | None = None
    study: StudyRequest | None = None
    #: None: no comparable job has run yet.
    estimate: Estimate | None = None


def report_card(view: ReportView) -> MessageContent:
    """What is in a dataset, what was found and done, and its contact sheets."""
    dataset, report = view.dataset, view.report
    sheet, alt = _sheet(view)
    pending = _("✏️ Decisions are stored and not applied yet; the numbers are from before.")
    body = box(
        Color.NOTE if _undecided(view) else Color.DONE,
        escape(view.note, 300) or None,
        f"### 🖼️ {escape(dataset.name)} · {images_words(report.counts.kept)}\n"
        f"-# {_('of {owner}', owner=mention(dataset.owner_id))}"
        f" · {_('uploaded {when}', when=relative_time(dataset.created_at))}",
        escape(dataset.summary, 900),
        pending if dataset.is_pending else None,
        "\n".join(_finding_lines(report)) or _("Nothing was found that needs a look."),
        "\n".join(_numbers(report)),
        image_gallery(sheet, alt) if sheet else None,
        _question(view),
        *_rows(view, has_sheet=sheet is not None),
    )
    return MessageContent(layout=layout(body), files=(sheet,) if sheet else ())


def report_file(dataset: Dataset, packed: Path, file_limit: int) -> FileToSend | None:
    """The most complete form of the report that the server accepts: pages with images, text, numbers."""
    for folder, path in ((packed.parent, packed.name), (dataset.folder, "report.md"), (dataset.folder, "report.json")):
        if found := sendable([FileToSend(folder=folder, path=path, name=f"{dataset.name}-{path}")], file_limit):
            return found[0]
    return None


def report_reply(dataset: Dataset, file: FileToSend) -> MessageContent:
    """The report as a file."""
    words = _("The full report of **{name}**: every image, findings, and actions.", name=escape(dataset.name))
    if file.name.endswith(".zip"):
        words += " " + _("Unpack it and open report.html.")
    return MessageContent(layout=layout(words, ui.File[ui.LayoutView](file.url)), files=(file,))


def dataset_list(datasets: Sequence[Dataset], *, page: int, count: int) -> MessageContent:
    """Datasets of a server, newest first, `LIST_PAGE` on a page."""
    lines = [_list_line(dataset) for dataset in datasets]
    pages = max(1, -(-count // LIST_PAGE))
    body = box(
        Color.WAITING,
        f"### {_('Datasets')} · {count}",
        "\n".join(lines) or _("No datasets yet: `/dataset upload` makes the first."),
        "-# " + _("page {page} of {pages}", page=page + 1, pages=pages) if pages > 1 else None,
        row(*_page_buttons(0, "list", page, pages)) if pages > 1 else None,
    )
    return MessageContent(layout=layout(body))


def _list_line(dataset: Dataset) -> str:
    counts = dataset.counts
    images = images_words(counts.kept)
    if counts.dropped:
        images += ", " + _("{n} dropped", n=counts.dropped)
    parts = [
        f"**{escape(dataset.name)}**",
        images + ", " + _("{n} captioned", n=counts.captioned),
        size(dataset.bytes),
        mention(dataset.owner_id),
        relative_time(dataset.created_at),
    ]
    return " · ".join(parts)


def delete_question(dataset: Dataset) -> MessageContent:
    """Asked once before a dataset is deleted."""
    text = _(
        "Delete **{name}** ({images} of {owner})? "
        "Trainings that used it keep what they need; no new training can use it.",
        name=escape(dataset.name),
        images=images_words(dataset.counts.kept),
        owner=mention(dataset.owner_id),
    )
    buttons = row(
        dataset_button(dataset.id, "delete", _("Delete"), style=discord.ButtonStyle.danger),
        dataset_button(dataset.id, "spare", _("Keep it")),
    )
    return MessageContent(layout=layout(box(Color.FAILED, text, buttons)))


def images_words(count: int) -> str:
    """`37 images`."""
    return ngettext("{n} image", "{n} images", count)


def spec_words(spec: Spec) -> str:
    """What a draft would train, in one line."""
    epochs = ngettext("{n} epoch", "{n} epochs", spec.training.epochs)
    if spec.early_stopping.enabled:
        epochs += ", " + _("early stop")
    parts = (
        f"**{escape(spec.name)}**",
        epochs,
        _("base {name}", name=escape(spec.base.source, 60)),
        _("preset {name}", name=escape(spec.preset, 40)),
        rank_words(spec),
        f"lr {rates_words(spec)}",
    )
    return " · ".join(part for part in parts if part)


def estimate_words(estimate: Estimate) -> str:
    """`runs about 48 min (4 of 5 like it: 41 min to 1 h 02 min; usually ±15 %)`."""
    runs = _("runs about {duration}", duration=rough_duration(estimate.seconds))
    asides = []
    if estimate.high_s > estimate.low_s * 1.05:
        low, high = rough_duration(estimate.low_s), rough_duration(estimate.high_s)
        asides.append(_("4 of 5 like it: {low} to {high}", low=low, high=high))
    if estimate.usual_error is not None:
        asides.append(_("usually ±{error}", error=f"{estimate.usual_error:.0%}"))
    return f"{runs} ({'; '.join(asides)})" if asides else runs


# -- parts of the card --------------------------------------------------------------------------------------------


def _undecided(view: ReportView) -> int:
    return sum(not is_settled(each, view.dataset.edits) for each in images_to_review(view.report))


def _finding_lines(report: DatasetReport) -> list[str]:
    """`Dropped: 2 near duplicate`, `To review: 3 blur`: kinds of findings with their counts."""
    kinds = Counter((finding.action, finding.kind) for image in report.images for finding in _distinct(image))
    lines = []
    for action, title in (("dropped", _("Dropped")), ("kept", _("To review"))):
        found = [(_kind_words(kind), number) for (done, kind), number in kinds.most_common() if done == action]
        if found:
            lines.append(f"{title}: {_counted_kinds(found)}")
    if report.refused:
        reasons = Counter(_kind_words(refused.kind) for refused in report.refused)
        lines.append(_("Not opened: {reasons}", reasons=_counted_kinds(reasons.most_common(_SHOWN_REASONS))))
    return lines


def _counted_kinds(found: Sequence[tuple[str, int]]) -> str:
    words = ", ".join(f"{number} {kind}" for kind, number in found[:_SHOWN_KINDS])
    rest = len(found) - _SHOWN_KINDS
    return ngettext("{words} and {n} more kind", "{words} and {n} more kinds", rest, words=words) if rest > 0 else words


def _kind_words(kind: str) -> str:
    """`near duplicate`: the kind of a finding, in words."""
    return kind.replace("_", " ")


def _distinct(image: Image) -> list[Finding]:
    """One finding per kind and action: an image counts once."""
    return list({(finding.kind, finding.action): finding for finding in image.findings}.values())


def _numbers(report: DatasetReport) -> list[str]:
    counts = report.counts
    lines = [_("Split: {split}", split=split_words(counts))]
    if report.advised_folds:
        lines.append(
            _(
                "There are few distinct images: {folds}-fold cross-validation is more reliable.",
                folds=report.advised_folds,
            )
        )
    captions = _("Captions: {captioned} of {kept}", captioned=counts.captioned, kept=counts.kept)
    lines.append(captions + (_caption_words(report.captions) if report.captions else ""))
    if counts.automatic:
        lines.append(
            ngettext("{n} caption by a model, not reviewed", "{n} captions by a model, not reviewed", counts.automatic)
        )
    if report.buckets:
        lines.append(f"-# {_bucket_words(report)}")
    return lines


def _bucket_words(report: DatasetReport) -> str:
    shown = sorted(report.buckets, key=lambda bucket: -bucket.images)[:_SHOWN_BUCKETS]
    sizes = ", ".join(
        _(
            "{n} at {width}×{height} ({share})",
            n=each.images,
            width=each.width,
            height=each.height,
            share=f"{each.mean_cropped:.0%}",
        )
        for each in shown
    )
    if rest := len(report.buckets) - len(shown):
        sizes = ngettext("{sizes} and {n} more size", "{sizes} and {n} more sizes", rest, sizes=sizes)
    return _("trained at {resolution} px, share cropped: {sizes}", resolution=report.resolution, sizes=sizes)


def _caption_words(captions: CaptionStatistics) -> str:
    words = _(
        ", {distinct} distinct · {median} tokens, the longest {longest}",
        distinct=captions.distinct,
        median=f"{captions.median_tokens:g}",
        longest=captions.longest_tokens,
    )
    if captions.too_long:
        words += ", " + _("{n} too long", n=captions.too_long)
    if captions.trigger:
        words += " · " + _("“{trigger}” in {n}", trigger=escape(captions.trigger, 50), n=captions.with_trigger)
    common = ", ".join(f"{escape(each.word, 30)} ×{each.images}" for each in captions.words[:_SHOWN_WORDS])
    return f"{words} · {common}" if common else words


def _sheet(view: ReportView) -> tuple[FileToSend | None, str]:
    sheets = view.report.sheets
    if not 0 <= view.sheet < len(sheets):
        return None, ""
    dataset = view.dataset
    # The revision is part of the name: clients keep showing an image that they have under a name.
    name = f"{dataset.name}-{dataset.folder.name}-{view.sheet + 1}.png"
    file = FileToSend(folder=dataset.folder, path=sheets[view.sheet], name=name)
    if not sendable([file], view.file_limit):
        return None, ""
    counts = view.report.counts
    alt = _(
        "Contact sheet {sheet} of {sheets} of {name}: its images with their numbers, {split}, then {dropped} dropped.",
        sheet=view.sheet + 1,
        sheets=len(sheets),
        name=dataset.name,
        split=split_words(counts),
        dropped=counts.dropped,
    )
    return file, alt


def _question(view: ReportView) -> str | None:
    if view.spec is None:
        return None
    words = spec_words(view.spec)
    if view.study is not None:
        words = _("{study} of {spec}", study=request_words(view.study), spec=words)
    lines = [words]
    if view.estimate:
        lines.append(estimate_words(view.estimate))
    lines.append(_("Nothing is queued yet. **Go on** with this dataset?"))
    return "\n".join(lines)


def _rows(view: ReportView, *, has_sheet: bool) -> list[ui.ActionRow[ui.LayoutView]]:
    dataset, draft = view.dataset, view.draft_id
    review: list[DatasetButton] = []
    if reviewable := images_to_review(view.report):
        review.append(dataset_button(dataset.id, "review", _review_label(_undecided(view), len(reviewable), draft)))
    if dataset.is_pending:
        review.append(dataset_button(dataset.id, "done", _("Apply decisions")))
    review.append(dataset_button(dataset.id, "report", _("Download report")))
    rows = [row(*review)]
    if has_sheet and len(view.report.sheets) > 1:
        tail = "" if draft is None else f"d{draft}"
        rows.insert(0, row(*_page_buttons(dataset.id, "sheet", view.sheet, len(view.report.sheets), tail)))
    if draft is not None:
        go = dataset_button(dataset.id, "go", _("Go on"), arg=draft, style=discord.ButtonStyle.success)
        rows.append(row(go, dataset_button(dataset.id, "cancel", _("Cancel"), arg=draft)))
    return rows


def _review_label(undecided: int, reviewable: int, draft_id: int | None) -> str:
    if draft_id is None and undecided:
        return ngettext("Review {n} finding", "Review {n} findings", undecided)
    if draft_id is None:
        return _("Review {n} again", n=reviewable)
    if undecided:
        return ngettext("Fix: review {n} finding", "Fix: review {n} findings", undecided)
    return _("Fix: review {n} again", n=reviewable)


def _page_buttons(
    dataset_id: int, verb: str, page: int, pages: int, tail: str = ""
) -> tuple[DatasetButton, DatasetButton]:
    """◀ ▶; at the ends they are disabled, but have an id of their own."""
    return (
        dataset_button(dataset_id, verb, emoji="◀️", arg=f"{max(page - 1, 0)}{tail}", is_disabled=page <= 0),
        dataset_button(dataset_id, verb, emoji="▶️", arg=f"{page + 1}{tail}", is_disabled=page >= pages - 1),
    )


# -- parts of the receipt -----------------------------------------------------------------------------------------


def split_words(counts: Counts) -> str:
    """`26 train / 5 validation / 4 test`."""
    return _(
        "{train} train / {validation} validation / {test} test",
        train=counts.train,
        validation=counts.validation,
        test=counts.test,
    )


def dataset_words(report: DatasetReport) -> str:
    """`37 images, 2 skipped (1 corrupt, 1 exact duplicate), all captioned · split 26 train / …`."""
    counts = report.counts
    words = images_words(counts.kept)
    if skipped := counts.dropped + counts.refused:
        reasons = ", ".join(_counted_reason(n, why) for why, n in skipped_reasons(report).most_common(_SHOWN_REASONS))
        words += ", " + _("{n} skipped ({reasons})", n=skipped, reasons=reasons)
    captions = _("all captioned") if counts.captioned == counts.kept else _("{n} captioned", n=counts.captioned)
    return f"{words}, {captions} · {_('split {split}', split=split_words(counts))}"


def _counted_reason(number: int, why: str) -> str:
    """`2 exact duplicates`, `2 too small`: some kinds are nouns."""
    is_plural = number > 1 and why.split()[-1] in _NOUNS
    return f"{number} {why}s" if is_plural else f"{number} {why}"


def skipped_reasons(report: DatasetReport) -> Counter[str]:
    """Count why images and files were left out."""
    reasons: Counter[str] = Counter()
    for image in report.images:
        if image.status == "dropped":
            kinds = [finding.kind for finding in image.findings if finding.action == "dropped"]
            reasons[_kind_words(kinds[0] if kinds else "dropped")] += 1
    for refused in report.refused:
        reasons[_kind_words(refused.kind)] += 1
    return reasons


def skipped_lines(report: DatasetReport) -> list[str]:
    """Name the first skipped images and files, without the folder that all of them share."""
    sources = [image.source for image in report.images] + [refused.source for refused in report.refused]
    shared = _folder(os.path.commonprefix(sources))  # noqa: RUF071 - cut at the end of a folder.
    lines = []
    for image in report.images:
        if image.status == "dropped":
            why = next((finding.message for finding in image.findings if finding.action == "dropped"), _("dropped"))
            lines.append(_("skipped {name}: {why}", **_left_out(image.source, why, shared)))
    lines += [_("refused {name}: {why}", **_left_out(each.source, each.reason, shared)) for each in report.refused]
    shown = [f"-# {line}" for line in lines[:_SHOWN_SKIPPED]]
    rest = len(lines) - len(shown)
    return [*shown, "-# " + ngettext("… and {n} more", "… and {n} more", rest)] if rest else shown


def _folder(path: str) -> str:
    """Up to the last `/`, or the `!` after an archive's name."""
    return path[: max(path.rfind("/"), path.rfind("!")) + 1]


def _left_out(source: str, why: str, shared: str) -> dict[str, str]:
    name, why = source.removeprefix(shared), why.replace(shared, "") if shared else why
    return {"name": escape(name, 80), "why": escape(why, 120)}
