"""Further datasets of a job: what each is for, and how often its pictures are seen."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class MixRole(StrEnum):
    #: Taught as the main dataset is; its validation and test pictures are measured too.
    TRAIN = "train"
    #: Pictures of the class that the subject belongs to, seen so that the model does not forget the class (prior
    #: preservation, Ruiz et al. 2022, arXiv:2208.12242). All of them train, as they are and under their own captions.
    REGULARIZATION = "regularization"


class MixPart(BaseModel):
    """One further dataset. Without `repeats` and `weight`, each of its pictures is seen once in an epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: A folder that `trainer prepare` wrote.
    dataset: str = Field(min_length=1)
    #: How often each of its training pictures is seen in one epoch.
    repeats: int | None = Field(default=None, ge=1, le=1000)
    #: Share of all pictures of an epoch that are of this dataset.
    weight: float | None = Field(default=None, gt=0, lt=1)
    role: MixRole = MixRole.TRAIN
    #: A word put before each of its captions that does not hold it yet.
    trigger: str = Field(default="", max_length=50)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.repeats is not None and self.weight is not None:
            raise ValueError("repeats and weight both say how often its pictures are seen; give one of them.")
        if self.trigger and self.role is MixRole.REGULARIZATION:
            raise ValueError("a regularization dataset keeps its own captions; take its trigger away.")
        return self


def parse_part(text: str) -> dict[str, str]:
    """Settings of a `MixPart` from a command line: `/data/cats:repeats=3:role=regularization`.

    Names and values are checked where the spec is made.
    """
    *folder, last = text.split(":")
    settings: dict[str, str] = {}
    while folder and "=" in last and "/" not in last.partition("=")[0]:
        name, _, value = last.partition("=")
        settings[name.strip()] = value.strip()
        *folder, last = folder
    return {"dataset": ":".join([*folder, last]), **settings}


def check_mix(dataset: str, mix: tuple[MixPart, ...]) -> None:
    """Raises: ValueError: the parts contradict each other or the main dataset."""
    names = [dataset, *(part.dataset for part in mix)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is there twice; set its repeats instead.")
    total = sum(part.weight or 0 for part in mix)
    if total >= 1:
        raise ValueError(f"the weights of mix add up to {total:g}; they must leave a share to {dataset}.")
