"""From files that were handed in to a dataset with all that was wished for it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from bot.config import CaptionSettings
from bot.datasets.dataset import Dataset, Received
from bot.datasets.decisions import with_rules
from bot.datasets.rules import require_change
from bot.datasets.store import DatasetStore


@dataclass(frozen=True, kw_only=True)
class ImportWishes:
    """What somebody asked for beside the files."""

    #: None: after the first file.
    name: str | None = None
    trigger: str = ""
    wants_captions: bool = False
    #: When they asked, they might change other people's datasets too (these files may be one already).
    can_manage: bool = False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ImportWishes:
        return cls(**json.loads(text))


async def import_files(
    store: DatasetStore,
    received: Received,
    wishes: ImportWishes,
    *,
    guild_id: int,
    owner_id: int,
    captions: CaptionSettings,
) -> Dataset:
    """The dataset of these files; a second time changes nothing more.

    Raises:
        DatasetRefused: it cannot be trained on, or could not be examined; the sentence says why.
        NotYourDataset: these files are somebody else's dataset already, and more was wished for than to have it.
    """
    dataset = await store.prepare(received, guild_id=guild_id, owner_id=owner_id, name=wishes.name)
    if wishes.trigger or wishes.wants_captions:
        require_change(dataset, user_id=owner_id, can_manage=wishes.can_manage, verb="change")
    if wishes.trigger:
        dataset = await store.edit(dataset.id, lambda edits: with_rules(edits, trigger=wishes.trigger))
    if wishes.wants_captions:
        dataset = await store.caption(dataset.id, captions)
    return dataset
