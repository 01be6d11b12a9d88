"""A data folder as a bot leaves it, with its database under the name that it has there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.config import Config, StorageSettings
from bot.db import DATABASE_FILE, Database, open_db
from bot.outbox import Outbox
from tests.bot.conftest import add_dataset
from tests.bot.fakes import FakeClock


@pytest.fixture(autouse=True)
def quick_sqlite() -> None:
    """Instead of the fixture of all other tests: files are copied while SQLite writes them."""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def config(data_dir: Path) -> Config:
    return Config(storage=StorageSettings(data_dir=data_dir))


@pytest.fixture
async def db(data_dir: Path) -> AsyncIterator[Database]:
    """Takes the place of the one in tests/bot/conftest.py, and of all that is made from it."""
    async with open_db(data_dir / DATABASE_FILE) as database:
        await add_dataset(database)
        yield database


@pytest.fixture
def outbox(db: Database, clock: FakeClock) -> Outbox:
    return Outbox(db, clock=clock)
