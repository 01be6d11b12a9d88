"""What of each text becomes a caption of which image: one case, and its check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.trainer.dataset.labeled_images import Labeled

#: Captions of an image: one, several, or none.
Expected = str | Sequence[str]

CAT, DOG = "a red cat on a mat", "a brown dog, running"
BOTH: Mapping[str, Expected] = {"cat.png": CAT, "dog.png": DOG}


@dataclass(frozen=True, kw_only=True)
class CaptionCase:
    """Texts beside images, and the captions that the images get."""

    name: str
    texts: Mapping[str, str | bytes]
    captions: Mapping[str, Expected]
    #: Sources of the texts, lines and rows that are told as not used.
    told: Sequence[str] = ()
    caption_column: str = ""
    #: For legacy encodings: a caption is the right one or none, and then it is told.
    may_be_refused: bool = False

    def check(self) -> None:
        found = Labeled(list(self.captions), self.texts, self.caption_column)

        told = {*found.refused, *(source for source, problem in found.problem_sources.items() if problem)}
        for image, expected in self.captions.items():
            right = (expected,) if isinstance(expected, str) else tuple(expected)
            captions = tuple(text for text in (found.captions[image], *found.others.get(image, ())) if text)
            if not (self.may_be_refused and not captions and told):
                assert captions == right
        if not self.may_be_refused:
            assert told == {*self.told}


def case(
    name: str,
    texts: Mapping[str, str | bytes],
    captions: Mapping[str, Expected],
    *,
    told: Sequence[str] = (),
    column: str = "",
    may_be_refused: bool = False,
) -> CaptionCase:
    return CaptionCase(
        name=name, texts=texts, captions=captions, told=told, caption_column=column, may_be_refused=may_be_refused
    )


def one(
    name: str, file: str, text: str | bytes, expected: Expected, *, image: str = "cat.png", told: bool = False
) -> CaptionCase:
    """One text beside one image."""
    return case(name, {file: text}, {image: expected}, told=[file] if told else [])


def table(
    name: str, file: str, text: str | bytes, *, captions: Mapping[str, Expected] = BOTH, **options: object
) -> CaptionCase:
    """A table of the captions of two images."""
    return case(name, {file: text}, captions, **options)  # type: ignore[arg-type]
