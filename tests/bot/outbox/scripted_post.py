"""A Discord that the tests of failures script, and what they put into the outbox."""

from __future__ import annotations

import asyncio
from typing import Any

from bot.config import CardSettings
from bot.db import Database
from bot.outbox import ChannelHeld, HoldReason, MessageForm, Notification, NotificationKind, Outbox, Sender
from tests.bot.conftest import CHANNEL, GUILD
from tests.bot.fakes import FakeClock, FakePost

OTHER, LOG_CHANNEL = CHANNEL + 1, CHANNEL + 2
OWNER = 7

HELD = ChannelHeld("403 50013 Missing Permissions", kind=HoldReason.NO_PERMISSION)


class ScriptedPost(FakePost):
    """A Discord that answers by channel, until the test changes its mind."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[int, Exception] = {}
        self.hanging: set[int] = set()
        self.tried: list[int] = []

    async def send(self, channel_id: int, message: Any, nonce: str) -> int:
        self.tried.append(channel_id)
        if channel_id in self.hanging:
            await asyncio.Event().wait()
        if channel_id in self.answers:
            raise self.answers[channel_id]
        return await super().send(channel_id, message, nonce)


async def render(notification: Notification, form: MessageForm) -> str:
    about = "" if notification.undelivered is None else f" {notification.undelivered.reason}"
    return f"{notification.kind}{about} {form}"


def make_sender(outbox: Outbox, post: FakePost, clock: FakeClock, *, log_channel_id: int = 0) -> Sender:
    settings = CardSettings(edit_interval_s=10)
    return Sender(outbox, post, render, settings=settings, log_channel_id=log_channel_id, poll_s=0.05, clock=clock)


async def put(db: Database, outbox: Outbox, key: str, *, channel: int = CHANNEL, guild: int = GUILD) -> None:
    kind = NotificationKind(key.partition(":")[0])
    notification = Notification(kind=kind, job_id=1, dedupe_key=key, guild_id=guild, owner_id=OWNER)
    async with db.transaction() as connection:
        await outbox.put(connection, notification, channel_id=channel)


async def touch(db: Database, outbox: Outbox, job: int = 1) -> None:
    async with db.transaction() as connection:
        await outbox.cards.touch(connection, job, channel_id=CHANNEL, at_once=True)


async def state_of(db: Database, key: str) -> tuple[str, str | None, int]:
    row = await db.one("SELECT state, reason, tries FROM outbox WHERE dedupe_key = ?", (key,))
    assert row is not None
    return row["state"], row["reason"], row["tries"]
