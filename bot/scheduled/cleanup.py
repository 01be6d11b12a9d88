"""Deletes files: those that the retention plan names, left-over datasets, expired drafts.

A bot killed between any two steps leaves nothing half-deleted in sight. First the row says that the files are gone,
then the folder is renamed, then it is removed: a folder under its own name is whole, and the next start removes what
a killed bot left.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import RetentionSettings
from bot.datasets import DatasetStore, ResumableUploads
from bot.db import Connection, Database, Row
from bot.db.audit import write_entry
from bot.queue import DraftStore
from bot.queue.domain.job import ENDS, State, folder_of
from bot.queue.planning.retention import BROUGHT_FILES, CHECKPOINTS, IS_SOURCE, Deletion, DeletionScope, Storage
from bot.queue.store.job_sql import listed
from bot.scheduled.alerts import AdminNotifier
from bot.ui.admin_news import FilesDeleted
from bot.ui.admin_pages import deletion_text
from bot.web import WebLinks

log = logging.getLogger(__name__)

_TRASH = ".trash-"
#: Left-over dataset folders may still be in use before.
_LEFTOVER_AGE_S = 86_400.0

#: Checked again at the deletion: since the plan was made the job may have been pinned, shared or queued again.
_STILL_DELETABLE = f"""state IN {listed(ENDS)} AND pinned_at IS NULL AND shared_at IS NULL AND files_deleted_at IS NULL
AND parent_id IS NULL AND NOT EXISTS (
    SELECT 1 FROM job AS child WHERE child.parent_id = job.id
    AND (child.state NOT IN {listed(ENDS)} OR child.pinned_at IS NOT NULL OR child.shared_at IS NOT NULL))
AND NOT {IS_SOURCE}"""
_MARK_DELETED = f"UPDATE job SET files_deleted_at = :now WHERE id = :id AND {_STILL_DELETABLE} RETURNING *"
_MARK_CHILDREN = "UPDATE job SET files_deleted_at = :now WHERE parent_id = :id"
_STILL_FINAL = f"""
SELECT * FROM job
WHERE id = :id AND {_STILL_DELETABLE} AND state IN {listed(frozenset({State.SUCCEEDED, State.STOPPED}))}
"""
_FAMILY = "SELECT * FROM job WHERE id = ?1 OR parent_id = ?1"


async def sweep_datasets(datasets: DatasetStore) -> None:
    """Delete uploads that became no dataset, deleted datasets and unused old revisions, after a day."""
    if count := await datasets.sweep(older_than_s=_LEFTOVER_AGE_S):
        log.info("%d left-over dataset folders deleted", count)


async def sweep_uploads(uploads: ResumableUploads, links: WebLinks) -> None:
    """Delete abandoned uploads by page, and links that ended long ago."""
    if count := await uploads.sweep():
        log.info("%d unfinished uploads by page deleted", count)
    await links.forget_ended()


async def sweep_drafts(drafts: DraftStore) -> None:
    """Delete expired drafts."""
    if count := await drafts.sweep():
        log.info("%d expired drafts deleted", count)


class RetentionRunner:
    """Deletes what `Storage` plans."""

    def __init__(
        self,
        db: Database,
        *,
        data_dir: Path,
        settings: RetentionSettings | None = None,
        notifier: AdminNotifier | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._settings = settings or RetentionSettings()
        self._storage = Storage(db, data_dir=data_dir, settings=self._settings, clock=clock)
        self._notifier = notifier
        self._jobs_dir = data_dir.absolute() / "jobs"
        self._clock = clock

    async def run(self) -> int:
        """Delete what is due, and return the number of jobs whose files were deleted; a dry run only logs them."""
        await self.empty_trash()
        plan, _totals = await self._storage.survey()
        if self._settings.dry_run:
            for deletion in plan.deletions:
                log.info("would delete %s", deletion_text(deletion))
            return 0
        done = [deletion for deletion in plan.deletions if await self.delete(deletion)]
        if done and self._notifier is not None:
            news = FilesDeleted(jobs=len(done), bytes=sum(deletion.bytes for deletion in done))
            await self._notifier.send(news, key=f"retention:{self._clock.time():.0f}", level=logging.INFO)
        return len(done)

    async def delete(self, deletion: Deletion) -> bool:
        """Delete these files; False if they are needed again."""
        folders = await self._mark(deletion)
        if folders is None:
            return False
        log.info("#%d: deleting %s", deletion.job_id, deletion_text(deletion))
        for name, folder in folders:
            await asyncio.to_thread(self._delete, name, folder)
        return True

    async def empty_trash(self) -> None:
        """Finish the deletions that a killed bot began."""
        rows = await self._db.all("SELECT * FROM job WHERE files_deleted_at IS NOT NULL AND parent_id IS NULL")
        await asyncio.to_thread(self._empty_trash, [(str(row["id"]), self._jobs_dir / folder_of(row)) for row in rows])
        named = await self._db.all("SELECT folder FROM job WHERE folder IS NOT NULL")
        await asyncio.to_thread(self._sweep_brought, {row["folder"] for row in named})

    def _sweep_brought(self, known: set[str]) -> None:
        """Delete files that members brought for samplings which were never queued: the bot was killed in between."""
        for folder in self._jobs_dir.glob(f"{BROUGHT_FILES}*"):
            if folder.name not in known and folder.stat().st_mtime < self._clock.time() - _LEFTOVER_AGE_S:
                self._delete(folder.name, folder)

    async def _mark(self, deletion: Deletion) -> list[tuple[str, Path]] | None:
        """Record the deletion before it happens, and return (name, folder) of each folder; None if it may not."""
        values = {"id": deletion.job_id, "now": self._clock.time()}
        is_whole = deletion.scope is DeletionScope.EVERYTHING
        async with self._db.transaction() as connection:
            rows = list(await connection.execute_fetchall(_MARK_DELETED if is_whole else _STILL_FINAL, values))
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
            at=self._clock.time(),
            verb=f"delete {deletion.scope}",
            job_id=row["id"],
            guild_id=row["guild_id"],
            before=row["state"],
            after=row["state"],
            why=deletion_text(deletion),
        )

    def _delete(self, name: str, folder: Path) -> None:
        trash = self._jobs_dir / f"{_TRASH}{name}"
        try:
            # An earlier deletion may have left something under that name.
            _remove(trash)
            _move(folder, trash)
            _remove(trash)
        except OSError:
            log.exception("#%s: %s could not be deleted; trying again later", name.partition("-")[0], folder)

    def _empty_trash(self, marked: Sequence[tuple[str, Path]]) -> None:
        for name, folder in marked:
            if folder.exists() or folder.is_symlink():
                self._delete(name, folder)
        for trash in self._jobs_dir.glob(f"{_TRASH}*"):
            try:
                _remove(trash)
            except OSError:
                log.exception("%s could not be removed; trying again later", trash)


def _move(folder: Path, trash: Path) -> None:
    # A link itself is moved; its target stays.
    if folder.exists() or folder.is_symlink():
        folder.rename(trash)


def _remove(trash: Path) -> None:
    if trash.is_symlink():
        trash.unlink()
    elif trash.exists():
        shutil.rmtree(trash)
