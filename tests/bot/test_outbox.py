"""What is to be told goes out in order, once, and only in its newest state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bot.config import CardSettings
from bot.db import Database
from bot.outbox import Notice, NoticeKind, Outbox, Sender, SendLater, SendNever
from tests.bot.conftest import CHANNEL
from tests.bot.fakes import Clock, FakePost, Fuse, Killed, eventually, render

OTHER = CHANNEL + 1


def make_sender(outbox: Outbox, post: FakePost, clock: Clock, render: Any = render) -> Sender:
    return Sender(outbox, post, render, settings=CardSettings(edit_interval_s=10), poll_s=0.05, now=clock)


@pytest.fixture
def post() -> FakePost:
    return FakePost()


@pytest.fixture
def sender(outbox: Outbox, post: FakePost, clock: Clock) -> Sender:
    return make_sender(outbox, post, clock)


async def put(db: Database, outbox: Outbox, key: str, *, job: int = 1, channel: int = CHANNEL) -> None:
    kind = NoticeKind(key.partition(":")[0])
    async with db.transaction() as connection:
        await outbox.put(connection, Notice(kind=kind, job_id=job, attempt=1), channel_id=channel, dedupe_key=key)


async def touch(db: Database, outbox: Outbox, *, job: int = 1, at_once: bool = False) -> None:
    async with db.transaction() as connection:
        await outbox.touch_card(connection, job, channel_id=CHANNEL, at_once=at_once)


async def test_a_key_is_told_once(db: Database, outbox: Outbox, post: FakePost, sender: Sender) -> None:
    await put(db, outbox, "base")
    await sender.step()
    await put(db, outbox, "base")
    await sender.step()

    assert post.texts(CHANNEL) == ["job 1 base"]
    assert await outbox.depth() == 0


async def test_nothing_is_told_of_what_was_rolled_back(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender
) -> None:
    notice = Notice(kind=NoticeKind.BASE, job_id=1, attempt=1)

    async def change_one_s_mind() -> None:
        async with db.transaction() as connection:
            await outbox.put(connection, notice, channel_id=CHANNEL, dedupe_key="base")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await change_one_s_mind()
    await sender.step()

    assert post.messages == []
    assert not outbox.filled.is_set()


async def test_the_card_comes_before_the_posts_of_its_job(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender
) -> None:
    await put(db, outbox, "base")
    await put(db, outbox, "done")
    await touch(db, outbox)
    await sender.step()

    assert post.texts(CHANNEL) == ["job 1 card", "job 1 base", "job 1 done"]


async def test_a_failure_keeps_the_order_of_its_channel_and_holds_no_other(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: Clock
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


async def test_discord_says_how_long_to_wait(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: Clock
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


async def test_what_can_never_be_sent_is_given_up_with_its_reason(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender
) -> None:
    await put(db, outbox, "base")
    await put(db, outbox, "done")
    post.failures = [SendNever("no permission")]
    await sender.step()

    assert post.texts(CHANNEL) == ["job 1 done"]
    row = await db.one("SELECT state, reason FROM outbox WHERE dedupe_key = 'base'")
    assert row is not None
    assert tuple(row) == ("dead", "no permission")


async def test_a_layout_that_cannot_be_made_is_given_up_and_does_not_block(
    db: Database, outbox: Outbox, post: FakePost, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(notice: Notice, marker: str) -> str:
        if notice.kind is NoticeKind.BASE:
            raise ZeroDivisionError
        return await render(notice, marker)

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
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: Clock
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


async def test_a_change_of_state_is_shown_at_once(db: Database, outbox: Outbox, post: FakePost, sender: Sender) -> None:
    await touch(db, outbox)
    await sender.step()
    await touch(db, outbox, at_once=True)
    await touch(db, outbox)
    await sender.step()

    assert [message.edits for message in post.messages] == [1]
    assert await outbox.depth() == 0


async def test_a_change_during_an_edit_is_not_lost(db: Database, outbox: Outbox, post: FakePost, clock: Clock) -> None:
    seen: list[str] = []

    async def slow(notice: Notice, marker: str) -> str:
        seen.append(marker)
        if len(seen) == 1:
            await touch(db, outbox, at_once=True)
        return await render(notice, marker)

    sender = make_sender(outbox, post, clock, slow)
    await touch(db, outbox)
    await sender.step()
    await sender.step()
    assert len(seen) == 2
    assert await outbox.depth() == 0


async def test_a_deleted_card_is_sent_anew(db: Database, outbox: Outbox, post: FakePost, sender: Sender) -> None:
    await touch(db, outbox)
    await sender.step()
    post.messages.clear()
    await touch(db, outbox, at_once=True)
    await sender.step()

    assert post.texts(CHANNEL) == ["job 1 card"]
    assert await outbox.card_message(1) == (CHANNEL, 1)


async def test_an_old_card_is_followed_by_a_new_one(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: Clock
) -> None:
    await touch(db, outbox)
    await sender.step()
    clock.advance(3301)
    await touch(db, outbox)
    await sender.step()

    assert [(message.text[:10], message.edits) for message in post.messages] == [("job 1 card", 0)] * 2
    assert await outbox.card_message(1) == (CHANNEL, 2)
    assert post.messages[0].nonce != post.messages[1].nonce


async def test_a_card_that_fails_holds_the_posts_of_its_job(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender, clock: Clock
) -> None:
    await touch(db, outbox)
    await put(db, outbox, "base")
    post.failures = [SendLater("down")]
    await sender.step()
    assert post.messages == []
    clock.advance(3)
    await sender.step()
    assert post.texts(CHANNEL) == ["job 1 card", "job 1 base"]


async def test_a_job_without_a_card_still_tells(db: Database, outbox: Outbox, post: FakePost, sender: Sender) -> None:
    await touch(db, outbox)
    await put(db, outbox, "done")
    post.failures = [SendNever("no permission")]
    await sender.step()
    assert post.texts(CHANNEL) == ["job 1 done"]


async def test_a_send_whose_answer_was_lost_shows_the_newest_state_in_the_end(
    db: Database, outbox: Outbox, clock: Clock
) -> None:
    """Discord made the message, the answer was lost, the state moved on, the nonce returns the old message."""
    state = ["queued"]

    async def stating(notice: Notice, marker: str) -> str:
        return f"{state[0]} · {marker}"

    class LostAnswer(FakePost):
        async def send(self, channel_id: int, message: Any, nonce: str) -> int:
            sent = await super().send(channel_id, message, nonce)
            if state[0] == "queued":
                raise SendLater("the answer was lost")
            return sent

    post = LostAnswer()
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
    db: Database, outbox: Outbox, clock: Clock, way: str, fill: Callable[..., Any]
) -> None:
    post = FakePost(fuse=Fuse(burns_at=2), honours_nonce=way == "nonce", can_find=way == "find")
    await (put(db, outbox, "base") if fill is put else touch(db, outbox))
    with pytest.raises(BaseExceptionGroup) as raised:
        await make_sender(outbox, post, clock).step()
    assert raised.group_contains(Killed)
    assert len(post.messages) == 1

    post.fuse = Fuse()
    sender = make_sender(Outbox(db, now=clock), post, clock)
    await sender.step()
    await sender.step()
    assert len(post.messages) == 1
    assert await outbox.depth() == 0


async def test_nobody_looks_for_a_message_that_was_never_sent(
    db: Database, outbox: Outbox, post: FakePost, sender: Sender
) -> None:
    await touch(db, outbox)
    await put(db, outbox, "base")
    await sender.step()
    assert post.finds == 0


async def test_a_running_sender_is_woken_by_what_is_put(
    db: Database, outbox: Outbox, post: FakePost, clock: Clock
) -> None:
    sender = Sender(outbox, post, render, poll_s=1000, now=clock)
    task = asyncio.create_task(sender.run())
    try:
        await put(db, outbox, "base")

        async def is_told() -> bool:
            return bool(post.messages)

        await eventually(is_told)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
