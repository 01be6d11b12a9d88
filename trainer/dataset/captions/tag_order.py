"""Captions that are lists of tags: told from sentences, and put in another order each time they are trained with."""

from __future__ import annotations

import random
import re

#: What kohya's trainers call the keep-tokens separator: what stands before it stays in front, after a second one at the
#: end. It is never read by a model.
SEPARATOR = "|||"

#: A tag is a word or a few; what is longer between two commas is part of a sentence.
_MAX_MEAN_WORDS = 4
_SENTENCE_END = re.compile(r"\w{2,}[\])\"'”’]?[.!?]['\"”’]?$|。$")


def tags_of(caption: str) -> list[str]:
    """The tags of a comma-separated caption, in order; empty where it is a sentence or has fewer than three."""
    tags = [tag for tag in (part.strip() for part in caption.replace(SEPARATOR, ",").split(",")) if tag]
    if len(tags) < 3 or _SENTENCE_END.search(caption.strip()):
        return []
    words = sum(len(tag.split()) for tag in tags)
    return tags if words <= _MAX_MEAN_WORDS * len(tags) else []


def shuffled(caption: str, keep: int, random: random.Random) -> str:
    """The caption with its tags in a random order, the first `keep` of them where they were.

    Tags before a `|||` stay too, and so do those after a second one, at the end (kohya's `keep_tokens` and
    `keep_tokens_separator`); the mark itself goes. A caption that is no list of tags comes back as it is.
    """
    if not tags_of(caption):
        return caption
    head, rest, tail = _parts(caption)
    if not head:
        head, rest = rest[:keep], rest[keep:]
    random.shuffle(rest)
    return ", ".join([*head, *rest, *tail])


def _parts(caption: str) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, that are free, and that stay at the end."""
    parts = [[tag for tag in map(str.strip, part.split(",")) if tag] for part in caption.split(SEPARATOR, 2)]
    if len(parts) == 1:
        return [], parts[0], []
    return parts[0], parts[1], parts[2] if len(parts) > 2 else []
