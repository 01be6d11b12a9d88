"""Gives images the labels that a preparation finds for them, from paths and texts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.dataset.captions.labels import LabelIndex
from trainer.dataset.input_files import Limits, RefusedError, SourceEntry


class Labeled:
    """The labels of images beside texts, as a preparation finds them."""

    def __init__(self, images: Sequence[str], texts: Mapping[str, str | bytes], caption_column: str = "") -> None:
        self.index = LabelIndex(Limits(), caption_column)
        self.refused: dict[str, RefusedError] = {}
        for path, text in texts.items():
            try:
                self.index.add(entry(path), text.encode() if isinstance(text, str) else text)
            except RefusedError as error:
                self.refused[path] = error
        entries = [entry(path) for path in images]
        self.index.join(entries)
        labels = {each.path: self.index.of(each) for each in entries}
        self.captions = {path: each.caption.text if each.caption else "" for path, each in labels.items()}
        self.others = {path: each.caption.others for path, each in labels.items() if each.caption}
        self.problems = {path: each.caption.problem for path, each in labels.items() if each.caption}
        #: By the source of the text that cannot be read.
        self.problem_sources = {each.caption.source: each.caption.problem for each in labels.values() if each.caption}
        self.classes = {path: each.class_name for path, each in labels.items()}
        self.refused |= dict(self.index.unused())


def entry(path: str) -> SourceEntry:
    return SourceEntry(source=path, path=path, scope=1, read=bytes)
