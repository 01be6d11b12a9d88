"""Room on the disk of the data folder: told once when it runs low, and once when there is room again."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from bot.db import Database
from bot.db.setting import put_setting, read_setting
from bot.scheduled.news import News
from bot.ui.text import size

_SETTING = "health.disk"
#: There is room again with so much more than the least: what ends and starts near the limit must not flap.
_SLACK = 1.1


class Disk:
    """How much room there is; a look costs microseconds, so that it may be asked at each step of the queue."""

    def __init__(
        self,
        folder: Path,
        *,
        min_free_bytes: int,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._free = free
        self._is_low = False

    @property
    def free_bytes(self) -> int:
        return self._free(self._folder)

    @property
    def min_free_bytes(self) -> int:
        return self._min_free_bytes

    def is_low(self) -> bool:
        """Whether there is too little room to start anything."""
        if not self._min_free_bytes:
            return False
        self._is_low = self.free_bytes < self._min_free_bytes * (_SLACK if self._is_low else 1.0)
        return self._is_low


class DiskWatch:
    """Tells when the disk crosses the limit; remembers it over restarts."""

    def __init__(self, db: Database, news: News, disk: Disk, *, now: Callable[[], float] = time.time) -> None:
        self._db = db
        self._news = news
        self._disk = disk
        self._now = now

    async def look(self) -> None:
        """Look once."""
        is_low = await asyncio.to_thread(self._disk.is_low)
        was_low = await read_setting(self._db, _SETTING) == "low"
        if is_low == was_low:
            return
        free, least = size(self._disk.free_bytes), size(self._disk.min_free_bytes)
        if is_low:
            text = (
                f"The disk is nearly full: {free} free, {least} are needed. Nothing new starts until there is room; "
                "what runs goes on. /admin storage shows what may go."
            )
        else:
            text = f"There is room on the disk again: {free} free. Trainings start."
        async with self._db.transaction() as connection:
            await put_setting(connection, _SETTING, "low" if is_low else "ok")
            level = logging.WARNING if is_low else logging.INFO
            await self._news.put(connection, text, key=f"disk:{is_low}:{self._now():.0f}", level=level)
