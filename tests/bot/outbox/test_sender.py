"""Notifications are sent in order and once; a card shows only the newest state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bot.config import CardSettings
from bot.db import Database
from bot.outbox import MessageForm, MessageRefused, Notification, NotificationKind, Outbox, Sender, SendLater
from tests.bot.conftest import CHANNEL
from tests.bot.fakes import FakeClock, FakePost, Killed, KillSwitch, eventually, render

OTHER = CHANNEL + 1


def make_sender(outbox: Outbox, post: FakePost, clock: FakeClock, render: Any = render) -> Sender:
    return Sender(outbox, post, render, settings=CardSettings(edit_interval_s=10), poll_s=0.05, clock=clock)


@pytest.fixture
def post() -> FakePost:
    return FakePost()


@pytest.fixture
def sender(outbox: Outbox, post: FakePost, clock: FakeClock) -> Sender:
    return make_sender(outbox, post, clock)


async def put(db: Database, outbox: Outbox, key: str, *, job: int = 1, channel: int = CHANNEL) -> None:
    kind = NotificationKind(key.partition(":")[0])
    async with db.transaction() as connection:
        notification = Notification(kind=kind, job_id=job, attempt=1, dedupe_key=key)
        await outbox.put(connection, notification, channel_id=channel)


async def touch(db: Database, outbox: Outbox, *, job: int = 1, at_once: bool = False) -> None:
    async with db.transaction() as connection:
        await outbox.cards.touch(connection, job, channel_id=CHANNEL, at_once=at_once)


async def test_a_key_is_sent_once(db: Database, outbox: Outbox, post: FakePost, sender: Sender) -> None:
    await put(db, outbox, "base")
    await sender.step()
    await put(db, outbox, "base")
    await sender.step()

    assert post.texts(CHANNEL) == ["job 1 base"]
    assert await outbox.depth() == 0


async def test_a_notification_that_was_rolled_back_is_not_sent(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender
) -> None:
    notification = Notification(kind=NotificationKind.BASE, job_id=1, attempt=1, dedupe_key="base")

    async def roll_back() -> None:
        async with db.transaction() as connection:
            await outbox.put(connection, notification, channel_id=CHANNEL)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await roll_back()
    await sender.step()

    assert post.messages == []
    assert not outbox.filled.is_set()


async def test_a_card_is_sent_before_the_other_messages_of_its_job(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender
) -> None:
    await put(db, outbox, "base")
    await put(db, outbox, "done")
    await touch(db, outbox)
    await sender.step()

    assert post.texts(CHANNEL) == ["job 1 card", "job 1 base", "job 1 done"]


async def test_a_failure_keeps_the_order_of_its_channel_and_delays_no_other(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "base")
    await put(db, outbox, "done")
    post.failures = [SendLater("down")]
    await sender.step()
    await put(db, outbox, "warning", channel=OTHER)
    await sender.step()
    assert (post.texts(CHANNEL), post.texts(OTHER)) == ([], ["job 1 warning"])

    clock.advance(3)
    await sender.step()
    assert post.texts(CHANNEL) == ["job 1 base", "job 1 done"]


async def test_the_delay_that_discord_asks_for_is_kept(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "base")
    post.failures = [SendLater("rate limit", after_s=60)]
    await sender.step()
    clock.advance(59)
    await sender.step()
    assert post.messages == []
    clock.advance(2)
    await sender.step()
    assert post.texts(CHANNEL) == ["job 1 base"]


async def test_a_layout_that_raises_is_skipped_and_does_not_block(
    db: Database, outbox: Outbox, post: FakePost, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(notification: Notification, form: MessageForm) -> str:
        if notification.kind is NotificationKind.BASE:
            raise ZeroDivisionError
        return await render(notification)

    sender = make_sender(outbox, post, clock, broken)
    await put(db, outbox, "base")
    await put(db, outbox, "done")
    for _ in range(5):
        await sender.step()
        clock.advance(1000)

    assert post.texts(CHANNEL) == ["job 1 done"]
    assert "ZeroDivisionError" in caplog.text


# -- cards ---------------------------------------------------------------------------------------------------------


async def test_many_changes_of_a_card_are_one_edit(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox)
    await sender.step()
    for _ in range(30):
        await touch(db, outbox)
        await sender.step()
        clock.advance(0.3)
    assert [message.edits for message in post.messages] == [0]
    clock.advance(1.1)
    await sender.step()
    await sender.step()
    assert [message.edits for message in post.messages] == [1]


async def test_a_state_change_is_shown_at_once(db: Database, outbox: Outbox, post: FakePost, sender: Sender) -> None:
    await touch(db, outbox)
    await sender.step()
    await touch(db, outbox, at_once=True)
    await touch(db, outbox)
    await sender.step()

    assert [message.edits for message in post.messages] == [1]
    assert await outbox.depth() == 0


async def test_a_change_during_an_edit_is_not_lost(
    db: Database, outbox: Outbox, post: FakePost, clock: FakeClock
) -> None:
    seen: list[str] = []

    async def slow(notification: Notification, form: MessageForm) -> str:
        seen.append(notification.kind)
        if len(seen) == 1:
            await touch(db, outbox, at_once=True)
        return await render(notification)

    sender = make_sender(outbox, post, clock, slow)
    await touch(db, outbox)
    await sender.step()
    await sender.step()
    assert len(seen) == 2
    assert await outbox.depth() == 0


async def test_a_deleted_card_is_sent_again(db: Database, outbox: Outbox, post: FakePost, sender: Sender) -> None:
    await touch(db, outbox)
    await sender.step()
    post.messages.clear()
    await touch(db, outbox, at_once=True)
    await sender.step()

    assert post.texts(CHANNEL) == ["job 1 card"]
    card = await outbox.cards.of(1)
    assert card is not None
    assert card.message_id == 2


async def test_an_old_card_is_edited_seldom(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox)
    await sender.step()
    clock.advance(3301)
    for _ in range(12):
        await touch(db, outbox)
        await sender.step()
        clock.advance(10)
    # At once, and after a minute.
    assert [message.edits for message in post.messages] == [2]
    await touch(db, outbox, at_once=True)
    await sender.step()
    assert [message.edits for message in post.messages] == [3]


async def test_a_card_that_fails_delays_the_other_messages_of_its_job(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox)
    await put(db, outbox, "base")
    post.failures = [SendLater("down")]
    await sender.step()
    assert post.messages == []
    clock.advance(3)
    await sender.step()
    assert post.texts(CHANNEL) == ["job 1 card", "job 1 base"]


async def test_a_job_whose_card_cannot_be_sent_still_sends_its_messages(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender
) -> None:
    await touch(db, outbox)
    await put(db, outbox, "done")
    post.failures = [MessageRefused("no"), MessageRefused("not as text either")]
    await sender.step()
    assert post.texts(CHANNEL) == ["job 1 done"]


async def test_a_card_whose_send_was_not_confirmed_shows_the_newest_state_in_the_end(
    db: Database, outbox: Outbox, clock: FakeClock
) -> None:
    """Discord created the message, the response was lost, the state changed, and the nonce returns the old message."""
    state = ["queued"]

    async def stating(notification: Notification, form: MessageForm) -> str:
        return state[0]

    class LostResponse(FakePost):
        async def send(self, channel_id: int, message: Any, nonce: str) -> int:
            sent = await super().send(channel_id, message, nonce)
            if state[0] == "queued":
                raise SendLater("the response was lost")
            return sent

    post = LostResponse()
    sender = make_sender(outbox, post, clock, stating)
    await touch(db, outbox)
    await sender.step()
    state[0] = "running"
    clock.advance(100)
    await sender.step()
    await sender.step()
    assert post.texts(CHANNEL) == ["running"]


# -- a sender that dies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [put, touch])
@pytest.mark.parametrize("way", ["nonce", "find"])
async def test_a_sender_that_dies_between_send_and_mark_sends_once(
    db: Database, outbox: Outbox, clock: FakeClock, way: str, fill: Callable[..., Any]
) -> None:
    post = FakePost(kill_switch=KillSwitch(kill_at=2), enforces_nonce=way == "nonce", can_find=way == "find")
    await (put(db, outbox, "base") if fill is put else touch(db, outbox))
    with pytest.raises(BaseExceptionGroup) as raised:
        await make_sender(outbox, post, clock).step()
    assert raised.group_contains(Killed)
    assert len(post.messages) == 1

    post.kill_switch = KillSwitch()
    sender = make_sender(Outbox(db, clock=clock), post, clock)
    await sender.step()
    await sender.step()
    assert len(post.messages) == 1
    assert await outbox.depth() == 0


async def test_a_message_that_was_never_sent_is_not_looked_for(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender
) -> None:
    await touch(db, outbox)
    await put(db, outbox, "base")
    await sender.step()
    assert post.finds == 0


async def test_a_running_sender_is_woken_by_a_new_notification(
    db: Database, outbox: Outbox, post: FakePost, clock: FakeClock
) -> None:
    sender = Sender(outbox, post, render, poll_s=1000, clock=clock)
    task = asyncio.create_task(sender.run())
    try:
        await put(db, outbox, "base")

        await eventually(lambda: bool(post.messages))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
