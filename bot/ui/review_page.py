"""The pages of a review: a question about all images with one finding, and a single image of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import discord

from bot.datasets import Dataset
from bot.datasets.decisions import EVERY, ReviewImage, ReviewQuestion, current_caption, undecided_images
from bot.ui.buttons import DatasetButton, dataset_button
from bot.ui.discord_text import escape, mention
from bot.ui.layout import (
    MAX_FILES,
    Color,
    FileToSend,
    MessageContent,
    box,
    image_gallery,
    images_gallery,
    layout,
    row,
    sendable,
)
from trainer.protocol.finding_labels import label, limit_words
from trainer.protocol.report import CAPTION_BY_HAND, Finding
from trainer.protocol.text import _, listed, ngettext

_SHOWN_FINDINGS = 8
#: Numbers of images in one line.
_SHOWN_NUMBERS = 12


@dataclass(frozen=True, kw_only=True)
class ReviewView:
    """A review as its pages show it."""

    dataset: Dataset
    questions: Sequence[ReviewQuestion]
    question: ReviewQuestion
    #: Largest file that the server accepts, bytes.
    file_limit: int
    #: What was decided by the press before.
    note: str = ""
    #: The member may decide; others may look.
    may_change: bool = True


def question_page(view: ReviewView) -> MessageContent:
    """A question about all of its images; about the image itself if there is only one."""
    dataset, questions, question = view.dataset, view.questions, view.question
    if len(question.images) == 1:
        return image_page(view, question.images[0])
    shown = [(each, file) for each in question.images[:MAX_FILES] if (file := _file(dataset, each, view.file_limit))]
    index = questions.index(question)
    turns = (("◀️", index - 1, index == 0), ("▶️", index + 1, index == len(questions) - 1))
    body = box(
        Color.NOTE if question.needs_decision and question.undecided(dataset.edits) else Color.DONE,
        view.note or None,
        f"### {_title(view)}\n{_question_words(question)}",
        images_gallery((file, _alt(dataset, each)) for each, file in shown) if shown else None,
        "\n".join(_decided_lines(dataset, question)),
        _left_words(view),
        row(*_all_buttons(view)),
        row(
            *(
                dataset_button(
                    dataset.id,
                    "question",
                    emoji=emoji,
                    arg=questions[min(max(to, 0), len(questions) - 1)].key,
                    is_disabled=is_end,
                )
                for emoji, to, is_end in turns
                if len(questions) > 1
            ),
            dataset_button(dataset.id, "done", _("Done")),
        ),
    )
    return MessageContent(layout=layout(body), files=tuple(file for _each, file in shown))


def image_page(view: ReviewView, each: ReviewImage) -> MessageContent:
    """One image of a question, with all decisions so far."""
    dataset, questions, question = view.dataset, view.questions, view.question
    file = _file(dataset, each, view.file_limit)
    number, count = question.images.index(each) + 1, len(question.images)
    position = " · " + _("{number} of {count}", number=number, count=count) if count > 1 else ""
    is_first = question is questions[0] and number == 1
    is_last = question is questions[-1] and number == count
    arg = f"{each.key}-{question.key}"
    has_overview = count > 1 and not question.is_about_captions
    decisions = _decision_buttons(dataset, question, arg) if view.may_change else []
    findings = [_finding_line(finding, each) for finding in each.image.findings[:_SHOWN_FINDINGS]]
    body = box(
        Color.DONE if question.is_settled(each, dataset.edits) or not question.needs_decision else Color.NOTE,
        view.note or None,
        f"### {_title(view)}{position}\n"
        f"{_('**Image {number}**', number=each.number)} · {escape(_short(each.image.source, each), 120)}",
        image_gallery(file, _alt(dataset, each)) if file else None,
        "\n".join([*findings, *_state_lines(dataset, each)]),
        _left_words(view),
        row(*decisions) if decisions else None,
        row(
            dataset_button(dataset.id, "prev", emoji="◀️", arg=arg, is_disabled=is_first),
            dataset_button(dataset.id, "next", emoji="▶️", arg=arg, is_disabled=is_last),
            *([dataset_button(dataset.id, "question", _("All together"), arg=question.key)] if has_overview else []),
            dataset_button(dataset.id, "done", _("Done")),
        ),
    )
    return MessageContent(layout=layout(body), files=(file,) if file else ())


def nothing_to_review(dataset: Dataset) -> str:
    """The answer in place of an empty review."""
    return _("Nothing in {name} needs a look: no findings, and no captions by a model.", name=escape(dataset.name))


def decided_words(images: Sequence[ReviewImage], verb: str) -> str:
    """What a press did, shown above the next page."""
    which = _image_words(images)
    match verb:
        case "keep":
            return ngettext("✓ {which} is kept.", "✓ {which} are kept.", len(images), which=which)
        case "drop":
            return ngettext("✓ {which} is dropped.", "✓ {which} are dropped.", len(images), which=which)
        case "right":
            return ngettext(
                "✓ The caption of {which} is right.", "✓ The captions of {which} are right.", len(images), which=which
            )
        case _:
            return _("✓ {which} has its new caption.", which=which)


def _image_words(images: Sequence[ReviewImage]) -> str:
    return ngettext("Image {numbers}", "Images {numbers}", len(images), numbers=_numbers(images))


def _title(view: ReviewView) -> str:
    name, questions, question = escape(view.dataset.name), view.questions, view.question
    if question.is_about_captions:
        return _("Captions of {name}", name=name)
    title = _("Review of {name}", name=name)
    if len(questions) > 1:
        title += " · " + _("{number} of {count}", number=questions.index(question) + 1, count=len(questions))
    return f"{title} · {question_heading(question)}"


def question_heading(question: ReviewQuestion) -> str:
    """What is decided about the images of a question."""
    if question.kind is None:
        return _("Captions by a model")
    heading = label(question.kind).heading
    return _("Dropped: {finding}", finding=heading) if question.is_dropped else heading


def _question_words(question: ReviewQuestion) -> str:
    meaning = _("Written by a model and not reviewed yet.") if question.kind is None else label(question.kind).meaning
    which = _("{n} images: no. {numbers}.", n=len(question.images), numbers=_numbers(question.images))
    return f"{meaning}\n{which}"


def _numbers(images: Iterable[ReviewImage]) -> str:
    return listed((str(each.number) for each in images), most=_SHOWN_NUMBERS)


def _decided_lines(dataset: Dataset, question: ReviewQuestion) -> list[str]:
    """What is decided about its images: `Kept: no. 3 and 4`."""
    edits = dataset.edits
    lines = []
    if kept := [each for each in question.images if edits.decisions.get(each.sha256) == "keep"]:
        lines.append(_("Kept: no. {numbers}", numbers=_numbers(kept)))
    if dropped := [each for each in question.images if edits.decisions.get(each.sha256) == "drop"]:
        lines.append(_("Dropped: no. {numbers}", numbers=_numbers(dropped)))
    return lines


def _left_words(view: ReviewView) -> str:
    dataset = view.dataset
    if view.question.is_about_captions:
        left = len(view.question.undecided(dataset.edits))
        words = ngettext("{n} image has no caption", "{n} images have no caption", left) if left else ""
        pending = _("**Done** applies what you wrote.") if dataset.is_pending else ""
        return "-# " + " · ".join(filter(None, (words, pending))) if words or pending else ""
    if not view.may_change:
        return "-# " + _("Only {owner} or a manager of the server can decide.", owner=mention(dataset.owner_id))
    if left := undecided_images(view.questions, dataset.edits):
        return "-# " + ngettext("{n} image left to decide", "{n} images left to decide", left)
    if dataset.is_pending:
        return "-# " + _("All decided: **Done** applies it.")
    return "-# " + _("Nothing needs a decision, but you can change any.")


def _all_buttons(view: ReviewView) -> list[DatasetButton]:
    dataset, question, styles = view.dataset, view.question, discord.ButtonStyle
    one_by_one = dataset_button(dataset.id, "each", _("One by one"), arg=question.key)
    if not view.may_change:
        return [one_by_one]
    undecided, count = len(question.undecided(dataset.edits)), len(question.images)
    if 0 < undecided < count:
        keep, drop = _("Keep the other {n}", n=undecided), _("Drop the other {n}", n=undecided)
        right = _("The other {n} look right", n=undecided)
    else:
        keep, drop, right = _("Keep all {n}", n=count), _("Drop all {n}", n=count), _("All {n} look right", n=count)
    arg = question.key if undecided else EVERY + question.key
    verb, label = ("right", right) if question.kind is None else ("keep", keep)
    return [
        dataset_button(dataset.id, verb, label, arg=arg, style=styles.success),
        dataset_button(dataset.id, "drop", drop, arg=arg, style=styles.danger),
        one_by_one,
    ]


def _decision_buttons(dataset: Dataset, question: ReviewQuestion, arg: str) -> list[DatasetButton]:
    styles = discord.ButtonStyle
    if question.is_about_captions:
        written = dataset_button(dataset.id, "caption", _("Write caption"), arg=arg, style=styles.primary)
        return [written, dataset_button(dataset.id, "drop", _("Drop image"), arg=arg)]
    verb, label = ("right", _("Looks right")) if question.kind is None else ("keep", _("Keep"))
    return [
        dataset_button(dataset.id, verb, label, arg=arg, style=styles.success),
        dataset_button(dataset.id, "drop", _("Drop"), arg=arg, style=styles.danger),
        dataset_button(dataset.id, "caption", _("Edit caption"), arg=arg),
    ]


def _short(text: str, each: ReviewImage) -> str:
    """Name files by their path in the archive that the image is from: `set.zip!images/1.png` → `images/1.png`."""
    archive = each.image.source[: each.image.source.rfind("!") + 1]
    return text.replace(archive, "") if archive else text


def _finding_line(finding: Finding, each: ReviewImage) -> str:
    """`• Perhaps blurred: even its sharpest edges are soft (32 % over the limit)`."""
    words = f"• **{label(finding.kind).heading}**: {escape(_short(finding.message, each), 250)}"
    if beyond := limit_words(finding):
        words += f" ({beyond})"
    if finding.other is not None and finding.other not in finding.message:
        words += " · " + _("other: {name}", name=escape(_short(finding.other, each), 100))
    return words


def _state_lines(dataset: Dataset, each: ReviewImage) -> list[str]:
    lines = _caption_lines(dataset, each)
    if each.sha256 in dataset.edits.crops:
        lines.append(_("**Cropped** by hand: only a part of it is trained on."))
    match dataset.edits.decisions.get(each.sha256):
        case "keep":
            lines.append(_("**Kept** by hand."))
        case "drop":
            lines.append(_("**Dropped** by hand."))
        case None if each.image.status == "dropped":
            lines.append(_("**Dropped** because of this."))
    return lines


def _caption_lines(dataset: Dataset, each: ReviewImage) -> list[str]:
    edits, image = dataset.edits, each.image
    caption = current_caption(image, edits)
    if not caption:
        return [_("No caption.")]
    is_by_hand = each.sha256 in edits.captions
    parts = [ngettext("{n} word", "{n} words", len(caption.split()))]
    if source := CAPTION_BY_HAND if is_by_hand else image.caption_source or "":
        parts.append(escape(_short(source, each), 80))
        if image.is_caption_automatic and not is_by_hand:
            parts.append(_("reviewed") if each.sha256 in edits.reviewed else _("not reviewed yet"))
    return [_("Caption: {caption}", caption=escape(caption, 400)), f"-# {' · '.join(parts)}"]


def _file(dataset: Dataset, each: ReviewImage, file_limit: int) -> FileToSend | None:
    for path in (each.image.thumbnail, each.image.path):
        if path is None:
            continue
        file = FileToSend(folder=dataset.folder, path=path, name=f"image-{each.number}{PurePath(path).suffix}")
        if sendable([file], file_limit):
            return file
    return None


def _alt(dataset: Dataset, each: ReviewImage) -> str:
    parts = [_("Image {number}, {source}.", number=each.number, source=_short(each.image.source, each))]
    if each.image.findings:
        kinds = ", ".join(label(finding.kind).heading for finding in each.image.findings)
        parts.append(_("Found: {kinds}.", kinds=kinds))
    parts.append(_("Caption: {caption}", caption=current_caption(each.image, dataset.edits) or _("none")))
    return " ".join(parts)
