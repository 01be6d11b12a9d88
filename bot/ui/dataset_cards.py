"""What members see of a dataset: its report card, the list of datasets, and the question before it is deleted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import discord
from discord import ui

from bot.datasets import Dataset
from bot.datasets.decisions import CAPTIONS, review_questions, undecided_images
from bot.queue.planning.estimates import Estimate
from bot.ui.buttons import DatasetButton, dataset_button
from bot.ui.discord_text import escape, mention, relative_time
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable
from bot.ui.study_card import request_words
from bot.ui.training_plan import StudyPlan, estimate_line, plan_lines, study_lines
from trainer.exchange.dataset_dir import SHARED_PAGE
from trainer.protocol.bucket_shapes import ResolutionFit
from trainer.protocol.finding_labels import main_kind, tally
from trainer.protocol.report import Counts, DatasetReport
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyRequest
from trainer.protocol.text import _, listed, ngettext, size

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
    #: What the trainings of the study need.
    study_plan: StudyPlan | None = None
    #: What the draft's resolution means for the images; None if it is not known.
    fit: ResolutionFit | None = None
    #: None: no comparable job has run yet.
    estimate: Estimate | None = None
    #: That the training needs with one image at once, bytes; None: not known.
    memory: int | None = None
    #: The member who sees it may change the dataset, or owns it.
    may_change: bool = True
    #: There are web pages.
    has_pages: bool = False
    is_own: bool = True


def confirm_card(view: ReportView, spec: Spec) -> MessageContent:
    """What a draft would train, and on which images; nothing is queued before its owner says so."""
    dataset = view.dataset
    sheet, alt = _sheet(view)
    body = box(
        Color.NOTE if _undecided(view) else Color.DONE,
        escape(view.note, 300) or None,
        f"### {_('Train “{name}”?', name=escape(spec.name))}\n-# {_('Nothing is queued yet.')}",
        _plan(view, spec),
        "\n".join([_("**Images**: {images}", images=dataset_words(view.report)), *skipped_lines(view.report)]),
        _posts_words(view),
        _pending_words(dataset),
        _decision_words(view),
        _answers(dataset.id, view.draft_id) if view.draft_id is not None else None,
        image_gallery(sheet, alt) if sheet else None,
        *_rows(view, has_sheet=sheet is not None),
    )
    return MessageContent(layout=layout(body), files=(sheet,) if sheet else ())


def privacy_words(dataset: Dataset) -> str:
    """Who sees a dataset."""
    if not dataset.is_private:
        return _("🔓 Everyone here who may see datasets sees **{name}**.", name=escape(dataset.name))
    people = [mention(dataset.owner_id), *map(mention, dataset.guests), _("managers of the server")]
    return _("🔒 Private: only {people} see it.", people=listed(people))


def _posts_words(view: ReportView) -> str | None:
    """What a training with a private dataset shows to others."""
    if not view.dataset.is_private:
        return None
    if view.is_own:
        return _("🔒 Your dataset is private. What this training draws is still shown in this channel.")
    owner = mention(view.dataset.owner_id)
    return _("🔒 {owner}'s dataset is private, so this training shows no pictures in the channel.", owner=owner)


def _pending_words(dataset: Dataset) -> str | None:
    if not dataset.is_pending:
        return None
    return _("✏️ Your decisions are saved but not applied yet; the numbers are from before.")


def _answers(dataset_id: int, draft_id: int) -> ui.ActionRow[ui.LayoutView]:
    style = discord.ButtonStyle.success
    return row(
        dataset_button(dataset_id, "go", _("Start training"), arg=draft_id, style=style),
        dataset_button(dataset_id, "edit", _("Edit"), arg=draft_id),
        dataset_button(dataset_id, "advanced", _("Advanced…"), arg=draft_id),
        dataset_button(dataset_id, "cancel", _("Cancel"), arg=draft_id),
    )


def report_card(view: ReportView) -> MessageContent:
    """What is in a dataset, what was found and done, and its contact sheets; of a draft, also what it would train."""
    if view.spec is not None:
        return confirm_card(view, view.spec)
    dataset, report = view.dataset, view.report
    sheet, alt = _sheet(view)
    body = box(
        Color.NOTE if _undecided(view) else Color.DONE,
        escape(view.note, 300) or None,
        f"### 🖼️ {escape(dataset.name)} · {images_words(report.counts.kept)}\n"
        f"-# {_('of {owner}', owner=mention(dataset.owner_id))}"
        f" · {_('uploaded {when}', when=relative_time(dataset.created_at))}",
        privacy_words(dataset) if dataset.is_private else None,
        "\n".join(escape(line, 300) for line in dataset.summary.splitlines()[:_SHOWN_SENTENCES]),
        _pending_words(dataset),
        _decision_words(view),
        _caption_words(report) or None,
        image_gallery(sheet, alt) if sheet else None,
        *_rows(view, has_sheet=sheet is not None),
    )
    return MessageContent(layout=layout(body), files=(sheet,) if sheet else ())


def shared_page(dataset: Dataset, file_limit: int) -> FileToSend | None:
    """The report as one page that opens anywhere; None if it is too large for that."""
    file = FileToSend(folder=dataset.folder, path=SHARED_PAGE, name=f"{dataset.name}-report.html")
    return next(iter(sendable([file], file_limit)), None)


def report_file(dataset: Dataset, packed: Path, file_limit: int) -> FileToSend | None:
    """The most complete form of the report that the server accepts: pages with images, text, numbers."""
    for folder, path in ((packed.parent, packed.name), (dataset.folder, "report.md"), (dataset.folder, "report.json")):
        if found := sendable([FileToSend(folder=folder, path=path, name=f"{dataset.name}-{path}")], file_limit):
            return found[0]
    return None


def report_reply(dataset: Dataset, file: FileToSend) -> MessageContent:
    """The report as a file."""
    words = _("The report of **{name}**: every image, what was found, and what was done.", name=escape(dataset.name))
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
        f"**{escape(dataset.name)}**" + (" 🔒" if dataset.is_private else ""),
        images + ", " + _("{n} captioned", n=counts.captioned),
        size(dataset.bytes),
        mention(dataset.owner_id),
        relative_time(dataset.created_at),
    ]
    return " · ".join(parts)


def captions_card(dataset: Dataset, *, can_write: bool) -> MessageContent:
    """How many images have a caption, and the ways to change them.

    Args:
        dataset: As it is.
        can_write: A model for captions is set up.
    """
    missing = dataset.counts.kept - dataset.counts.captioned
    lines = [f"### {_('Captions of {name}', name=escape(dataset.name))}"]
    if missing:
        lines.append(
            ngettext(
                "{n} of {all} images has no caption. Then only the image is learned, not its name.",
                "{n} of {all} images have no caption. Then only the images are learned, not their names.",
                missing,
                all=dataset.counts.kept,
            )
        )
    else:
        lines.append(_("Each image has a caption."))
    if dataset.counts.automatic:
        lines.append(
            ngettext(
                "{n} caption was written by a model and not read by anyone yet.",
                "{n} captions were written by a model and not read by anyone yet.",
                dataset.counts.automatic,
            )
        )
    buttons = [
        dataset_button(dataset.id, "each", _("One by one"), arg=CAPTIONS, style=discord.ButtonStyle.primary),
        dataset_button(dataset.id, "rules", _("Change all at once")),
    ]
    if can_write and missing:
        label = ngettext("Let a model write {n}", "Let a model write {n}", missing)
        buttons.append(dataset_button(dataset.id, "write", label))
    return MessageContent(layout=layout(box(Color.WAITING, "\n".join(lines), row(*buttons))))


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
    """`22 different captions · most frequent words: fox (12), snow (7)`: what the summary does not say."""
    captions = report.captions
    if captions is None or not report.counts.captioned:
        return ""
    words = ngettext("{n} different caption", "{n} different captions", captions.distinct)
    common = _(", ").join(f"{escape(each.word, 30)} ({each.images})" for each in captions.words[:_SHOWN_WORDS])
    if common:
        words += " · " + _("most frequent words: {words}", words=common)
    return f"-# {words}"


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


def _plan(view: ReportView, spec: Spec) -> str:
    lines = plan_lines(spec, view.report, view.fit, view.memory)
    if view.study is None:
        lines.append(estimate_line(view.estimate))
    else:
        lines[:0] = [
            _("**Study**: {study}", study=request_words(view.study)),
            *(study_lines(view.study_plan) if view.study_plan else ()),
        ]
    return "\n".join(lines)


def _rows(view: ReportView, *, has_sheet: bool) -> list[ui.ActionRow[ui.LayoutView]]:
    dataset, draft = view.dataset, view.draft_id
    first: list[DatasetButton] = []
    second = [dataset_button(dataset.id, "report", _("Report"))]
    if view.has_pages:
        second.append(dataset_button(dataset.id, "web", _("Open page")))
    if draft is None:
        style = discord.ButtonStyle.success
        first.append(dataset_button(dataset.id, "train", _("Fine-tune with this"), style=style))
    if review_questions(view.report):
        undecided = _undecided(view) if view.may_change else 0
        first.append(dataset_button(dataset.id, "review", _review_label(undecided)))
    if view.may_change:
        second.insert(0, dataset_button(dataset.id, "captions", _("Captions")))
        if draft is None:
            second.append(dataset_button(dataset.id, "privacy", _("Who sees it…")))
        if dataset.is_pending:
            second.append(dataset_button(dataset.id, "done", _("Apply decisions")))
    # On a phone three buttons fit beside each other.
    rows = [row(*first, *second)] if len(first) + len(second) <= 3 else [row(*first), row(*second)]
    if has_sheet and len(view.report.sheets) > 1:
        tail = "" if draft is None else f"d{draft}"
        rows.insert(0, row(*_page_buttons(dataset.id, "sheet", view.sheet, len(view.report.sheets), tail)))
    return rows


def _review_label(undecided: int) -> str:
    if not undecided:
        return _("What was found")
    return ngettext("Review {n} image", "Review {n} images", undecided)


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
