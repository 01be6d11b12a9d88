"""Folds of a cross-validation: whole groups of duplicates, by class, and what each makes of a dataset's split.

Unlike the split itself (docs/adr/0007) folds may move when pictures come or go: the runs of one study share one
dataset, and nobody compares a fold with last month's. So scikit-learn's splitters do the work, which balance sizes and
classes better than a hash; the pictures are handed to them in the order of their content: names do not matter.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

from trainer.errors import DatasetError
from trainer.protocol.report import Image, Split
from trainer.protocol.settings import SplitChoice, SplitKind


def assign_folds(images: Iterable[Image], folds: int, seed: int) -> dict[str, int]:
    """The fold, from 1, of each picture that trains or validates, by its content (`content_of`).

    Pictures of one group share a fold; classes and sizes are as even as the groups allow.

    Raises:
        DatasetError: fewer groups than folds; the sentence names the largest number that works.
    """
    usable = sorted((image for image in images if _is_usable(image)), key=content_of)
    groups = [content_of(image) if image.group is None else f"group {image.group}" for image in usable]
    different = len(set(groups))
    if different < folds:
        raise _too_few(different, folds)
    return {content_of(usable[place]): fold for fold, held in _deal(usable, groups, folds, seed) for place in held}


def apply_split(images: Sequence[Image], choice: SplitChoice, seed: int) -> tuple[Image, ...]:
    """The pictures of a report in their order, with the sides that `choice` gives them; test pictures stay apart.

    Raises:
        DatasetError: fewer groups than folds.
    """
    match choice.kind:
        case SplitKind.REPORT:
            return tuple(images)
        case SplitKind.ALL:
            return tuple(_on(image, Split.TRAIN) if _is_usable(image) else image for image in images)
        case SplitKind.FOLD:
            folds = assign_folds(images, choice.folds, seed)
            return tuple(
                _on(image, Split.VALIDATION if folds[content_of(image)] == choice.fold else Split.TRAIN)
                if _is_usable(image)
                else image
                for image in images
            )


def content_of(image: Image) -> str:
    """What a picture's fold hangs on: the hash of its pixels."""
    return image.pixels_sha256 or image.source


def _is_usable(image: Image) -> bool:
    return image.status == "kept" and image.split in {Split.TRAIN, Split.VALIDATION}


def _on(image: Image, side: Split) -> Image:
    return image.model_copy(update={"split": side})


def _deal(images: Sequence[Image], groups: Sequence[str], folds: int, seed: int) -> list[tuple[int, list[int]]]:
    """The places of each fold's pictures."""
    # Takes a second to load, and only studies need it.
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    stratified = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # It says that a stratum is smaller than the folds are many: so may the pool be, and it is spread all the same.
        warnings.simplefilter("ignore", UserWarning)
        dealt = [held.tolist() for _, held in stratified.split(images, _strata(images, folds), groups)]
    if not all(dealt):
        # It evens out classes first, and may leave a fold without pictures where groups are few: then sizes go first.
        dealt = [held.tolist() for _, held in GroupKFold(folds).split(images, groups=groups)]
    return list(enumerate(dealt, 1))


def _strata(images: Sequence[Image], folds: int) -> list[str]:
    """The class of each picture; classes that are too small for a picture in each fold are pooled."""
    sizes = Counter(image.class_name for image in images)
    return [f"class {image.class_name}" if sizes[image.class_name] >= folds else "pooled" for image in images]


def _too_few(different: int, folds: int) -> DatasetError:
    pictures = "picture" if different == 1 else "different pictures"
    message = (
        f"The dataset has {different} {pictures} to train and validate with (near duplicates count once), too few for "
        f"{folds} folds."
    )
    if different < 2:
        return DatasetError(message, "A cross-validation needs at least 2.")
    return DatasetError(message, f"Take {different} folds at most.")
