"""One image of a review: what it shows, what was found in it, and what may be decided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import discord

from bot.datasets import Dataset
from bot.datasets.decisions import ReviewImage, current_caption, is_settled
from bot.ui.buttons import DatasetButton, dataset_button
from bot.ui.discord_text import escape
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable
from trainer.protocol.report import CAPTION_BY_HAND, Finding
from trainer.protocol.text import _, ngettext

_SHOWN_FINDINGS = 8


def review_page(
    dataset: Dataset, images: Sequence[ReviewImage], index: int, *, file_limit: int, note: str = ""
) -> MessageContent:
    """The image at `index` of those to review, with all decisions so far."""
    each = images[index]
    file = _file(dataset, each, file_limit)
    left = sum(not is_settled(other, dataset.edits) for other in images)
    title = _("Review of {name} · {number} of {count}", name=escape(dataset.name), number=index + 1, count=len(images))
    body = box(
        Color.DONE if is_settled(each, dataset.edits) else Color.NOTE,
        note or None,
        f"### {title}\n{_('**Image {number}**', number=each.number)} · {escape(each.image.source, 120)}",
        image_gallery(file, _alt(dataset, each)) if file else None,
        "\n".join([*map(_finding_line, each.image.findings[:_SHOWN_FINDINGS]), *_state_lines(dataset, each)]),
        "-# " + (_("{n} left to decide", n=left) if left else _("All decided: **Done** applies it.")),
        row(*_decision_buttons(dataset, each)),
        row(
            dataset_button(dataset.id, "prev", emoji="◀️", arg=each.key, is_disabled=index == 0),
            dataset_button(dataset.id, "next", emoji="▶️", arg=each.key, is_disabled=index == len(images) - 1),
            dataset_button(dataset.id, "done", _("Done")),
        ),
    )
    return MessageContent(layout=layout(body), files=(file,) if file else ())


def nothing_to_review(dataset: Dataset) -> str:
    """The answer in place of an empty review."""
    return _("Nothing in {name} needs a look: no findings, and no captions by a model.", name=escape(dataset.name))


def decided_words(each: ReviewImage, verb: str) -> str:
    """What a press did, shown above the next image."""
    number = each.number
    match verb:
        case "keep":
            return _("✓ Image {number} is kept.", number=number)
        case "drop":
            return _("✓ Image {number} is dropped.", number=number)
        case "right":
            return _("✓ The caption of image {number} is right.", number=number)
        case _:
            return _("✓ Image {number} has its new caption.", number=number)


def _decision_buttons(dataset: Dataset, each: ReviewImage) -> list[DatasetButton]:
    styles = discord.ButtonStyle
    buttons = [
        dataset_button(dataset.id, "keep", _("Keep"), arg=each.key, style=styles.success),
        dataset_button(dataset.id, "drop", _("Drop"), arg=each.key, style=styles.danger),
        dataset_button(dataset.id, "caption", _("Edit caption"), arg=each.key),
    ]
    if each.image.is_caption_automatic:
        buttons.append(dataset_button(dataset.id, "right", _("Looks right"), arg=each.key))
    return buttons


def _finding_line(finding: Finding) -> str:
    """`• blur · kept: the edges are blurred (measured 1.32, limit 1.00)`."""
    words = f"• **{finding.kind.replace('_', ' ')}** · {finding.action}: {escape(finding.message, 250)}"
    if finding.measure is not None and finding.threshold is not None:
        measure, limit = f"{finding.measure:.3g}", f"{finding.threshold:.3g}"
        words += " " + _("(measured {measure}, limit {limit})", measure=measure, limit=limit)
    if finding.other is not None and finding.other not in finding.message:
        words += " · " + _("other: {name}", name=escape(finding.other, 100))
    return words


def _state_lines(dataset: Dataset, each: ReviewImage) -> list[str]:
    edits = dataset.edits
    lines = _caption_lines(dataset, each)
    if decision := edits.decisions.get(each.sha256):
        lines.append(_("Decided: **{decision}**", decision=decision))
    return lines


def _caption_lines(dataset: Dataset, each: ReviewImage) -> list[str]:
    edits, image = dataset.edits, each.image
    caption = current_caption(image, edits)
    if not caption:
        return [_("No caption.")]
    is_by_hand = each.sha256 in edits.captions
    parts = [ngettext("{n} word", "{n} words", len(caption.split()))]
    if source := CAPTION_BY_HAND if is_by_hand else image.caption_source or "":
        parts.append(escape(source, 80))
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
    parts = [_("Image {number}, {source}.", number=each.number, source=each.image.source)]
    if each.image.findings:
        kinds = ", ".join(finding.kind.replace("_", " ") for finding in each.image.findings)
        parts.append(_("Found: {kinds}.", kinds=kinds))
    parts.append(_("Caption: {caption}", caption=current_caption(each.image, dataset.edits) or _("none")))
    return " ".join(parts)
