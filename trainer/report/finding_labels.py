"""The labels of findings in a report, and why each kind matters in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.protocol.report import FindingKind, Image
from trainer.protocol.text import _

K = FindingKind


@dataclass(frozen=True, kw_only=True)
class FindingLabel:
    """The texts of one kind of finding."""

    #: Heading over all of its images, and the label on one of them.
    heading: str
    short: str
    #: Why it matters, in one sentence.
    meaning: str


LABELS: Mapping[FindingKind, FindingLabel] = {
    kind: FindingLabel(heading=heading, short=short, meaning=meaning)
    for kind, heading, short, meaning in (
        (K.BY_HAND, _("Dropped by hand"), _("by hand"), _("A person dropped these, whatever was measured.")),
        (K.CORRUPT, _("Damaged"), _("damaged"), _("The file ends too early, or holds no image.")),
        (K.UNSUPPORTED, _("Read in part or not at all"), _("format"), _("Something in the file could not be used.")),
        (K.TOO_MANY_PIXELS, _("Too many pixels"), _("too many pixels"), _("Opening it would take too much memory.")),
        (K.TOO_SMALL, _("Too small"), _("too small"), _("Enlarged this far, only blocks and blur would be learned.")),
        (
            K.EXTREME_ASPECT,
            _("Very long or very wide"),
            _("extreme aspect"),
            _("Much of it is cropped in training."),
        ),
        (K.EXACT_DUPLICATE, _("Exact duplicates"), _("duplicate"), _("The same pixels twice: one copy is enough.")),
        (
            K.NEAR_DUPLICATE,
            _("Near duplicates"),
            _("near duplicate"),
            _("Almost the same: kept, in one split."),
        ),
        (K.BLANK, _("Blank"), _("blank"), _("Nearly a single color: there is nothing to learn.")),
        (K.TOO_DARK, _("Too dark"), _("too dark"), _("Almost all of it is black.")),
        (K.WASHED_OUT, _("Washed out"), _("washed out"), _("Bright all over and without contrast.")),
        (
            K.BLUR,
            _("Perhaps blurred"),
            _("blur"),
            _("Even its sharpest edges are soft: so will samples be."),
        ),
        (K.SCREENSHOT, _("Screenshots and text"), _("text"), _("The model draws text as scribble.")),
        (K.OUTLIER, _("Unlike the rest"), _("outlier"), _("It looks like nothing else here: does it belong?")),
        (
            K.CAPTION_CONTRADICTORY,
            _("Contradictory captions"),
            _("contradicts"),
            _("Captions of similar images differ."),
        ),
        (K.CAPTION_MOJIBAKE, _("Garbled captions"), _("garbled"), _("Letters of one encoding were read as another.")),
        (
            K.CAPTION_UNREADABLE,
            _("Unreadable captions"),
            _("unreadable caption"),
            _("Trained without a caption."),
        ),
        (K.CAPTION_EMPTY, _("Empty captions"), _("empty caption"), _("The caption file exists and is empty.")),
        (
            K.CAPTION_TOO_LONG,
            _("Captions over the limit"),
            _("long caption"),
            _("The rest is never read."),
        ),
        (K.CAPTION_IDENTICAL, _("Identical captions"), _("same caption"), _("Different images with one caption.")),
        (
            K.CAPTION_WITHOUT_TRIGGER,
            _("Captions without the trigger"),
            _("no trigger"),
            _("They do not teach it."),
        ),
        (
            K.CAPTION_MISSING,
            _("Without a caption"),
            _("no caption"),
            _("Only the image is learned, not its name."),
        ),
        (K.MASK, _("Doubtful masks"), _("mask"), _("In a masked loss the wrong part may count.")),
        (K.UPSCALED, _("Smaller than the training size"), _("upscaled"), _("They are soft once enlarged.")),
    )
}

#: Found in many images of most sets, and no reason to look at one of them.
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


def short_labels(image: Image) -> tuple[str, ...]:
    """Return the short labels of all findings in an image, those that need a look first."""
    found = sorted(image.findings, key=lambda finding: finding.kind in QUIET)
    return tuple(dict.fromkeys(LABELS[finding.kind].short for finding in found))


def needs_a_look(image: Image) -> bool:
    """True if a person should decide on something that was found in a kept image."""
    return image.decision is None and any(finding.kind not in QUIET for finding in image.findings)
