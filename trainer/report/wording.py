"""What each kind of finding is called in a report, and what it means to somebody who trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.protocol.report import FindingKind, Image

K = FindingKind


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How one kind is spoken of."""

    #: Heading over all of its pictures, and the sign on one of them.
    heading: str
    sign: str
    #: Why it matters, in one sentence.
    meaning: str


WORDING: Mapping[FindingKind, Wording] = {
    kind: Wording(heading=heading, sign=sign, meaning=meaning)
    for kind, heading, sign, meaning in (
        (K.BY_HAND, "Dropped by hand", "by hand", "Somebody took these out, whatever was measured."),
        (K.CORRUPT, "Damaged", "damaged", "The file ends too early, or holds no picture."),
        (K.UNSUPPORTED, "Read in part or not at all", "format", "Something in the file could not be used."),
        (K.TOO_MANY_PIXELS, "Too many pixels", "too many pixels", "Opening it would take too much memory."),
        (K.TOO_SMALL, "Too small", "too small", "Enlarged so far, only blocks and blur would be learned."),
        (K.EXTREME_ASPECT, "Very long or very wide", "extreme aspect", "Much of it is cropped away in training."),
        (K.EXACT_DUPLICATE, "Exact duplicates", "duplicate", "The same pixels twice: one of them is enough."),
        (K.NEAR_DUPLICATE, "Near duplicates", "near duplicate", "All but the same: kept, and never in two splits."),
        (K.BLANK, "Blank", "blank", "One colour, near enough: there is nothing to learn."),
        (K.TOO_DARK, "Too dark", "too dark", "Almost all of it is black."),
        (K.WASHED_OUT, "Washed out", "washed out", "Bright all over and without contrast."),
        (K.BLUR, "Perhaps blurred", "blur", "Even its sharpest edges are soft: the model learns to draw so."),
        (K.SCREENSHOT, "Screenshots and text", "text", "A capture of a screen or a page of text is drawn as scribble."),
        (K.OUTLIER, "Unlike the rest", "outlier", "It looks like nothing else here: meant to be in?"),
        (
            K.CAPTION_CONTRADICTORY,
            "Contradictory captions",
            "contradicts",
            "Alike in looks, with captions that are not.",
        ),
        (K.CAPTION_MOJIBAKE, "Garbled captions", "garbled", "Letters of one encoding were read as another's."),
        (K.CAPTION_UNREADABLE, "Unreadable captions", "unreadable caption", "They are trained without a caption."),
        (K.CAPTION_EMPTY, "Empty captions", "empty caption", "The file is there, and nothing stands in it."),
        (K.CAPTION_TOO_LONG, "Captions over the limit", "long caption", "What stands after the limit is never read."),
        (K.CAPTION_IDENTICAL, "Identical captions", "same caption", "Different pictures, one caption."),
        (K.CAPTION_WITHOUT_TRIGGER, "Captions without the trigger", "no trigger", "They do not teach the trigger."),
        (K.CAPTION_MISSING, "Without a caption", "no caption", "Only the picture is learned, not what it is called."),
        (K.MASK, "Doubtful masks", "mask", "With a masked loss, what counts may not be what was meant."),
        (K.UPSCALED, "Smaller than the training size", "upscaled", "Enlarged, they are soft."),
    )
}

#: Found in many pictures of most sets, and no reason to look at one of them.
QUIET = frozenset(
    {
        K.NEAR_DUPLICATE,
        K.UPSCALED,
        K.CAPTION_MISSING,
        K.CAPTION_EMPTY,
        K.CAPTION_IDENTICAL,
        K.CAPTION_WITHOUT_TRIGGER,
    }
)


def signs_of(image: Image) -> tuple[str, ...]:
    """The signs of all that was found in a picture, those that ask for a look first."""
    found = sorted(image.findings, key=lambda finding: finding.kind in QUIET)
    return tuple(dict.fromkeys(WORDING[finding.kind].sign for finding in found))


def asks_for_a_look(image: Image) -> bool:
    """True if something was found in a kept picture that a person should decide on."""
    return image.decision is None and any(finding.kind not in QUIET for finding in image.findings)
