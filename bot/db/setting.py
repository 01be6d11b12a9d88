"""Small facts that the bot remembers between two starts, by name."""

from __future__ import annotations

from bot.db.database import Connection, Database


async def read_setting(db: Database, name: str) -> str | None:
    """The value of a setting, None if it was never written."""
    row = await db.one("SELECT value FROM setting WHERE name = ?", (name,))
    return str(row["value"]) if row else None


async def write_setting(db: Database, name: str, value: str) -> None:
    """Remember `value` in the place of what was there."""
    async with db.transaction() as connection:
        await put_setting(connection, name, value)


async def put_setting(connection: Connection, name: str, value: str) -> None:
    """As `write_setting`, within the caller's transaction."""
    await connection.execute_fetchall(
        "INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )
