"""Housekeeping: what was left behind, requests that nobody let go, the write-ahead log."""

from __future__ import annotations

import logging

from bot.datasets import DatasetStore
from bot.db import Database
from bot.queue import DraftStore

log = logging.getLogger(__name__)

_DAY_S = 86_400.0


async def sweep_leftovers(datasets: DatasetStore) -> None:
    """Delete uploads that became no dataset, deleted datasets and old revisions that no job needs, after a day."""
    if count := await datasets.sweep(older_than_s=_DAY_S):
        log.info("%d left-over folders of datasets deleted", count)


async def sweep_drafts(drafts: DraftStore) -> None:
    """Delete requests that nobody let go for a day."""
    if count := await drafts.sweep():
        log.info("%d requests that waited for a day deleted", count)


async def empty_wal(db: Database) -> None:
    """Bring the write-ahead log back to nothing; readers that never pause can make it grow."""
    await db.checkpoint()
