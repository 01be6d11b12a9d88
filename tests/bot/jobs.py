"""Jobs for tests of the queue order."""

from __future__ import annotations

import itertools
from typing import Any

from bot.queue import NewJob
from tests.bot.conftest import CHANNEL, GUILD
from trainer.protocol.spec import make_spec

_numbers = itertools.count(1_000_000)


def new_job(*, owner: int = 1, guild: int = GUILD, name: str = "fox", epochs: int = 20, **more: Any) -> NewJob:
    """A new job on dataset 1."""
    return NewJob(
        interaction_id=next(_numbers),
        guild_id=guild,
        channel_id=CHANNEL,
        owner_id=owner,
        dataset_id=1,
        spec=make_spec({"name": name, "dataset": "/nowhere", "training": {"epochs": epochs}}),
        **more,
    )
