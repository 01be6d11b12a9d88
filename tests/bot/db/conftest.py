"""SQLite as the bot uses it: in threads, on the disk, migrated."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def quick_sqlite() -> None:
    """Instead of the fixture of all other tests."""
