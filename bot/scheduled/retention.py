"""Makes room as the retention plan says, so that a bot killed between any two steps leaves nothing half-told.

First the row says that the files are gone, then the folder gets another name, then it is removed: a folder that is
there is whole, and whatever a killed bot leaves behind is swept at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bot.config import RetentionSettings
from bot.db import Connection, Database, Row
from bot.queue.domain.job import ENDS, State
from bot.queue.planning.retention import Deletion, What
from bot.queue.planning.storage import CHECKPOINTS, Storage
from bot.queue.store.audit import write_entry
from bot.queue.store.job_rows import folder_of
from bot.queue.store.job_sql import listed
from bot.scheduled.news import News
from bot.scheduled.store_sweep import StoreSweep
from bot.ui.text import counted, size

log = logging.getLogger(__name__)

_TRASH = ".trash-"

#: Whatever happened since the plan was made: it may have been pinned, shared, or queued again.
_STILL = f"""state IN {listed(ENDS)} AND pinned_at IS NULL AND shared_at IS NULL AND files_deleted_at IS NULL
AND parent_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM job AS child WHERE child.parent_id = job.id
    AND (child.state NOT IN {listed(ENDS)} OR child.pinned_at IS NOT NULL OR child.shared_at IS NOT NULL))"""
_MARK_ALL = f"UPDATE job SET files_deleted_at = :now WHERE id = :id AND {_STILL} RETURNING *"
_MARK_CHILDREN = "UPDATE job SET files_deleted_at = :now WHERE parent_id = :id"
_STILL_FINAL = f"""
SELECT * FROM job WHERE id = :id AND {_STILL} AND state IN {listed(frozenset({State.SUCCEEDED, State.STOPPED}))}
"""
_FAMILY = "SELECT * FROM job WHERE id = ?1 OR parent_id = ?1"


class Retention:
    """Carries out what `Storage` plans."""

    def __init__(
        self,
        db: Database,
        *,
        data_dir: Path,
        settings: RetentionSettings | None = None,
        news: News | None = None,
        store: StoreSweep | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._settings = settings or RetentionSettings()
        self._storage = Storage(db, data_dir=data_dir, settings=self._settings, now=now)
        self._news = news
        #: Where job folders go through an object store; its own chore takes away there what is written down here.
        self._store = store
        self._jobs_dir = data_dir.absolute() / "jobs"
        self._now = now

    async def run(self) -> int:
        """Free what is due; the number of jobs whose files went. A dry run only logs them."""
        await self.sweep()
        in_store = () if self._store is None else await self._store.with_checkpoints()
        plan, _ = await self._storage.survey(in_store)
        if self._settings.dry_run:
            for deletion in plan.deletions:
                log.info("would delete %s", deletion.sentence)
            return 0
        freed = [deletion for deletion in plan.deletions if await self.free(deletion)]
        if freed and self._news is not None:
            total = sum(deletion.bytes for deletion in freed)
            room = size(total) if total else "in the object store"
            text = f"Made room: {room}, files of {counted(len(freed), 'job')} (/admin audit names them)."
            await self._news.tell(text, key=f"retention:{self._now():.0f}", level=logging.INFO)
        return len(freed)

    async def free(self, deletion: Deletion) -> bool:
        """Delete these files; False if they are needed by now."""
        folders = await self._mark(deletion)
        if folders is None:
            return False
        log.info("#%d: %s", deletion.job_id, deletion.sentence)
        for name, folder in folders:
            await asyncio.to_thread(self._delete, name, folder)
        return True

    async def sweep(self) -> None:
        """Finish what a bot that was killed left behind."""
        rows = await self._db.all("SELECT * FROM job WHERE files_deleted_at IS NOT NULL AND parent_id IS NULL")
        await asyncio.to_thread(self._sweep, [(str(row["id"]), self._jobs_dir / folder_of(row)) for row in rows])

    async def _mark(self, deletion: Deletion) -> list[tuple[str, Path]] | None:
        """Write down that the files go, before they do; (name, folder) of each."""
        values = {"id": deletion.job_id, "now": self._now()}
        is_whole = deletion.what is What.EVERYTHING
        async with self._db.transaction() as connection:
            rows = list(await connection.execute_fetchall(_MARK_ALL if is_whole else _STILL_FINAL, values))
            if not rows:
                return None
            if is_whole:
                await connection.execute_fetchall(_MARK_CHILDREN, values)
            await self._audit(connection, rows[0], deletion)
            family = list(await connection.execute_fetchall(_FAMILY, (deletion.job_id,)))
        if is_whole:
            return [(str(deletion.job_id), self._jobs_dir / folder_of(rows[0]))]
        return [(f"{row['id']}-{CHECKPOINTS}", self._jobs_dir / folder_of(row) / CHECKPOINTS) for row in family]

    async def _audit(self, connection: Connection, row: Row, deletion: Deletion) -> None:
        await write_entry(
            connection,
            at=self._now(),
            verb=f"delete {deletion.what}",
            job_id=row["id"],
            guild_id=row["guild_id"],
            before=row["state"],
            after=row["state"],
            why=deletion.sentence,
        )

    def _delete(self, name: str, folder: Path) -> None:
        trash = self._jobs_dir / f"{_TRASH}{name}"
        try:
            # What an earlier deletion left under that name.
            _remove(trash)
            _move(folder, trash)
            _remove(trash)
        except OSError:
            log.exception("#%s: %s could not be deleted; trying again later", name.partition("-")[0], folder)

    def _sweep(self, marked: Sequence[tuple[str, Path]]) -> None:
        for name, folder in marked:
            if folder.exists() or folder.is_symlink():
                self._delete(name, folder)
        for trash in self._jobs_dir.glob(f"{_TRASH}*"):
            try:
                _remove(trash)
            except OSError:
                log.exception("%s could not be removed; trying again later", trash)


def _move(folder: Path, trash: Path) -> None:
    # A link is moved itself; what it points to stays.
    if folder.exists() or folder.is_symlink():
        folder.rename(trash)


def _remove(trash: Path) -> None:
    if trash.is_symlink():
        trash.unlink()
    elif trash.exists():
        shutil.rmtree(trash)
