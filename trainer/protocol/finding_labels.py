"""The labels of findings in a report, and why each kind matters in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainer.protocol.report import FileRole, Finding, FindingKind, Image, RefusalKind
from trainer.protocol.text import N_, _, ngettext, percent, translate

K = FindingKind


@dataclass(frozen=True, kw_only=True)
class FindingLabel:
    """The texts of one kind of finding."""

    #: Heading over all of its images, and the label on one of them.
    heading: str
    short: str
    #: Why it matters, in one sentence.
    meaning: str


_LABELS: Mapping[FindingKind, FindingLabel] = {
    kind: FindingLabel(heading=heading, short=short, meaning=meaning)
    for kind, heading, short, meaning in (
        (K.BY_HAND, N_("Dropped by hand"), N_("by hand"), N_("A person dropped these, whatever was measured.")),
        (K.CORRUPT, N_("Damaged"), N_("damaged"), N_("The file is incomplete or broken, or holds no image.")),
        (K.UNSUPPORTED, N_("Read in part or not at all"), N_("format"), N_("Something in the file could not be used.")),
        (K.TOO_MANY_PIXELS, N_("Too many pixels"), N_("too many pixels"), N_("Opening it would take too much memory.")),
        (
            K.TOO_SMALL,
            N_("Too small"),
            N_("too small"),
            N_("Enlarged this far, only blocks and blur would be learned."),
        ),
        (
            K.EXTREME_ASPECT,
            N_("Very long or very wide"),
            N_("extreme shape"),
            N_("Much of it is cropped in training."),
        ),
        (K.EXACT_DUPLICATE, N_("Exact duplicates"), N_("duplicate"), N_("The same pixels twice: one copy is enough.")),
        (
            K.NEAR_DUPLICATE,
            N_("Near duplicates"),
            N_("near duplicate"),
            N_("Almost the same: kept, in one split."),
        ),
        (K.BLANK, N_("Blank"), N_("blank"), N_("Nearly a single color: there is nothing to learn.")),
        (K.TOO_DARK, N_("Too dark"), N_("too dark"), N_("Almost all of it is black.")),
        (K.WASHED_OUT, N_("Washed out"), N_("washed out"), N_("Without contrast, or bright all over.")),
        (
            K.BLUR,
            N_("Perhaps blurred"),
            N_("blur"),
            N_("The model learns to draw soft edges too."),
        ),
        (K.SCREENSHOT, N_("Screenshots and text"), N_("text"), N_("The model draws text as scribble.")),
        (K.OUTLIER, N_("Unlike the rest"), N_("outlier"), N_("It looks like nothing else here: does it belong?")),
        (
            K.CAPTION_CONTRADICTORY,
            N_("Contradictory captions"),
            N_("contradictory caption"),
            N_("Captions of similar images differ."),
        ),
        (
            K.CAPTION_MOJIBAKE,
            N_("Garbled captions"),
            N_("garbled"),
            N_("The file has another text encoding, so letters are garbled."),
        ),
        (
            K.CAPTION_UNREADABLE,
            N_("Unreadable captions"),
            N_("unreadable caption"),
            N_("Trained without a caption."),
        ),
        (K.CAPTION_EMPTY, N_("Empty captions"), N_("empty caption"), N_("The caption file exists and is empty.")),
        (
            K.CAPTION_TOO_LONG,
            N_("Captions over the limit"),
            N_("long caption"),
            N_("The rest is never read."),
        ),
        (K.CAPTION_IDENTICAL, N_("Identical captions"), N_("same caption"), N_("Different images with one caption.")),
        (
            K.CAPTION_WITHOUT_TRIGGER,
            N_("Captions without the trigger"),
            N_("no trigger"),
            N_("They do not teach it."),
        ),
        (
            K.CAPTION_MISSING,
            N_("Without a caption"),
            N_("no caption"),
            N_("Only the image is learned, not its name."),
        ),
        (K.MASK, N_("Doubtful masks"), N_("mask"), N_("In a masked loss the wrong part may count.")),
    )
}

#: In the order of a report.
KINDS = tuple(_LABELS)

#: Found in many images of most sets, and nothing to decide about one of them: they are counted.
QUIET = frozenset(
    {
        K.NEAR_DUPLICATE,
        K.UNSUPPORTED,
        K.CAPTION_MISSING,
        K.CAPTION_EMPTY,
        K.CAPTION_TOO_LONG,
        K.CAPTION_IDENTICAL,
        K.CAPTION_WITHOUT_TRIGGER,
    }
)

#: Judged by a measure without a unit that people know: how far beyond its limit it is says how sure the finding is.
_GRADUAL = frozenset({K.BLUR, K.TOO_DARK, K.WASHED_OUT, K.SCREENSHOT, K.OUTLIER})


def beyond_limit(finding: Finding) -> float | None:
    """Return the share by which a gradual measure is above its limit, or below it if negative; None for others."""
    if finding.kind not in _GRADUAL or finding.measure is None or not finding.threshold:
        return None
    return finding.measure / finding.threshold - 1


def limit_words(finding: Finding) -> str:
    """Return `32 % over the limit`, how sure a finding is; empty if it is not gradual."""
    if (share := beyond_limit(finding)) is None:
        return ""
    if share >= 1:
        return _("{n:.1f} times the limit", n=1 + share)
    if round(abs(share), 2) == 0:
        return _("just at the limit")
    words = percent(abs(share))
    return _("{share} over the limit", share=words) if share > 0 else _("{share} under the limit", share=words)


def label(kind: FindingKind) -> FindingLabel:
    """Return the texts of a kind of finding."""
    found = _LABELS[kind]
    return FindingLabel(
        heading=translate(found.heading), short=translate(found.short), meaning=translate(found.meaning)
    )


def role_count(role: FileRole, n: int) -> str:
    """`4 samples`: files of a role, counted."""
    names: dict[FileRole, str] = {
        FileRole.REGULARIZATION: ngettext("{n} regularization image", "{n} regularization images", n),
        FileRole.MASK: ngettext("{n} mask", "{n} masks", n),
        FileRole.CONTROL: ngettext("{n} control image", "{n} control images", n),
        FileRole.SAMPLE: ngettext("{n} file of generated samples", "{n} files of generated samples", n),
        FileRole.CACHE: ngettext("{n} cache file", "{n} cache files", n),
        FileRole.TRAINER: ngettext("{n} file of a trainer", "{n} files of a trainer", n),
        FileRole.OWN_OUTPUT: ngettext("{n} file that I made", "{n} files that I made", n),
        FileRole.SKIPPED: ngettext("{n} file that was put aside", "{n} files that were put aside", n),
        FileRole.CLUTTER: ngettext("{n} hidden or system file", "{n} hidden or system files", n),
    }
    return names.get(role) or ngettext("{n} image", "{n} images", n)


def short_labels(image: Image) -> tuple[str, ...]:
    """Return the short labels of all findings in an image, those that need a look first."""
    found = sorted(image.findings, key=lambda finding: finding.kind in QUIET)
    return tuple(dict.fromkeys(label(finding.kind).short for finding in found))


def needs_a_look(image: Image) -> bool:
    """True if a person should decide on something that was found in a kept image."""
    is_open = image.status == "kept" and image.decision is None
    return is_open and any(finding.kind not in QUIET for finding in image.findings)


def main_kind(image: Image) -> FindingKind | None:
    """Return the kind of finding that an image counts for: what dropped it, else the first that needs a look."""
    is_dropped = image.status == "dropped"
    kinds = [
        each.kind for each in image.findings if (each.action == "dropped" if is_dropped else each.kind not in QUIET)
    ]
    return next(iter(kinds), None)


def tally(kinds: Iterable[FindingKind | RefusalKind | None]) -> str:
    """Return `2 exact duplicates, 1 damaged`, the most frequent first."""
    # Both are called a zip bomb.
    merged = Counter(RefusalKind.RATIO if kind is RefusalKind.OVERLAP else kind for kind in kinds if kind is not None)
    return _(", ").join(kind_count(kind, count) for kind, count in merged.most_common())


def kind_count(kind: FindingKind | RefusalKind, n: int) -> str:
    """Return `2 exact duplicates` or `1 too dark`."""
    # Two tables: a kind of finding and one of refusals may have the same value, and would be one key.
    return _refusal_count(kind, n) if isinstance(kind, RefusalKind) else _finding_count(kind, n)


def _finding_count(kind: FindingKind, n: int) -> str:
    return {
        FindingKind.EXACT_DUPLICATE: ngettext("{n} exact duplicate", "{n} exact duplicates", n),
        FindingKind.NEAR_DUPLICATE: ngettext("{n} near duplicate", "{n} near duplicates", n),
        FindingKind.BLUR: _("{n} perhaps blurred", n=n),
        FindingKind.TOO_DARK: _("{n} too dark", n=n),
        FindingKind.WASHED_OUT: _("{n} washed out", n=n),
        FindingKind.BLANK: _("{n} blank", n=n),
        FindingKind.TOO_SMALL: _("{n} too small", n=n),
        FindingKind.EXTREME_ASPECT: _("{n} very long or very wide", n=n),
        FindingKind.CORRUPT: _("{n} damaged", n=n),
        FindingKind.TOO_MANY_PIXELS: _("{n} with too many pixels", n=n),
        FindingKind.SCREENSHOT: ngettext("{n} screenshot or page of text", "{n} screenshots or pages of text", n),
        FindingKind.OUTLIER: _("{n} unlike the others", n=n),
        FindingKind.BY_HAND: _("{n} by hand", n=n),
        FindingKind.CAPTION_MISSING: _("{n} without caption", n=n),
        FindingKind.CAPTION_EMPTY: _("{n} with an empty caption", n=n),
        FindingKind.CAPTION_UNREADABLE: _("{n} with an unreadable caption", n=n),
        FindingKind.CAPTION_MOJIBAKE: ngettext("{n} garbled caption", "{n} garbled captions", n),
        FindingKind.CAPTION_CONTRADICTORY: ngettext("{n} contradictory caption", "{n} contradictory captions", n),
        FindingKind.MASK: ngettext("{n} doubtful mask", "{n} doubtful masks", n),
        FindingKind.UNSUPPORTED: _("{n} read in part or not at all", n=n),
        FindingKind.CAPTION_TOO_LONG: ngettext("{n} caption over the limit", "{n} captions over the limit", n),
        FindingKind.CAPTION_IDENTICAL: ngettext("{n} identical caption", "{n} identical captions", n),
        FindingKind.CAPTION_WITHOUT_TRIGGER: _("{n} without the trigger", n=n),
    }[kind]


def _refusal_count(kind: RefusalKind, n: int) -> str:
    return {
        RefusalKind.UNSAFE_PATH: ngettext("{n} unsafe path", "{n} unsafe paths", n),
        RefusalKind.LINK: ngettext("{n} link", "{n} links", n),
        RefusalKind.ENCRYPTED: _("{n} encrypted", n=n),
        RefusalKind.DAMAGED: _("{n} damaged", n=n),
        RefusalKind.TOO_LARGE: _("{n} too large", n=n),
        RefusalKind.TOO_MANY: ngettext("{n} with too many entries", "{n} with too many entries", n),
        RefusalKind.RATIO: ngettext("{n} zip bomb", "{n} zip bombs", n),
        RefusalKind.OVERLAP: ngettext("{n} zip bomb", "{n} zip bombs", n),
        RefusalKind.COLLISION: ngettext("{n} name used twice", "{n} names used twice", n),
        RefusalKind.NESTED_ARCHIVE: ngettext("{n} archive in an archive", "{n} archives in an archive", n),
        RefusalKind.WITHOUT_IMAGE: _("{n} without an image of that name", n=n),
        RefusalKind.UNSUPPORTED: _("{n} unsupported", n=n),
    }[kind]
