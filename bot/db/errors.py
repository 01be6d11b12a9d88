"""Errors of the data folder and its database.

DataFolderError
├── FolderInUse          another bot uses this data folder
├── SchemaTooNew         a newer Darkroom wrote this database
├── SchemaTooOld         an older one wrote it, and this command may not change it
├── DatabaseUnreadable   there is none, or it cannot be opened
├── CopyFailed           it could not be copied
├── CopyRefused          a backup is not restored; nothing was changed
├── DatabaseDamaged      the database fails its integrity check
└── DatabaseUnwritable   its disk is full, read-only or broken; nothing was changed
"""

from __future__ import annotations

from pathlib import Path

from bot.errors import DarkroomError, Explained
from trainer.protocol.text import N_


class DataFolderError(DarkroomError):
    """The data folder cannot be used."""


class FolderInUse(Explained, DataFolderError):
    """Another bot uses this data folder."""

    path: Path
    sentence = N_("Another bot already uses {path}. Stop it first, or set another storage.data_dir.")


class SchemaTooNew(Explained, DataFolderError):
    """A newer Darkroom wrote this database."""

    path: Path
    found: int
    known: int
    sentence = N_(
        "{path} was written by a newer Darkroom (schema {found}; this one knows {known}). Nothing was changed; "
        "update Darkroom, or set another storage.data_dir."
    )


class SchemaTooOld(Explained, DataFolderError):
    """An older Darkroom wrote this database, and the caller may only read it."""

    path: Path
    found: int
    known: int
    sentence = N_(
        "{path} was written by an older Darkroom (schema {found}; this one needs {known}). Nothing was "
        "changed; the bot upgrades it when it starts."
    )


class DatabaseUnreadable(Explained, DataFolderError):
    """There is no database, or it cannot be opened."""

    path: Path
    why: str
    sentence = N_("{path} cannot be read: {why}. Check storage.data_dir in the config, and run this as the bot's user.")


class CopyFailed(Explained, DataFolderError):
    """The database could not be copied."""

    path: Path
    why: str
    sentence = N_("{path} could not be written: {why}. Nothing else was changed.")


class CopyRefused(Explained, DataFolderError):
    """A backup is not restored."""

    path: Path
    why: str
    sentence = N_("{path} is not restored: {why}. Nothing was changed.")


class DatabaseDamaged(Explained, DataFolderError):
    """The database fails its integrity check."""

    path: Path
    finding: str
    sentence = N_("{path} is damaged ({finding}). Restore a backup of it, or set another storage.data_dir.")


class DatabaseUnwritable(Explained, DataFolderError):
    """The database takes no changes at the moment; its content is unchanged."""

    path: Path
    why: str
    sentence = N_(
        "I cannot save anything at the moment: {why}. Nothing was changed and nothing is lost. The operator "
        "of this bot has to free disk space or repair the disk; then try again."
    )
