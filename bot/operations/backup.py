"""`python -m bot backup`: a verified copy of the database, also while the bot runs."""

from __future__ import annotations

from pathlib import Path

from bot.config import Config
from bot.db import DATABASE_FILE, Copy, back_up, copy_database
from bot.ui.text import counted


def backup_folder(config: Config) -> Path:
    """Where copies go that are not told otherwise."""
    return Path(config.backup.folder) if config.backup.folder else config.storage.data_dir / "backups"


async def run_backup(config: Config, *, to: Path | None = None) -> str:
    """Make a copy, and say in one sentence what it holds; `to` is kept for ever, others until newer ones replace them.

    Raises:
        DataFolderError: no copy could be made.
    """
    source = config.storage.data_dir / DATABASE_FILE
    if to is not None:
        return describe(await copy_database(source, to))
    copy = await back_up(source, backup_folder(config), keep=config.backup.keep)
    return f"{describe(copy)} The newest {config.backup.keep} are kept."


def describe(copy: Copy) -> str:
    """A copy in one sentence."""
    return (
        f"{copy.path}: {copy.bytes / 1024:,.0f} KiB, {held_words(copy)}, schema {copy.schema}; opened and found sound."
    )


def held_words(copy: Copy) -> str:
    """`1 job, 3 datasets`."""
    return f"{counted(copy.jobs, 'job')}, {counted(copy.datasets, 'dataset')}"
