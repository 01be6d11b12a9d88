"""What members see of a dataset: its report card, the list of datasets, and the question before it is deleted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import discord
from discord import ui

from bot.datasets import Dataset
from bot.datasets.decisions import review_questions, undecided_images
from bot.queue.planning.estimates import Estimate
from bot.ui.buttons import DatasetButton, dataset_button
from bot.ui.discord_text import escape, mention, relative_time
from bot.ui.job_card import rank_words, rates_words
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable
from bot.ui.study_card import request_words
from trainer.protocol.bucket_shapes import ResolutionFit
from trainer.protocol.finding_labels import main_kind, tally
from trainer.protocol.report import Counts, DatasetReport
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyRequest
from trainer.protocol.text import _, ngettext, rough_duration, size

LIST_PAGE = 10
#: Most frequent words of the captions, and sentences of the summary.
_SHOWN_WORDS, _SHOWN_SENTENCES = 6, 16
#: Skipped images that a receipt names; the rest is counted.
_SHOWN_SKIPPED = 8


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
    #: What the draft's resolution means for the images; None if its base does not tell.
    fit: ResolutionFit | None = None
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
        "\n".join(escape(line, 300) for line in dataset.summary.splitlines()[:_SHOWN_SENTENCES]),
        pending if dataset.is_pending else None,
        _decision_words(view),
        _caption_words(report) or None,
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


def _decision_words(view: ReportView) -> str:
    """`**3 images need a decision**: 2 perhaps blurred, 1 blank`, with the decisions that no report contains yet."""
    open_kinds = [
        question.kind
        for question in review_questions(view.report)
        if question.needs_decision
        for _each in question.undecided(view.dataset.edits)
    ]
    if not open_kinds:
        return _("Nothing needs a decision.")
    words = ngettext("**{n} image needs a decision**", "**{n} images need a decision**", _undecided(view))
    kinds = [tally(open_kinds)]
    if automatic := open_kinds.count(None):
        kinds.append(ngettext("{n} caption by a model", "{n} captions by a model", automatic))
    return f"{words}: {', '.join(filter(None, kinds))}"


def _undecided(view: ReportView) -> int:
    return undecided_images(review_questions(view.report), view.dataset.edits)


def _caption_words(report: DatasetReport) -> str:
    """`Captions: 22 distinct · 2 tokens, the longest 4 · fox ×12`: what the summary does not tell."""
    captions = report.captions
    if captions is None or not report.counts.captioned:
        return ""
    words = _(
        "Captions: {distinct} distinct · {median} tokens, the longest {longest}",
        distinct=captions.distinct,
        median=f"{captions.median_tokens:g}",
        longest=captions.longest_tokens,
    )
    common = ", ".join(f"{escape(each.word, 30)} ×{each.images}" for each in captions.words[:_SHOWN_WORDS])
    return f"-# {words} · {common}" if common else f"-# {words}"


def size_words(fit: ResolutionFit) -> str:
    """`trained at 1024 px: 41 of 60 images are enlarged, up to 3.4 times; 4% is cropped on average`."""
    if fit.enlarged:
        enlarged = ngettext(
            "{n} of {all} images is enlarged, {times} times",
            "{n} of {all} images are enlarged, up to {times} times",
            fit.enlarged,
            all=len(fit.images),
            times=f"{fit.most_enlarged:.1f}",
        )
    else:
        enlarged = _("no image is enlarged")
    return _(
        "trained at {px} px: {enlarged}; {share} is cropped on average",
        px=fit.resolution,
        enlarged=enlarged,
        share=f"{fit.mean_cropped:.0%}",
    )


def _sheet(view: ReportView) -> tuple[FileToSend | None, str]:
    sheets = view.report.sheets
    if not 0 <= view.sheet < len(sheets):
        return None, ""
    dataset = view.dataset
    # The revision is part of the name: clients keep showing an image that they have under a name.
    name = f"{dataset.name}-{dataset.folder.name}-{view.sheet + 1}{PurePath(sheets[view.sheet]).suffix}"
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
    if view.fit:
        lines.append(size_words(view.fit))
    if view.estimate:
        lines.append(estimate_words(view.estimate))
    lines.append(_("Nothing is queued yet. **Go on** with this dataset?"))
    return "\n".join(lines)


def _rows(view: ReportView, *, has_sheet: bool) -> list[ui.ActionRow[ui.LayoutView]]:
    dataset, draft = view.dataset, view.draft_id
    review: list[DatasetButton] = []
    if review_questions(view.report):
        review.append(dataset_button(dataset.id, "review", _review_label(_undecided(view), draft)))
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


def _review_label(undecided: int, draft_id: int | None) -> str:
    if not undecided:
        return _("Review the findings")
    if draft_id is None:
        return ngettext("Review {n} image", "Review {n} images", undecided)
    return ngettext("Fix: review {n} image", "Fix: review {n} images", undecided)


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
        dropped = tally(main_kind(image) for image in report.images if image.status == "dropped")
        reasons = ", ".join(filter(None, (dropped, tally(refused.kind for refused in report.refused))))
        words += ", " + _("{n} skipped ({reasons})", n=skipped, reasons=reasons)
    captions = _("all captioned") if counts.captioned == counts.kept else _("{n} captioned", n=counts.captioned)
    return f"{words}, {captions} · {_('split {split}', split=split_words(counts))}"


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
