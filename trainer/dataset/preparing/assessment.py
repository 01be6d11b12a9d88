"""What is known and decided about one picture while its dataset is prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trainer.dataset.captions.caption_rules import apply_rules
from trainer.dataset.captions.labels import Caption
from trainer.dataset.images.decode_workers import Decoded
from trainer.dataset.preparing.intake import Found
from trainer.protocol.edits import CaptionRules, Edits
from trainer.protocol.report import CAPTION_BY_HAND, CAPTION_BY_RULE, Finding


@dataclass(kw_only=True)
class Verdict:
    """One picture and all that was found in it."""

    found: Found
    #: The caption that training sees; None if there is none at all.
    caption: Caption | None = None
    is_caption_automatic: bool = False
    decision: Literal["keep", "drop"] | None = None
    findings: list[Finding] = field(default_factory=list)
    group: int | None = None

    @property
    def decoded(self) -> Decoded | None:
        return self.found.outcome if isinstance(self.found.outcome, Decoded) else None

    @property
    def is_dropped(self) -> bool:
        return any(finding.action == "dropped" for finding in self.findings)


def open_verdict(found: Found, edits: Edits) -> Verdict:
    """A verdict without findings: the picture with the caption and the decision that people gave it."""
    if not isinstance(found.outcome, Decoded):
        return Verdict(found=found, caption=found.caption)
    pixels = found.outcome.pixels_sha256
    caption, is_automatic = _caption(found.caption, pixels, edits)
    if caption is not None and not caption.problem:
        caption = Caption(source=caption.source, text=apply_rules(caption.text, edits.rules))
    if caption is None and edits.rules != CaptionRules() and (text := apply_rules("", edits.rules)):
        caption = Caption(source=CAPTION_BY_RULE, text=text)
    return Verdict(
        found=found,
        caption=caption,
        is_caption_automatic=is_automatic,
        decision=edits.decisions.get(pixels),
    )


def _caption(handed_in: Caption | None, pixels: str, edits: Edits) -> tuple[Caption | None, bool]:
    """A person's caption before the one handed in, and that before a model's."""
    if pixels in edits.captions:
        text = edits.captions[pixels].strip()
        return (Caption(source=CAPTION_BY_HAND, text=text) if text else None), False
    if handed_in is not None and handed_in.text:
        return handed_in, False
    if text := edits.automatic.get(pixels, "").strip():
        return Caption(source=edits.captioner or "a captioning model", text=text), pixels not in edits.reviewed
    return handed_in, False
