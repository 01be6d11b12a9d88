"""Who may change a dataset."""

from __future__ import annotations

from bot.datasets.dataset import Dataset
from bot.errors import NotYourDataset


def may_change(dataset: Dataset, *, user_id: int, can_manage: bool) -> bool:
    """Whether somebody may decide about a dataset: its owner, or who may manage the server."""
    return can_manage or user_id == dataset.owner_id


def require_change(dataset: Dataset, *, user_id: int, can_manage: bool, verb: str = "change") -> None:
    """Nothing, if somebody may do `verb` with a dataset.

    Raises:
        NotYourDataset: they may not.
    """
    if not may_change(dataset, user_id=user_id, can_manage=can_manage):
        raise NotYourDataset(name=dataset.name, owner_id=dataset.owner_id, verb=verb)
