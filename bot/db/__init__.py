"""The bot's SQLite database: opening, migrating, one writer at a time, and copies of it."""

from bot.db.copies import Copy, back_up, copy_database, verify_copy
from bot.db.database import Connection, Database, Row, open_db
from bot.db.folder import DATABASE_FILE, hold_data_folder
from bot.db.reading import integrity_of, open_to_read, schema_of

__all__ = [
    "DATABASE_FILE",
    "Connection",
    "Copy",
    "Database",
    "Row",
    "back_up",
    "copy_database",
    "hold_data_folder",
    "integrity_of",
    "open_db",
    "open_to_read",
    "schema_of",
    "verify_copy",
]
