"""Decisions about a dataset: the questions of a review, and how a decision changes the edits. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from bot.errors import DarkroomError, DatasetRefused
from trainer.protocol.edits import CaptionRules, Crop, Edits
from trainer.protocol.finding_labels import KINDS, QUIET, main_kind
from trainer.protocol.report import DatasetReport, FindingKind, Image
from trainer.protocol.text import _

#: Of the pixel hash, in a button's id: 80 bits distinguish the images of one dataset.
KEY_LETTERS = 20
#: Key of the question about captions that a model wrote; the others are named by their kind of finding.
AUTOMATIC = "automatic"
#: Key of all kept images, to read and write their captions one by one.
CAPTIONS = "captions"
#: In a button's id before the key of a question: all of its images are meant, also those that are decided.
EVERY = "every-"
#: What `decided` does with images.
DECIDING = frozenset({"keep", "drop", "undecide", "right"})


class EditConflict(DarkroomError):
    """Another person has changed what a form changes since it was shown; the message says what it is now."""


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


@dataclass(frozen=True, kw_only=True)
class ReviewQuestion:
    """Images in which the same was found: they can be decided together, or one by one."""

    #: None: their captions were written by a model.
    kind: FindingKind | None
    #: The images were dropped.
    is_dropped: bool = False
    #: Nothing was found: these are all kept images, for their captions.
    is_about_captions: bool = False
    images: tuple[ReviewImage, ...]

    @property
    def key(self) -> str:
        """Identifies the question in a button's id; unique in a report."""
        if self.is_about_captions:
            return CAPTIONS
        if self.kind is None:
            return AUTOMATIC
        return f"dropped_{self.kind}" if self.is_dropped else self.kind.value

    @property
    def needs_decision(self) -> bool:
        """False if the images are dropped anyway, or their findings are only counted: both can be overruled."""
        return not self.is_dropped and not self.is_about_captions and self.kind not in QUIET

    def is_settled(self, each: ReviewImage, edits: Edits) -> bool:
        """Return whether an image of the question is decided: kept, dropped, or captioned by a person."""
        if self.is_about_captions:
            return bool(current_caption(each.image, edits))
        if each.sha256 in edits.decisions and (self.kind is not None or edits.decisions[each.sha256] == "drop"):
            return True
        is_written = each.sha256 in edits.captions
        if self.kind is None:
            return is_written or each.sha256 in edits.reviewed
        return is_written and self.kind.startswith("caption_")

    def undecided(self, edits: Edits) -> tuple[ReviewImage, ...]:
        """Return the images that are not settled."""
        return tuple(each for each in self.images if not self.is_settled(each, edits))


def review_questions(report: DatasetReport) -> tuple[ReviewQuestion, ...]:
    """Return what can be decided: first what needs a decision, then what is counted, then what was dropped.

    An image is in the question of its main finding, and in that of automatic captions if it has one. Left out are
    images that could not be decoded, and exact copies of a kept image: decisions go by pixels and could not tell the
    two apart.
    """
    kept = {image.pixels_sha256 for image in report.images if image.status == "kept"}
    found: dict[tuple[bool, FindingKind | None], list[ReviewImage]] = {}
    for number, image in enumerate(report.images, start=1):
        is_dropped = image.status == "dropped"
        if image.pixels_sha256 is None or (is_dropped and image.pixels_sha256 in kept and _is_copy(image)):
            continue
        each = ReviewImage(number=number, image=image, sha256=image.pixels_sha256)
        if kind := main_kind(image) or next((finding.kind for finding in image.findings), None):
            found.setdefault((is_dropped, kind), []).append(each)
        if image.is_caption_automatic and not is_dropped:
            found.setdefault((False, None), []).append(each)
    questions = [
        ReviewQuestion(kind=kind, is_dropped=is_dropped, images=tuple(images))
        for (is_dropped, kind), images in found.items()
    ]
    order = (*KINDS, None)
    return tuple(sorted(questions, key=lambda each: (not each.needs_decision, each.is_dropped, order.index(each.kind))))


def captions_question(report: DatasetReport) -> ReviewQuestion:
    """Return all kept images; those without a caption are not settled."""
    images = tuple(
        ReviewImage(number=number, image=image, sha256=image.pixels_sha256)
        for number, image in enumerate(report.images, start=1)
        if image.status == "kept" and image.pixels_sha256 is not None
    )
    return ReviewQuestion(kind=None, is_about_captions=True, images=images)


def undecided_images(questions: Sequence[ReviewQuestion], edits: Edits) -> int:
    """Return how many images need a decision and have none."""
    needed = (question for question in questions if question.needs_decision)
    return len({each.number for question in needed for each in question.undecided(edits)})


def current_caption(image: Image, edits: Edits) -> str:
    """Return the caption of an image with all decisions, also those that no report contains yet."""
    return edits.captions.get(image.pixels_sha256 or "", image.caption)


def with_decisions(edits: Edits, sha256s: Iterable[str], decision: Literal["keep", "drop"]) -> Edits:
    """Keep or drop images, whatever was measured."""
    return edits.model_copy(update={"decisions": {**edits.decisions, **dict.fromkeys(sha256s, decision)}})


def decided(edits: Edits, verb: str, sha256s: Sequence[str]) -> Edits:
    """Keep or drop images, take that back, or mark their automatic captions as right (`DECIDING`)."""
    match verb:
        case "keep":
            return with_decisions(edits, sha256s, "keep")
        case "drop":
            return with_decisions(edits, sha256s, "drop")
        case "undecide":
            return without_decisions(edits, sha256s)
        case _:
            return with_reviewed(edits, *sha256s)


def without_decisions(edits: Edits, sha256s: Iterable[str]) -> Edits:
    """Let the findings decide again whether images are kept."""
    undecided = set(sha256s)
    left = {sha256: decision for sha256, decision in edits.decisions.items() if sha256 not in undecided}
    return edits.model_copy(update={"decisions": left})


def with_crop(edits: Edits, sha256: str, crop: Crop | None) -> Edits:
    """Train on a part of an image only; None, or all of it: on the whole image."""
    others = {each: kept for each, kept in edits.crops.items() if each != sha256}
    is_part = crop is not None and crop != Crop()
    return edits.model_copy(update={"crops": {**others, sha256: crop} if is_part else others})


def with_caption(edits: Edits, sha256: str, caption: str) -> Edits:
    """Replace the caption of an image; an empty one means none."""
    return edits.model_copy(update={"captions": {**edits.captions, sha256: " ".join(caption.split())}})


def with_reviewed(edits: Edits, *sha256s: str) -> Edits:
    """Mark automatic captions as right."""
    return edits.model_copy(update={"reviewed": tuple(sorted({*edits.reviewed, *sha256s}))})


def with_rules(edits: Edits, **rules: Any) -> Edits:
    """Replace some of the caption rules; the others stay.

    Raises:
        DatasetRefused: A rule is too long.
    """
    try:
        changed = CaptionRules.model_validate({**edits.rules.model_dump(), **rules})
    except ValidationError as error:
        raise DatasetRefused(_rule_problem(error)) from error
    return edits.model_copy(update={"rules": changed})


def _rule_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    names = {
        "trigger": _("The trigger word"),
        "prefix": _("The text before each caption"),
        "suffix": _("The text after each caption"),
        "strip": _("The list of words to remove"),
        "replace": _("The list of replacements"),
    }
    rule = names.get(str(problem["loc"][0]), str(problem["loc"][0]))
    most = problem.get("ctx", {}).get("max_length")
    if problem["type"] == "string_too_long":
        return _("{rule} is too long: at most {n} characters fit. Nothing was changed.", rule=rule, n=most)
    if problem["type"] == "too_long":
        return _("{rule} is too long: at most {n} entries fit. Nothing was changed.", rule=rule, n=most)
    return _("{rule} cannot be used. Nothing was changed.", rule=rule)


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
                _(
                    "“{line}” is not a replacement. Write one per line as: old => new. Nothing was changed.",
                    line=line.strip(),
                )
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
