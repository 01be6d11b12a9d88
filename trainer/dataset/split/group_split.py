"""Assigns images to train, validation and test, and to the folds of a cross-validation, in whole duplicate groups.

The split follows from a hash of the content (docs/adr/0007): it stays when images are added. Folds may change: all runs
of a study share one dataset. So scikit-learn makes the folds, which balances sizes and classes better than a hash.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainer.errors import DatasetError
from trainer.protocol.report import Image, Split
from trainer.protocol.settings import SplitChoice, SplitKind
from trainer.protocol.text import _, ngettext

if TYPE_CHECKING:
    # It loads OpenCV, which most commands of the trainer do not need.
    from trainer.dataset.images.image_record import ImageRecord

#: Groups that a class needs for its own share of each split (0.15 * 7 rounds to 1).
MIN_GROUPS_PER_CLASS = 7

_GroupKey = int | None


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the images that validate and test; the others train."""

    validation: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.validation < 1 and 0 <= self.test < 1 and self.validation + self.test < 1):
            raise ValueError("validation and test shares must leave something to train on")


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Images that must share a split."""

    key: _GroupKey
    #: The lowest content hash of its images.
    rank: str
    size: int
    #: The class of most of its images.
    class_name: str
    #: The split of most of its images in an earlier preparation.
    previous: Split | None


def assign_splits(
    records: Sequence[ImageRecord], shares: Shares, previous: Mapping[str, Split] | None = None
) -> list[ImageRecord]:
    """Return the records with a split for each kept image; images of one group share theirs.

    Groups are ranked by a hash of seed and content. Test takes them from one end and validation from the other, class
    by class, so that an added image moves at most the groups at the borders. With fewer than 3 groups all train;
    otherwise validation and test get at least one group each if their share is above 0. Regularization images train;
    `mixing.py` leaves out those that show what is measured.

    Args:
        records: Assessed images.
        shares: Shares of the splits.
        previous: Splits of an earlier preparation by pixel hash; groups that have one keep it.
    """
    measurable = [record for record in records if record.is_kept and not record.labels.is_regularization]
    groups = _ranked_groups(measurable, shares.seed, previous or {})
    chosen: dict[_GroupKey, Split] = {}
    if len(groups) >= 3:
        chosen = {group.key: group.previous for group in groups if group.previous is not None}
        for split, share in ((Split.TEST, shares.test), (Split.VALIDATION, shares.validation)):
            chosen |= dict.fromkeys(_choose_groups(groups, split, share, chosen), split)

    def split_of(record: ImageRecord) -> Split:
        is_trained = record.labels.is_regularization
        return Split.TRAIN if is_trained else chosen.get(record.assessment.group, Split.TRAIN)

    return [replace(record, split=split_of(record)) if record.is_kept else record for record in records]


def _ranked_groups(records: Sequence[ImageRecord], seed: int, previous: Mapping[str, Split]) -> list[_Group]:
    members: defaultdict[_GroupKey, list[ImageRecord]] = defaultdict(list)
    for record in records:
        members[record.assessment.group].append(record)
    return sorted((_group(*item, seed, previous) for item in members.items()), key=lambda group: group.rank)


def _group(key: _GroupKey, records: Sequence[ImageRecord], seed: int, previous: Mapping[str, Split]) -> _Group:
    contents = [record.pixels.pixels_sha256 for record in records if record.pixels is not None]
    classes = Counter(record.labels.class_name for record in records)
    splits = Counter(previous[content] for content in contents if content in previous)
    return _Group(
        key=key,
        rank=min(hashlib.sha256(f"{seed}:{content}".encode()).hexdigest() for content in contents),
        size=len(records),
        class_name=min(classes, key=lambda name: (-classes[name], name)),
        previous=max(splits, key=lambda split: (splits[split], split is Split.TRAIN), default=None),
    )


def _choose_groups(
    groups: Sequence[_Group], split: Split, share: float, taken: Mapping[_GroupKey, Split]
) -> list[_GroupKey]:
    """Choose further groups for a split, greedily, class by class; what a class lacks is carried to the next.

    At least one group must train, and at least one must be in the split.
    """
    if share == 0:
        return []
    size = sum(group.size for group in groups if taken.get(group.key) is split)
    available = sum(taken.get(group.key, Split.TRAIN) is Split.TRAIN for group in groups) - 1
    target = 0.0
    chosen: list[_GroupKey] = []
    for stratum in _strata(groups):
        target += share * sum(group.size for group in stratum)
        for group in stratum if split is Split.TEST else reversed(stratum):
            if group.key in taken or len(chosen) >= available:
                continue
            # Halves go to validation: early stopping uses it in each epoch, the test is measured once.
            missing = target - size - group.size / 2
            if missing > 1e-9 or (missing > -1e-9 and split is Split.VALIDATION):
                chosen.append(group.key)
                size += group.size
    free = [group for group in groups if group.key not in taken]
    if size == 0 and available > 0 and free:
        return [min(free, key=lambda group: (group.size, group.rank)).key]
    return chosen


def _strata(groups: Sequence[_Group]) -> list[list[_Group]]:
    """Groups by class, each by rank; classes too small for a share of their own are pooled, and come last."""
    by_class: defaultdict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        by_class[group.class_name].append(group)
    large = [by_class[name] for name in sorted(by_class) if len(by_class[name]) >= MIN_GROUPS_PER_CLASS]
    pooled = [group for group in groups if len(by_class[group.class_name]) < MIN_GROUPS_PER_CLASS]
    return [*large, pooled] if pooled else large


def assign_folds(images: Iterable[Image], folds: int, seed: int) -> dict[str, int]:
    """The fold, from 1, of each image that trains or validates, by `content_key`.

    Images of one group share a fold; classes and sizes are as even as the groups allow.

    Raises:
        DatasetError: There are fewer groups than folds.
    """
    # In the order of their content, so that names do not matter.
    usable = sorted((image for image in images if _is_usable(image)), key=content_key)
    check_folds(usable, folds)
    groups = [_group_key(image) for image in usable]
    return {
        content_key(usable[index]): fold
        for fold, indices in enumerate(_fold_indices(usable, groups, folds, seed), start=1)
        for index in indices
    }


def check_folds(images: Iterable[Image], folds: int) -> None:
    """Check that there are enough images for so many folds, without the seconds that assigning them takes.

    Raises:
        DatasetError: There are fewer groups than folds.
    """
    different = len({_group_key(image) for image in images if _is_usable(image)})
    if different < folds:
        raise _too_few_groups(different, folds)


def apply_split(images: Sequence[Image], choice: SplitChoice, seed: int) -> tuple[Image, ...]:
    """The images of a report, in order, with the splits that `choice` gives them; test images stay apart.

    Raises:
        DatasetError: There are fewer groups than folds.
    """
    if choice.kind is SplitKind.REPORT:
        return tuple(images)
    folds = assign_folds(images, choice.folds, seed) if choice.kind is SplitKind.FOLD else {}

    def moved(image: Image) -> Image:
        validates = folds.get(content_key(image)) == choice.fold
        return replace(image, split=Split.VALIDATION if validates else Split.TRAIN)

    return tuple(moved(image) if _is_usable(image) else image for image in images)


def content_key(image: Image) -> str:
    """The hash of an image's pixels, on which its fold depends."""
    return image.pixels_sha256 or image.source


def _group_key(image: Image) -> str:
    return content_key(image) if image.group is None else f"group {image.group}"


def _is_usable(image: Image) -> bool:
    is_measurable = image.split in {Split.TRAIN, Split.VALIDATION} and not image.is_regularization
    return image.status == "kept" and is_measurable


def _fold_indices(images: Sequence[Image], groups: Sequence[str], folds: int, seed: int) -> list[list[int]]:
    # Takes seconds to import, and only the runs of a cross-validation need it.
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    stratified = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    sizes = Counter(image.class_name for image in images)
    # Classes that are too small for an image in each fold are pooled.
    strata = [f"class {image.class_name}" if sizes[image.class_name] >= folds else "pooled" for image in images]
    with warnings.catch_warnings():
        # It warns of strata smaller than the number of folds. The pool may be one, and is spread nevertheless.
        warnings.simplefilter("ignore", UserWarning)
        held_out = [indices.tolist() for _train, indices in stratified.split(images, strata, groups)]
    if not all(held_out):
        # It balances classes first, and can leave a fold empty if there are few groups: then sizes matter more.
        held_out = [indices.tolist() for _train, indices in GroupKFold(folds).split(images, groups=groups)]
    return held_out


def _too_few_groups(different: int, folds: int) -> DatasetError:
    message = ngettext(
        "The dataset has {n} image to train and validate with (near duplicates count once), too few for {folds} folds.",
        "The dataset has {n} different images to train and validate with (near duplicates count once), too few for "
        "{folds} folds.",
        different,
        folds=folds,
    )
    if different < 2:
        return DatasetError(message, _("A cross-validation needs at least 2."))
    return DatasetError(message, _("Use {n} folds at most.", n=different))
