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

from bot.errors import DarkroomError
from trainer.protocol.text import _


class DataFolderError(DarkroomError):
    """The data folder cannot be used."""


class FolderInUse(DataFolderError):
    """Another bot uses this data folder."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(
            _("Another bot already uses {path}. Stop it first, or set another storage.data_dir.", path=path)
        )


class SchemaTooNew(DataFolderError):
    """A newer Darkroom wrote this database."""

    def __init__(self, *, path: Path, found: int, known: int) -> None:
        self.path, self.found, self.known = path, found, known
        super().__init__(
            _(
                "{path} was written by a newer Darkroom (schema {found}; this one knows {known}). Nothing was changed; "
                "update Darkroom, or set another storage.data_dir.",
                path=path,
                found=found,
                known=known,
            )
        )


class SchemaTooOld(DataFolderError):
    """An older Darkroom wrote this database, and the caller may only read it."""

    def __init__(self, *, path: Path, found: int, known: int) -> None:
        self.path, self.found, self.known = path, found, known
        super().__init__(
            _(
                "{path} was written by an older Darkroom (schema {found}; this one needs {known}). Nothing was "
                "changed; the bot upgrades it when it starts.",
                path=path,
                found=found,
                known=known,
            )
        )


class DatabaseUnreadable(DataFolderError):
    """There is no database, or it cannot be opened."""

    def __init__(self, *, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(
            _(
                "{path} cannot be read: {why}. Check storage.data_dir in the config, and run this as the bot's user.",
                path=path,
                why=why,
            )
        )


class CopyFailed(DataFolderError):
    """The database could not be copied."""

    def __init__(self, *, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(_("{path} could not be written: {why}. Nothing else was changed.", path=path, why=why))


class CopyRefused(DataFolderError):
    """A backup is not restored."""

    def __init__(self, *, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(_("{path} is not restored: {why}. Nothing was changed.", path=path, why=why))


class DatabaseDamaged(DataFolderError):
    """The database fails its integrity check."""

    def __init__(self, *, path: Path, finding: str) -> None:
        self.path, self.finding = path, finding
        super().__init__(
            _(
                "{path} is damaged ({finding}). Restore a backup of it, or set another storage.data_dir.",
                path=path,
                finding=finding,
            )
        )


class DatabaseUnwritable(DataFolderError):
    """The database takes no changes at the moment; its content is unchanged."""

    def __init__(self, *, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(
            _(
                "I cannot save anything at the moment: {why}. Nothing was changed and nothing is lost. The operator "
                "of this bot has to free disk space or repair the disk; then try again.",
                why=why,
            )
        )
