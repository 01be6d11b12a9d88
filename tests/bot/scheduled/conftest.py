"""News that scheduled tasks send, as data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from bot.db import Database
from bot.outbox import Outbox
from bot.scheduled.alerts import AdminNotifier
from bot.ui.admin_news import News, parse_news

LOG_CHANNEL = 900
ReadNews: TypeAlias = Callable[[], Awaitable[list[tuple[int, News]]]]


@pytest.fixture
def notifier(db: Database, outbox: Outbox) -> AdminNotifier:
    return AdminNotifier(db, outbox, channel_id=LOG_CHANNEL)


@pytest.fixture
def sent_news(db: Database) -> ReadNews:
    """`await sent_news()`: (channel, news) of all news ever sent."""

    async def read() -> list[tuple[int, News]]:
        rows = await db.all(
            "SELECT channel_id, json_extract(notification, '$.detail') AS detail FROM outbox"
            " WHERE json_extract(notification, '$.kind') = 'news' ORDER BY id"
        )
        return [(row["channel_id"], parse_news(row["detail"])) for row in rows]

    return read
