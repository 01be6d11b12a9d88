"""What is wrong with captions: garbled, longer than is read, shared, contradictory, without the trigger word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median, median_low

from trainer.dataset.captions.caption_rules import holds
from trainer.dataset.captions.caption_words import commonest, telling_words
from trainer.dataset.captions.mojibake import is_garbled, mended
from trainer.dataset.captions.tokens import LIMIT, count_tokens, unread_part
from trainer.protocol.report import CaptionStatistics, Finding, FindingKind

#: Different captions for each different picture, from which a caption under two pictures is an oversight; below it the
#: captions name concepts ("sks cat" under each of thirty pictures), and sharing them is what was meant.
MIN_DISTINCT = 0.5
#: Share of the words of the shorter of two captions that the other one has too, below which they contradict each other.
MIN_COMMON_WORDS = 0.2

#: Captions of one group that each caption is compared with: a film's frames would take minutes.
_MAX_COMPARED = 100
_MAX_QUOTED = 60


def check_captions(
    captions: Mapping[int, str],
    groups: Mapping[int, int],
    *,
    trigger: str = "",
    sources: Mapping[int, str] | None = None,
) -> dict[int, list[Finding]]:
    """Findings by picture number, all of them warnings; pictures with none are left out, and so are empty captions.

    `groups`: number of the group of near-duplicates that each picture is in; a picture without one stands alone.
    `sources`: what pictures are called, for `Finding.other`.
    """
    present = {number: caption for number, caption in captions.items() if caption.strip()}
    findings: dict[int, list[Finding]] = defaultdict(list)
    tokens = count_tokens(list(present.values()))
    for (number, caption), count in zip(present.items(), tokens, strict=True):
        findings[number] += _of_text(caption, count, trigger)
    # A picture without a group is its own; groups are never negative.
    sets = {number: groups.get(number, -1 - number) for number in present}
    for number, finding in (
        *_identical(present, sets, trigger),
        *_contradictory(present, sets, trigger, sources or {}),
    ):
        findings[number].append(finding)
    return {number: found for number, found in findings.items() if found}


def caption_statistics(captions: Mapping[int, str], trigger: str = "") -> CaptionStatistics:
    """What the captions have in common; empty ones are not counted."""
    texts = [caption for caption in captions.values() if caption.strip()]
    tokens = count_tokens(texts)
    return CaptionStatistics(
        distinct=len({_folded(text) for text in texts}),
        median_tokens=float(median(tokens)) if tokens else 0.0,
        longest_tokens=max(tokens, default=0),
        too_long=sum(1 for count in tokens if count > LIMIT),
        trigger=trigger,
        with_trigger=sum(1 for text in texts if holds(text, trigger)),
        words=commonest(texts),
    )


def _of_text(caption: str, tokens: int, trigger: str) -> Iterator[Finding]:
    if is_garbled(caption):
        fixed = mended(caption)
        message = f"its caption is garbled: {_quoted(caption)}"
        message += f" should probably be {_quoted(fixed)}" if fixed else ", read in the wrong encoding; write it anew"
        yield Finding(kind=FindingKind.CAPTION_MOJIBAKE, action="kept", message=message)
    if tokens > LIMIT:
        message = f"its caption has {tokens} tokens and {LIMIT} are read; not read is {_quoted(unread_part(caption))}"
        yield _measured(FindingKind.CAPTION_TOO_LONG, tokens, LIMIT, message)
    if trigger.strip() and not holds(caption, trigger):
        message = f"its caption does not hold the trigger word {trigger}"
        yield Finding(kind=FindingKind.CAPTION_WITHOUT_TRIGGER, action="kept", message=message)


def _identical(captions: Mapping[int, str], groups: Mapping[int, int], trigger: str) -> Iterator[tuple[int, Finding]]:
    by_text: dict[str, list[int]] = defaultdict(list)
    for number, caption in captions.items():
        by_text[_folded(caption)].append(number)
    different = len(set(groups.values()))
    if len(by_text) < 2 or len(by_text) < MIN_DISTINCT * different:
        return
    for numbers in by_text.values():
        shared = len({groups[number] for number in numbers})
        # A trigger by itself is what the rules make of a picture without a caption: nobody wrote it twice.
        if shared > 1 and telling_words(captions[numbers[0]], trigger):
            message = f"{shared} different pictures have its caption, {_quoted(captions[numbers[0]])}"
            finding = _measured(FindingKind.CAPTION_IDENTICAL, shared, 1, message)
            yield from ((number, finding) for number in numbers)


def _contradictory(
    captions: Mapping[int, str], groups: Mapping[int, int], trigger: str, sources: Mapping[int, str]
) -> Iterator[tuple[int, Finding]]:
    by_group: dict[int, list[int]] = defaultdict(list)
    for number, group in groups.items():
        by_group[group].append(number)
    for numbers in by_group.values():
        if len(numbers) > 1:
            yield from _contradictory_in([(n, captions[n]) for n in numbers], trigger, sources)


def _contradictory_in(
    captioned: Sequence[tuple[int, str]], trigger: str, sources: Mapping[int, str]
) -> Iterator[tuple[int, Finding]]:
    words = {caption: telling_words(caption, trigger) for _, caption in captioned}
    if len(words) < 2:
        return
    others = captioned[:: max(1, len(captioned) // _MAX_COMPARED)]
    for number, caption in captioned:
        overlaps = [
            (overlap, other, text)
            for other, text in others
            if other != number and (overlap := _overlap(words[caption], words[text])) is not None
        ]
        # The median: in a burst under one caption, the one odd caption is at fault and not the others.
        if not overlaps or median_low([overlap for overlap, _, _ in overlaps]) >= MIN_COMMON_WORDS:
            continue
        overlap, other, text = min(overlaps)
        message = f"its caption {_quoted(caption)} has little in common with {_quoted(text)} of nearly the same picture"
        finding = _measured(FindingKind.CAPTION_CONTRADICTORY, overlap, MIN_COMMON_WORDS, message)
        yield number, finding.model_copy(update={"other": sources.get(other)})


def _overlap(one: Collection[str], other: Collection[str]) -> float | None:
    """Share of the smaller set's words that are in the larger; None if they are not to be compared."""
    if not one or not other or _is_latin(one) != _is_latin(other):
        return None
    small, large = sorted((set(one), set(other)), key=len)
    return sum(1 for word in small if word in large or _is_like_any(word, large)) / len(small)


def _is_like_any(word: str, others: Collection[str]) -> bool:
    """True for another form of the same word: `cat` and `cats`, `sit` and `sitting`."""
    return len(word) > 2 and any(len(o) > 2 and (o.startswith(word) or word.startswith(o)) for o in others)


def _is_latin(words: Collection[str]) -> bool:
    """Written in Latin letters: a caption and its translation into Chinese have no word in common."""
    return 2 * sum(1 for word in words if word[0] < "\u0370") > len(words)


def _folded(caption: str) -> str:
    return " ".join(caption.casefold().split())


def _measured(kind: FindingKind, measure: float, threshold: float, message: str) -> Finding:
    return Finding(kind=kind, measure=round(measure, 3), threshold=threshold, action="kept", message=message)


def _quoted(text: str) -> str:
    return f"“{text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1].rstrip() + '…'}”"
