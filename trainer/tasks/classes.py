"""The classes of a job: their names, whether they can be learnt at all, and what a picture of each counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from trainer.dataset.split.mixing import Mixture
from trainer.dataset.split.overlap import Member
from trainer.errors import DatasetError
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Split
from trainer.protocol.settings import ClassWeights

_SHOWN = 3
_HOW = "Put the pictures into one folder for each class, or name the class of each in a table, and prepare them again."


def class_names(members: Sequence[Member]) -> tuple[str, ...]:
    """The classes of the pictures, in the order of their names.

    Raises:
        DatasetError: pictures have no class, all have the same, or a class has no picture to train on.
    """
    unnamed = [member.image.source for member in members if not member.image.class_name]
    if len(unnamed) == len(members):
        raise DatasetError("No picture has a class.", _HOW)
    if unnamed:
        has = "picture has" if len(unnamed) == 1 else "pictures have"
        raise DatasetError(f"{len(unnamed)} of {len(members)} {has} no class: {_listed(unnamed)}.", _HOW)
    trained = {member.image.class_name for member in members if member.split is Split.TRAIN}
    names = sorted({member.image.class_name for member in members})
    if len(names) == 1:
        raise DatasetError(f"All {len(members)} pictures are of one class, {names[0]}.", "A classifier needs two.")
    untrained = [name for name in names if name not in trained]
    if untrained:
        raise DatasetError(
            f"{_quantity(untrained)} no picture to train on, and some to measure with: {_listed(untrained)}.",
            "Add pictures of it, or drop those that there are, and prepare the dataset again.",
        )
    return tuple(names)


def loss_weights(mixture: Mixture, kind: ClassWeights, regularization_weight: float) -> list[float]:
    """What the loss of each picture counts, by its place among the members; 1 on average over an epoch.

    Balanced: n / (k * n_c), where n views are of k classes and n_c of them of the picture's own (King & Zeng 2001, as
    `sklearn.utils.class_weight.compute_class_weight`). Class pictures count `regularization_weight` of that.
    """
    of_class = _balanced(mixture) if kind is ClassWeights.BALANCED else {}
    return [
        of_class.get(member.image.class_name, 1.0)
        * (regularization_weight if mixture.source_of(member).role is MixRole.REGULARIZATION else 1.0)
        for member in mixture.members
    ]


def _balanced(mixture: Mixture) -> Mapping[str, float]:
    views: Counter[str] = Counter()
    for member in mixture.of(Split.TRAIN):
        views[member.image.class_name] += member.image.repeats * mixture.source_of(member).repeats
    return {name: views.total() / (len(views) * count) for name, count in views.items()}


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _quantity(names: Sequence[str]) -> str:
    return "One class has" if len(names) == 1 else f"{len(names)} classes have"
