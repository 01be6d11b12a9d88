"""Fixtures of the wire tests: a loopback Discord, the real bot on it, and two people. See README.md."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.bot.cogs.conftest import forked_trainer
from tests.trainer.fork_server import ForkServer
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord
from tests.wire.wire_people import Person, person


def archive(images: int = 6, name: str = "fox.zip", salt: str = "") -> tuple[str, bytes]:
    """An attachment with this many images (for the stand-in trainer, which does not open them)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for number in range(images):
            packed.writestr(f"{number}.png", b"\x89PNG\r\n" + bytes([number]) + salt.encode())
    return name, file.getvalue()


@pytest.fixture
async def discord() -> AsyncIterator[WireDiscord]:
    """A Discord on loopback with one server (`discord.guild`) and one channel (`discord.channel`)."""
    async with WireDiscord() as discord:
        yield discord


@pytest.fixture
def ana(discord: WireDiscord) -> Person:
    return person(discord, "ana")


@pytest.fixture
def ben(discord: WireDiscord) -> Person:
    return person(discord, "ben")


@pytest.fixture(scope="session")
def bot_server() -> Iterator[ForkServer]:
    """Bots without 1.4 s of imports each; test_wire_connection.py also starts fresh ones."""
    with ForkServer("tests.wire.forked_bot:main") as server:
        yield server


@pytest.fixture
async def bot(offline_bot: WireBot) -> AsyncIterator[WireBot]:
    """The real bot, online."""
    async with offline_bot:
        yield offline_bot


@pytest.fixture
async def offline_bot(discord: WireDiscord, tmp_path: Path, bot_server: ForkServer) -> AsyncIterator[WireBot]:
    """The real bot, not started: `configure` it, then `start`."""
    bot = WireBot(discord, tmp_path, server=bot_server, trainer=forked_trainer())
    try:
        yield bot
    finally:
        await bot.close()
