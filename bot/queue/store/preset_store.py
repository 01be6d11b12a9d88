"""Presets that members of a server saved from their jobs."""

from __future__ import annotations

from dataclasses import dataclass

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Database, Row, as_stored
from bot.errors import Explained, NotFound
from trainer.protocol.presets import Preset
from trainer.protocol.text import N_

#: Of one server: with the built-in ones they fill half of Discord's choices.
MAX_PRESETS = 50

_SAVE = """
INSERT INTO preset (guild_id, owner_id, name, base, content, created_at) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (guild_id, name) DO UPDATE
SET base = excluded.base, content = excluded.content, created_at = excluded.created_at
WHERE owner_id = excluded.owner_id
RETURNING id
"""


@dataclass(frozen=True, kw_only=True)
class SavedPreset:
    """A preset of one server."""

    guild_id: int
    owner_id: int
    #: Label of the base model that it was trained on; empty: the preset brings its own.
    base: str
    preset: Preset

    @classmethod
    def from_row(cls, row: Row) -> SavedPreset:
        return cls(**as_stored(cls, row), preset=Preset.model_validate_json(row["content"]))


class PresetNameTaken(Explained):
    """Another member's preset has that name."""

    name: str
    owner_id: int
    sentence = N_("There is a preset {name} already. Nothing was saved; choose another name.")


class TooManyPresets(Explained):
    """A server has as many presets as it may have."""

    allowed: int
    sentence = N_("This server has {allowed} presets, the most there can be. Delete one: /preset delete.")


class NoSuchPreset(Explained, NotFound):
    """No saved preset of that name."""

    name: str
    sentence = N_("This server has no saved preset {name}. /preset list shows them.")


class PresetStore:
    """Saved presets in the database."""

    def __init__(self, db: Database, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._clock = clock

    async def save(self, saved: SavedPreset) -> None:
        """Store a preset; one of the same member and name is replaced.

        Raises:
            PresetNameTaken: Another member's has that name.
            TooManyPresets: The server has as many as it may have.
        """
        name, guild_id = saved.preset.name, saved.guild_id
        values = (guild_id, saved.owner_id, name, saved.base, saved.preset.model_dump_json(), self._clock.time())
        async with self._db.transaction() as connection:
            (count,) = await connection.execute_fetchall(
                "SELECT COUNT(*) FROM preset WHERE guild_id = ? AND name != ?", (guild_id, name)
            )
            if count[0] >= MAX_PRESETS:
                raise TooManyPresets(allowed=MAX_PRESETS)
            if not list(await connection.execute_fetchall(_SAVE, values)):
                raise PresetNameTaken(name=name, owner_id=saved.owner_id)

    async def all(self, guild_id: int) -> list[SavedPreset]:
        """Return the presets of a server by name."""
        rows = await self._db.all("SELECT * FROM preset WHERE guild_id = ? ORDER BY name", (guild_id,))
        return [SavedPreset.from_row(row) for row in rows]

    async def find(self, guild_id: int, name: str) -> SavedPreset | None:
        """Return the preset of that name, if the server has one."""
        row = await self._db.one("SELECT * FROM preset WHERE guild_id = ? AND name = ?", (guild_id, name))
        return None if row is None else SavedPreset.from_row(row)

    async def delete(self, guild_id: int, name: str) -> None:
        """Delete a preset, if it is there."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall("DELETE FROM preset WHERE guild_id = ? AND name = ?", (guild_id, name))
