"""Checks captions for what training would learn wrongly, and counts their words and tokens.

Tokens are CLIP's, from its own vocabulary, whatever base is trained later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from statistics import median, median_low

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from trainer.clip_vocabulary import BEGIN, END, clip_vocabulary
from trainer.dataset.captions.caption_text import fix_mojibake, is_garbled
from trainer.dataset.captions.caption_words import content_words, most_common_words
from trainer.protocol.report import CaptionStatistics, Finding, FindingKind
from trainer.protocol.text import _
from trainer.trigger import has_trigger

#: Tokens of a caption that are read: three times CLIP's context of 77 without the begin and end tokens (the default of
#: `base.max_token_length`).
MAX_TOKENS = 225

#: Distinct captions per group from which a caption shared by two images counts as a mistake. With fewer, captions name
#: concepts ("sks cat" for each of thirty images) and are meant to be shared.
MIN_DISTINCT = 0.5
#: Two captions contradict each other if they share less than this part of the words of the shorter one.
MIN_COMMON_WORDS = 0.2
#: Captions of one group that each caption is compared with: the frames of a film would take minutes.
_MAX_COMPARED = 100
#: Words of a caption that are compared, for the same reason.
_MAX_COMPARED_WORDS = 75
#: Captions that are tokenized at a time.
_TOKENIZED = 512
#: Letters from which on the beginning of a word may be the same word, and those that are compared.
_MIN_FORM, _MAX_WORD = 3, 40
_MAX_QUOTED = 60

_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def check_captions(
    captions: Mapping[int, str],
    groups: Mapping[int, int],
    *,
    others: Mapping[int, Sequence[str]] | None = None,
    trigger: str = "",
    sources: Mapping[int, str] | None = None,
) -> dict[int, list[Finding]]:
    """Find the doubtful captions, by image number. All findings are warnings; empty captions are ignored.

    Args:
        captions: Caption by image number.
        groups: Group of near duplicates by image number; an image without one is its own group.
        others: Further captions by image number: they are trained too.
        trigger: The trigger word that each caption should contain, or "".
        sources: Source by image number, for `Finding.other`.
    """
    present = {number: caption for number, caption in captions.items() if caption.strip()}
    findings: dict[int, list[Finding]] = defaultdict(list)
    texts = [*present.items(), *((number, text) for number in others or () for text in (others or {})[number])]
    tokens = count_tokens([text for _number, text in texts])
    for (number, text), count in zip(texts, tokens, strict=True):
        # One of a kind for each image: the first of its captions.
        known = {finding.kind for finding in findings[number]}
        findings[number] += [each for each in _findings_of_text(text, count, trigger) if each.kind not in known]
    # Group numbers are never negative.
    group_of = {number: groups.get(number, -1 - number) for number in present}
    for number, finding in (
        *_identical(present, group_of, trigger),
        *_contradictory(present, group_of, trigger, sources or {}),
    ):
        findings[number].append(finding)
    return {number: found for number, found in findings.items() if found}


def caption_statistics(captions: Mapping[int, str], trigger: str = "") -> CaptionStatistics:
    """Statistics over all captions that are not empty."""
    texts = [caption for caption in captions.values() if caption.strip()]
    tokens = count_tokens(texts)
    return CaptionStatistics(
        distinct=len({_folded(text) for text in texts}),
        median_tokens=float(median(tokens)) if tokens else 0.0,
        longest_tokens=max(tokens, default=0),
        too_long=sum(1 for count in tokens if count > MAX_TOKENS),
        trigger=trigger,
        with_trigger=sum(1 for text in texts if has_trigger(text, trigger)),
        words=most_common_words(texts),
    )


def _findings_of_text(caption: str, tokens: int, trigger: str) -> Iterator[Finding]:
    if is_garbled(caption):
        fixed, quoted = fix_mojibake(caption), _quoted(caption)
        if fixed:
            message = _(
                "its caption is garbled: {caption} should probably be {fixed}", caption=quoted, fixed=_quoted(fixed)
            )
        else:
            message = _("its caption is garbled: {caption}, read in the wrong encoding; write it again", caption=quoted)
        yield Finding(kind=FindingKind.CAPTION_MOJIBAKE, action="kept", message=message)
    if tokens > MAX_TOKENS:
        message = _(
            "its caption has {n} tokens and only {most} are read; {rest} is cut off",
            n=tokens,
            most=MAX_TOKENS,
            rest=_quoted(truncated_part(caption)),
        )
        yield _measured(FindingKind.CAPTION_TOO_LONG, tokens, MAX_TOKENS, message)
    if trigger.strip() and not has_trigger(caption, trigger):
        message = _(
            "its caption {caption} does not contain the trigger word {trigger}",
            caption=_quoted(caption),
            trigger=trigger,
        )
        yield Finding(kind=FindingKind.CAPTION_WITHOUT_TRIGGER, action="kept", message=message)


def _identical(captions: Mapping[int, str], groups: Mapping[int, int], trigger: str) -> Iterator[tuple[int, Finding]]:
    by_text: dict[str, list[int]] = defaultdict(list)
    for number, caption in captions.items():
        by_text[_folded(caption)].append(number)
    if len(by_text) < 2 or len(by_text) < MIN_DISTINCT * len(set(groups.values())):
        return
    for numbers in by_text.values():
        shared = len({groups[number] for number in numbers})
        # The caption rules give the trigger alone to images without a caption.
        if shared > 1 and content_words(captions[numbers[0]], trigger):
            caption = _quoted(captions[numbers[0]])
            message = _("{n} different images have its caption, {caption}", n=shared, caption=caption)
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
            yield from _contradictory_in([(number, captions[number]) for number in numbers], trigger, sources)


def _contradictory_in(
    captioned: Sequence[tuple[int, str]], trigger: str, sources: Mapping[int, str]
) -> Iterator[tuple[int, Finding]]:
    words = {caption: _ComparedWords.of(caption, trigger) for _number, caption in captioned}
    if len(words) < 2:
        return
    others = captioned[:: max(1, len(captioned) // _MAX_COMPARED)]
    for number, caption in captioned:
        overlaps = [
            (overlap, other, text)
            for other, text in others
            if other != number and (overlap := _overlap(words[caption], words[text])) is not None
        ]
        # The median: one odd caption in a burst is at fault, not the others.
        if not overlaps or median_low([overlap for overlap, *_rest in overlaps]) >= MIN_COMMON_WORDS:
            continue
        overlap, other, text = min(overlaps)
        message = _(
            "its caption {caption} has little in common with {other}, the caption of a near duplicate",
            caption=_quoted(caption),
            other=_quoted(text),
        )
        finding = _measured(FindingKind.CAPTION_CONTRADICTORY, overlap, MIN_COMMON_WORDS, message)
        yield number, replace(finding, other=sources.get(other))


@dataclass(frozen=True, kw_only=True)
class _ComparedWords:
    """The content words of a caption that a model reads, for comparisons of which each costs a look-up per word."""

    words: frozenset[str]
    #: Their beginnings of three letters and more.
    beginnings: frozenset[str]
    is_latin: bool

    @classmethod
    def of(cls, caption: str, trigger: str) -> _ComparedWords:
        words = frozenset(word[:_MAX_WORD] for word in islice(content_words(caption, trigger), _MAX_COMPARED_WORDS))
        beginnings = frozenset(word[:end] for word in words for end in range(_MIN_FORM, len(word) + 1))
        return cls(words=words, beginnings=beginnings, is_latin=_is_latin(words))

    def has_form_of(self, word: str) -> bool:
        """True if a word is the same, or another form of it: `cat` and `cats`, `sit` and `sitting`."""
        return (
            word in self.words
            or word in self.beginnings
            or any(word[:end] in self.words for end in range(_MIN_FORM, len(word)))
        )


def _overlap(one: _ComparedWords, other: _ComparedWords) -> float | None:
    """Share of the smaller set's words that are in the larger; None if they cannot be compared."""
    if not one.words or not other.words or one.is_latin != other.is_latin:
        return None
    small, large = sorted((one, other), key=lambda each: len(each.words))
    return sum(1 for word in small.words if large.has_form_of(word)) / len(small.words)


def _is_latin(words: Collection[str]) -> bool:
    """True for mostly Latin letters: a caption and its Chinese translation have no word in common."""
    return 2 * sum(1 for word in words if word[0] < "\u0370") > len(words)


def _folded(caption: str) -> str:
    return " ".join(caption.casefold().split())


def _measured(kind: FindingKind, measure: float, threshold: float, message: str) -> Finding:
    return Finding(kind=kind, measure=round(measure, 3), threshold=threshold, action="kept", message=message)


def _quoted(text: str) -> str:
    return f"“{text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1].rstrip() + '…'}”"


def count_tokens(captions: Sequence[str]) -> list[int]:
    """Count the tokens of each caption, without begin and end tokens and without truncation."""
    # The tokenizer takes a fifth of a second to build, and with the tokens of 20,000 captions 40 MiB.
    batches = (list(captions[start : start + _TOKENIZED]) for start in range(0, len(captions), _TOKENIZED))
    encoded = (_tokenizer().encode_batch_fast(batch, add_special_tokens=False) for batch in batches)
    return [len(encoding) for encodings in encoded for encoding in encodings]


def truncated_part(caption: str, most: int = MAX_TOKENS) -> str:
    """The end of a caption beyond `most` tokens, from the first word that is cut; "" if all of it is read."""
    offsets: list[tuple[int, int]] = _tokenizer().encode(caption, add_special_tokens=False).offsets
    if len(offsets) <= most:
        return ""
    start = offsets[most][0]
    return caption[caption.rfind(" ", 0, start + 1) + 1 :].strip()


@cache
def _tokenizer() -> Tokenizer:
    """Equal to transformers' `CLIPTokenizer`, which diffusers uses; takes about 0.2 s to build."""
    tokens, merges = clip_vocabulary()
    tokenizer = Tokenizer(BPE(vocab=tokens, merges=merges, end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (BEGIN, END)])
    return tokenizer
