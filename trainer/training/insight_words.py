"""What was found out about a model at the end, as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from trainer.report.insights import Forgetting, NearPicture

#: Nearer by less than this share is no nearer: features of samples scatter by about as much.
_NEARER = 0.85
#: Numbers in a sentence.
_MOST_NUMBERS = 8
#: How far a picture moved, over what another seed moves it: below, it is as it was; above, it is another one.
_AS_BEFORE, _ANOTHER = 0.35, 0.85


def memorization_in_words(pictures: Sequence[NearPicture]) -> str:
    """Whether samples show training pictures, and whether they came nearer to them."""
    same = [picture for picture in pictures if picture.is_same]
    if same:
        numbers = list(dict.fromkeys(_number(picture) for picture in same))
        listed = ", ".join(numbers[:_MOST_NUMBERS]) + (" and more" if len(numbers) > _MOST_NUMBERS else "")
        show = "shows" if len(same) == 1 else "show"
        is_one = len(same) == 1
        said = (
            f"{len(same)} of {len(pictures)} samples {show} the same as a training picture ({listed}): "
            f"{'it is' if is_one else 'they are'} learnt by heart."
        )
        if before := sum(picture.base_is_same for picture in pictures):
            said += f" Of the base model's samples {before} {'does' if before == 1 else 'do'} so too."
    else:
        said = f"None of the {len(pictures)} samples shows the same as a training picture: nothing is learnt by heart."
    after = median(picture.distance for picture in pictures)
    base = median(picture.base_distance for picture in pictures)
    compared = "nearer than before" if after < _NEARER * base else "no nearer than before"
    return (
        f"{said} The nearest training picture is {after:.2f} away by its features (median; the base model's samples: "
        f"{base:.2f}): {compared}."
    )


def forgetting_in_words(found: Forgetting) -> str:
    """How far unrelated pictures moved, and whether towards the training pictures."""
    said = (
        f"Pictures that have nothing to do with the data moved by {found.moved_pixels:.0%} of the range of their pixels"
        f", and by {found.moved_features:.2f} by their features"
    )
    if found.another_seed:
        share = found.moved_features / found.another_seed
        judged = (
            "they are almost as before"
            if share < _AS_BEFORE
            else "they are other pictures now; look whether the model still knows them"
            if share > _ANOTHER
            else "they changed, and less than that"
        )
        said += f"; another seed moves the base model's by {found.another_seed:.2f}: {judged}"
    said += "."
    if found.distance_after < _NEARER * found.distance_before:
        said += (
            f" They came nearer to the training pictures ({found.distance_before:.2f} → {found.distance_after:.2f}): "
            "what was taught shows where nobody asked for it."
        )
    return said


def _number(picture: NearPicture) -> str:
    return f"no. {picture.number}" + (f" of {picture.dataset}" if picture.dataset else "")
