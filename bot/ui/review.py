"""One picture of a review: what it shows, what was found in it, and what may be decided."""

from __future__ import annotations

from collections.abc import Sequence

import discord

from bot.datasets import Dataset
from bot.datasets.decisions import ToReview, caption_now, is_settled
from bot.ui.dataset_buttons import DatasetButton, dataset_button
from bot.ui.layout import Colour, FileToSend, MessageContent, box, layout, picture, row, sendable
from bot.ui.text import counted, plain
from trainer.protocol.report import CAPTION_BY_HAND, Finding


def review_page(
    dataset: Dataset, pictures: Sequence[ToReview], place: int, *, file_limit: int, note: str = ""
) -> MessageContent:
    """The picture at `place` (from 0) of those to review, as it stands with all that was decided so far."""
    each = pictures[place]
    file = _file(dataset, each, file_limit)
    left = sum(not is_settled(other, dataset.edits) for other in pictures)
    body = box(
        Colour.DONE if is_settled(each, dataset.edits) else Colour.NOTE,
        note or None,
        f"### Review of {plain(dataset.name)} · {place + 1} of {len(pictures)}\n"
        f"**Picture {each.number}** · {plain(each.image.source, 120)}",
        picture(file, _alt(dataset, each)) if file else None,
        "\n".join([*map(_finding_line, each.image.findings[:8]), *_state_lines(dataset, each)]),
        f"-# {left} left to decide" if left else "-# All decided: **Done** applies it.",
        row(*_deciding(dataset, each)),
        row(
            dataset_button(dataset.id, "prev", emoji="◀️", arg=each.key, is_disabled=place == 0),
            dataset_button(dataset.id, "next", emoji="▶️", arg=each.key, is_disabled=place == len(pictures) - 1),
            dataset_button(dataset.id, "done", "Done"),
        ),
    )
    return MessageContent(layout=layout(body), files=(file,) if file else ())


def nothing_to_review(dataset: Dataset) -> str:
    """Said instead of a review that would be empty."""
    return f"Nothing in {plain(dataset.name)} needs a look: no findings, and no captions by a model."


def decided_words(each: ToReview, verb: str) -> str:
    """What a press did, said above the next picture."""
    words = {
        "keep": "is kept",
        "drop": "is dropped",
        "right": "has the right caption",
        "caption": "has its new caption",
    }
    return f"✓ Picture {each.number} {words[verb]}."


def _deciding(dataset: Dataset, each: ToReview) -> list[DatasetButton]:
    success, danger = discord.ButtonStyle.success, discord.ButtonStyle.danger
    buttons = [
        dataset_button(dataset.id, "keep", "Keep", arg=each.key, style=success),
        dataset_button(dataset.id, "drop", "Drop", arg=each.key, style=danger),
        dataset_button(dataset.id, "caption", "Edit caption", arg=each.key),
    ]
    if each.image.is_caption_automatic:
        buttons.append(dataset_button(dataset.id, "right", "Looks right", arg=each.key))
    return buttons


def _finding_line(finding: Finding) -> str:
    """`blur · kept: the edges are 1.32 px wide, the limit is 1.00`."""
    words = f"• **{finding.kind.replace('_', ' ')}** · {finding.action}: {plain(finding.message, 250)}"
    if finding.measure is not None and finding.threshold is not None:
        words += f" (measured {finding.measure:.3g}, limit {finding.threshold:.3g})"
    is_named = finding.other is None or finding.other in finding.message
    return words if is_named else f"{words} · other: {plain(finding.other or '', 100)}"


def _state_lines(dataset: Dataset, each: ToReview) -> list[str]:
    edits, image = dataset.edits, each.image
    caption = caption_now(image, edits)
    is_own = each.sha256 in edits.captions
    source = CAPTION_BY_HAND if is_own else image.caption_source or ""
    looked = " · looked at" if each.sha256 in edits.reviewed else " · not looked at yet"
    by = f" · {plain(source, 80)}{looked if image.is_caption_automatic and not is_own else ''}" if source else ""
    lines = [
        f"Caption: {plain(caption, 400)}\n-# {counted(len(caption.split()), 'word')}{by}" if caption else "No caption."
    ]
    if decision := edits.decisions.get(each.sha256):
        lines.append(f"Decided: **{decision}**")
    return lines


def _file(dataset: Dataset, each: ToReview, file_limit: int) -> FileToSend | None:
    for path in (each.image.thumbnail, each.image.path):
        if path is None:
            continue
        file = FileToSend(path=dataset.folder / path, name=f"picture-{each.number}{(dataset.folder / path).suffix}")
        if sendable([file], file_limit):
            return file
    return None


def _alt(dataset: Dataset, each: ToReview) -> str:
    kinds = ", ".join(finding.kind.replace("_", " ") for finding in each.image.findings)
    caption = caption_now(each.image, dataset.edits)
    found = f"Found: {kinds}. " if kinds else ""
    return f"Picture {each.number}, {each.image.source}. {found}Caption: {caption or 'none'}"
