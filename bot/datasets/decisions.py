"""Decisions about a dataset: which images need a review, and how a decision changes the edits. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from bot.errors import DatasetRefused
from trainer.protocol.edits import CaptionRules, Edits
from trainer.protocol.report import DatasetReport, FindingKind, Image
from trainer.protocol.text import _

#: Of the pixel hash, in a button's id: 80 bits tell the images of one dataset apart.
KEY_LETTERS = 20


@dataclass(frozen=True, kw_only=True)
class ReviewImage:
    """An image that a person should look at."""

    #: Position in the report, from 1: the number on the contact sheets.
    number: int
    image: Image
    #: Of its pixels.
    sha256: str

    @property
    def key(self) -> str:
        return self.sha256[:KEY_LETTERS]


def images_to_review(report: DatasetReport) -> tuple[ReviewImage, ...]:
    """Return the images with findings, including dropped ones, and those with an automatic caption.

    Leaves out images that could not be decoded, and exact copies of a kept image: decisions go by pixels and could not
    tell the two apart.
    """
    kept = {image.pixels_sha256 for image in report.images if image.status == "kept"}
    found = []
    for number, image in enumerate(report.images, start=1):
        is_copy = image.status == "dropped" and image.pixels_sha256 in kept and _is_copy(image)
        if image.pixels_sha256 is None or is_copy or not (image.findings or image.is_caption_automatic):
            continue
        found.append(ReviewImage(number=number, image=image, sha256=image.pixels_sha256))
    return tuple(found)


def is_settled(each: ReviewImage, edits: Edits) -> bool:
    """Return whether an image is decided: kept or dropped, or captioned if only its caption has findings."""
    decision, is_written = edits.decisions.get(each.sha256), each.sha256 in edits.captions
    if decision == "drop":
        return True
    is_about_caption = [finding.kind.startswith("caption_") for finding in each.image.findings]
    is_decided = decision is not None or (all(is_about_caption) and (is_written or not is_about_caption))
    return is_decided and (not each.image.is_caption_automatic or is_written or each.sha256 in edits.reviewed)


def current_caption(image: Image, edits: Edits) -> str:
    """Return the caption of an image with all decisions, also those that no report contains yet."""
    return edits.captions.get(image.pixels_sha256 or "", image.caption)


def with_decision(edits: Edits, sha256: str, decision: Literal["keep", "drop"]) -> Edits:
    """Keep or drop an image, whatever was measured."""
    return edits.model_copy(update={"decisions": {**edits.decisions, sha256: decision}})


def with_caption(edits: Edits, sha256: str, caption: str) -> Edits:
    """Replace the caption of an image; an empty one means none."""
    return edits.model_copy(update={"captions": {**edits.captions, sha256: " ".join(caption.split())}})


def with_reviewed(edits: Edits, sha256: str) -> Edits:
    """Mark an automatic caption as right."""
    return edits.model_copy(update={"reviewed": tuple(sorted({*edits.reviewed, sha256}))})


def with_rules(edits: Edits, **rules: Any) -> Edits:
    """Replace some of the caption rules; the others stay.

    Raises:
        DatasetRefused: A rule is too long.
    """
    try:
        changed = CaptionRules.model_validate({**edits.rules.model_dump(), **rules})
    except ValidationError as error:
        problem = error.errors()[0]
        message = _(
            "{rule}: {problem}. Nothing was changed.", rule=problem["loc"][0], problem=str(problem["msg"]).lower()
        )
        raise DatasetRefused(message) from error
    return edits.model_copy(update={"rules": changed})


def parse_rules(form: Mapping[str, str]) -> dict[str, Any]:
    """Parse the caption rules of a form: words to strip between commas, one replacement per line as `old => new`.

    Raises:
        DatasetRefused: A line is not a replacement.
    """
    replacements = []
    for line in form["replace"].splitlines():
        if not line.strip():
            continue
        old, arrow, new = (part.strip() for part in line.partition("=>"))
        if not arrow or not old:
            raise DatasetRefused(
                _('"{line}" is not a replacement; write it as: old => new. Nothing was changed.', line=line.strip())
            )
        replacements.append({"old": old, "new": new})
    return {
        "trigger": form["trigger"].strip(),
        "prefix": form["prefix"],
        "suffix": form["suffix"],
        "strip": [word for part in form["strip"].split(",") if (word := part.strip())],
        "replace": replacements,
    }


def format_rules(rules: CaptionRules) -> dict[str, str]:
    """Write rules as a member would type them; the inverse of `parse_rules`."""
    return {
        "trigger": rules.trigger,
        "prefix": rules.prefix,
        "suffix": rules.suffix,
        "strip": ", ".join(rules.strip),
        "replace": "\n".join(f"{each.old} => {each.new}".rstrip() for each in rules.replace),
    }


def _is_copy(image: Image) -> bool:
    return any(finding.kind is FindingKind.EXACT_DUPLICATE for finding in image.findings)
