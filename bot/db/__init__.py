"""The bot's SQLite database: opening, migrating, and one writer at a time."""

from bot.db.database import Connection, Database, Row, open_db
from bot.db.folder import hold_data_folder

__all__ = ["Connection", "Database", "Row", "hold_data_folder", "open_db"]
