"""The bot's SQLite database and copies of it."""

from bot.db.copies import Copy, back_up, copy_database, verify_copy
from bot.db.database import (
    DATABASE_FILE,
    Connection,
    Database,
    Row,
    as_stored,
    hold_data_folder,
    integrity_of,
    open_db,
    open_to_read,
    put_setting,
    read_setting,
    schema_of,
    write_setting,
)

__all__ = [
    "DATABASE_FILE",
    "Connection",
    "Copy",
    "Database",
    "Row",
    "as_stored",
    "back_up",
    "copy_database",
    "hold_data_folder",
    "integrity_of",
    "open_db",
    "open_to_read",
    "put_setting",
    "read_setting",
    "schema_of",
    "verify_copy",
    "write_setting",
]
