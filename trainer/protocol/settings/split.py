"""Which pictures train and which measure, where that is not the dataset's own split."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from trainer.protocol.frozen import Frozen


class SplitKind(StrEnum):
    #: As the dataset was prepared.
    REPORT = "report"
    #: One fold of k: its pictures validate, those of the others train; the test pictures stay apart.
    FOLD = "fold"
    #: Training and validation pictures all train, a share of them is measured for the curve; no early stopping, and the
    #: last epoch is kept. The test pictures stay apart.
    ALL = "all"


class SplitChoice(Frozen):
    """The split of the main dataset and of those mixed in; duplicates always stay together."""

    kind: SplitKind = SplitKind.REPORT
    #: Which fold validates, from 1; only for `fold`.
    fold: int = Field(default=1, ge=1, le=20)
    folds: int = Field(default=5, ge=2, le=20)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fold > self.folds:
            raise ValueError(f"there is no fold {self.fold} of {self.folds}.")
        return self
