"""What there is to decide about a dataset, and what a decision changes in its edits: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from bot.errors import DatasetRefused
from trainer.protocol.edits import CaptionRules, Edits
from trainer.protocol.report import DatasetReport, FindingKind, Image

#: Of a pixel hash, in a button's id: 80 bits tell the pictures of one dataset apart.
KEY_LETTERS = 20


@dataclass(frozen=True, kw_only=True)
class ToReview:
    """A picture that a person should look at."""

    #: Its place in the report, from 1: the number on the contact sheets.
    number: int
    image: Image
    sha256: str

    @property
    def key(self) -> str:
        return self.sha256[:KEY_LETTERS]


def to_review(report: DatasetReport) -> tuple[ToReview, ...]:
    """Pictures in which something was found, dropped ones too, and those with an automatic caption.

    Not those that could not be decoded, and no exact copies of a picture that is kept: a decision, which goes by
    pixels, could not tell the two apart.
    """
    kept = {image.pixels_sha256 for image in report.images if image.status == "kept"}
    found = []
    for number, image in enumerate(report.images, start=1):
        is_copy = image.status == "dropped" and image.pixels_sha256 in kept and _is_copy(image)
        if image.pixels_sha256 is None or is_copy or not (image.findings or image.is_caption_automatic):
            continue
        found.append(ToReview(number=number, image=image, sha256=image.pixels_sha256))
    return tuple(found)


def is_settled(each: ToReview, edits: Edits) -> bool:
    """Whether somebody has decided about a picture: keep or drop, or a caption where that is all that is wrong."""
    decision, is_written = edits.decisions.get(each.sha256), each.sha256 in edits.captions
    if decision == "drop":
        return True
    is_about_caption = [finding.kind.startswith("caption_") for finding in each.image.findings]
    is_decided = decision is not None or (all(is_about_caption) and (is_written or not is_about_caption))
    return is_decided and (not each.image.is_caption_automatic or is_written or each.sha256 in edits.reviewed)


def caption_now(image: Image, edits: Edits) -> str:
    """The caption of a picture with all that was decided, also what is in no report yet."""
    return edits.captions.get(image.pixels_sha256 or "", image.caption)


def with_decision(edits: Edits, sha256: str, decision: Literal["keep", "drop"]) -> Edits:
    """Keep or drop a picture, whatever was measured."""
    return edits.model_copy(update={"decisions": {**edits.decisions, sha256: decision}})


def with_caption(edits: Edits, sha256: str, caption: str) -> Edits:
    """Another caption; an empty one means none."""
    return edits.model_copy(update={"captions": {**edits.captions, sha256: " ".join(caption.split())}})


def with_reviewed(edits: Edits, sha256: str) -> Edits:
    """An automatic caption was looked at and is right."""
    return edits.model_copy(update={"reviewed": tuple(sorted({*edits.reviewed, sha256}))})


def with_rules(edits: Edits, **rules: Any) -> Edits:
    """Other rules for every caption; those that are not named stay.

    Raises:
        DatasetRefused: a rule is too long.
    """
    try:
        changed = CaptionRules.model_validate({**edits.rules.model_dump(), **rules})
    except ValidationError as error:
        problem = error.errors()[0]
        where = str(problem["loc"][0])
        raise DatasetRefused(f"{where}: {problem['msg'].lower()}. Nothing was changed.") from error
    return edits.model_copy(update={"rules": changed})


def read_rules(form: Mapping[str, str]) -> dict[str, Any]:
    """The rules of a form: words to strip between commas, replacements one a line as `old => new`.

    Raises:
        DatasetRefused: a line is no replacement.
    """
    replacements = []
    for line in form["replace"].splitlines():
        if not line.strip():
            continue
        old, arrow, new = (part.strip() for part in line.partition("=>"))
        if not arrow or not old:
            raise DatasetRefused(f"{line.strip()!r} is no replacement; write it as: old => new. Nothing was changed.")
        replacements.append({"old": old, "new": new})
    return {
        "trigger": form["trigger"].strip(),
        "prefix": form["prefix"],
        "suffix": form["suffix"],
        "strip": [word for part in form["strip"].split(",") if (word := part.strip())],
        "replace": replacements,
    }


def written_rules(rules: CaptionRules) -> dict[str, str]:
    """Rules as somebody would type them; `read_rules` backwards."""
    return {
        "trigger": rules.trigger,
        "prefix": rules.prefix,
        "suffix": rules.suffix,
        "strip": ", ".join(rules.strip),
        "replace": "\n".join(f"{each.old} => {each.new}".rstrip() for each in rules.replace),
    }


def _is_copy(image: Image) -> bool:
    return any(finding.kind is FindingKind.EXACT_DUPLICATE for finding in image.findings)
