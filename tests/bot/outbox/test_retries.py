"""What passes is tried again: without end, with back-off, and without a delay for other channels."""

from __future__ import annotations

import asyncio

import pytest

from bot.db import Database
from bot.outbox import (
    Destination,
    MessageRefused,
    Notification,
    NotificationKind,
    Outbox,
    Sender,
    SendLater,
)
from tests.bot.conftest import CHANNEL
from tests.bot.fakes import FakeClock, eventually
from tests.bot.outbox.scripted_post import (
    HELD,
    OTHER,
    OWNER,
    ScriptedPost,
    make_sender,
    put,
    state_of,
    touch,
)


async def test_a_channel_that_hangs_delays_no_other(
    db: Database, outbox: Outbox, post: ScriptedPost, clock: FakeClock
) -> None:
    sender = make_sender(outbox, post, clock)
    post.hanging = {CHANNEL}
    await put(db, outbox, "done")
    task = asyncio.create_task(sender.run())
    try:
        await eventually(lambda: CHANNEL in post.tried)
        await put(db, outbox, "failed", channel=OTHER)
        await eventually(lambda: post.texts(OTHER) == ["failed full"])
        assert post.tried.count(CHANNEL) == 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("is_global", [False, True])
async def test_a_rate_limit_delays_its_channel_or_all(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock, is_global: bool
) -> None:
    await put(db, outbox, "epoch:1")
    post.failures = [SendLater("429", after_s=20, is_counted=False, is_global=is_global, may_exist=False)]
    await sender.step()
    await put(db, outbox, "done", channel=OTHER)
    clock.advance(19)
    await sender.step()
    assert (post.texts(CHANNEL), post.texts(OTHER)) == ([], [] if is_global else ["done full"])
    clock.advance(2)
    await sender.step()
    assert (post.texts(CHANNEL), post.texts(OTHER)) == (["epoch full"], ["done full"])


async def test_a_rate_limit_of_a_new_card_delays_all_new_messages_of_its_channel(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox, job=2)
    post.failures = [SendLater("429", after_s=20, is_counted=False, may_exist=False)]
    await sender.step()
    await put(db, outbox, "done")
    await sender.step()
    assert post.tried == [CHANNEL]
    clock.advance(21)
    await sender.step()
    assert sorted(post.texts(CHANNEL)) == ["card full", "done full"]


async def test_a_rate_limit_of_direct_messages_delays_those_to_one_user(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    for user_id in (OWNER, OWNER + 1):
        notification = Notification(kind=NotificationKind.NEWS, dedupe_key=f"news:{user_id}")
        async with db.transaction() as connection:
            await outbox.put(connection, notification, recipient_id=user_id)
    post.answers[OWNER] = SendLater("429", after_s=20, is_counted=False, may_exist=False)
    await sender.step()
    assert post.texts(OWNER + 1) == ["news full"]


async def test_a_rate_limit_of_edits_delays_all_cards_of_the_channel_and_no_message(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    for job in (1, 2):
        await touch(db, outbox, job)
    await sender.step()
    for job in (1, 2):
        await touch(db, outbox, job)
    # A second edit would succeed: none is tried.
    post.failures = [SendLater("429", after_s=20, is_counted=False, may_exist=False)]
    await sender.step()
    await put(db, outbox, "done")
    await sender.step()
    assert [(message.text[:4], message.edits) for message in post.messages] == [("card", 0), ("card", 0), ("done", 0)]
    clock.advance(21)
    await sender.step()
    assert [message.edits for message in post.messages] == [1, 1, 0]


async def test_being_offline_counts_as_no_try(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "done")
    await touch(db, outbox)
    post.is_connected = False
    for _ in range(600):
        await sender.step()
        clock.advance(1)
    assert post.tried == []
    post.is_connected = True
    # It breaks between the look and the request; and then one hiccup.
    post.failures = [SendLater("not connected", is_counted=False, may_exist=False)] * 5
    for _ in range(200):
        await sender.step()
        clock.advance(1)
        if not post.failures:
            break
    assert (await state_of(db, "done"))[2] == 0
    clock.advance(11)
    post.failures = [SendLater("503")]
    await sender.step()
    clock.advance(3)
    await sender.step()
    assert post.texts(CHANNEL) == ["card full", "done full"]


async def test_an_outage_does_not_bring_the_bots_own_errors_nearer_to_the_end(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "done")
    post.failures = [*[SendLater("503")] * 7, ZeroDivisionError()]
    for _ in range(20):
        await sender.step()
        clock.advance(61)
    assert post.texts(CHANNEL) == ["done full"]


async def test_the_back_off_ends_at_a_minute_and_never_gives_up(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "done")
    post.answers[CHANNEL] = SendLater("500")
    for _ in range(300):
        await sender.step()
        clock.advance(10)
    assert 40 < len(post.tried) < 110
    del post.answers[CHANNEL]
    clock.advance(60)
    await sender.step()
    assert post.texts(CHANNEL) == ["done full"]


async def test_a_message_that_keeps_failing_lets_others_pass(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "done")
    post.failures = [SendLater("500")] * 8
    while post.failures:
        await sender.step()
        clock.advance(61)
    await put(db, outbox, "failed")
    pending = await outbox.next_pending(Destination(channel_id=CHANNEL))
    assert pending is not None
    async with db.transaction() as connection:
        await connection.execute("UPDATE outbox SET retry_at = ? WHERE id = ?", (clock.time() + 30, pending.id))
    await sender.step()
    assert post.texts(CHANNEL) == ["failed full"]
    clock.advance(31)
    await sender.step()
    assert post.texts(CHANNEL) == ["failed full", "done full"]


async def test_a_refusal_leaves_nothing_to_look_for_and_a_lost_answer_does(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "done")
    post.failures = [SendLater("429", after_s=1, is_counted=False, may_exist=False)]
    await sender.step()
    clock.advance(2)
    post.failures = [SendLater("no answer")]
    await sender.step()
    assert post.finds == 0
    clock.advance(61)
    await sender.step()
    assert post.finds == 1
    assert post.texts(CHANNEL) == ["done full"]


async def test_a_card_that_is_refused_holds_no_message_of_its_job_up(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await touch(db, outbox)
    post.failures = [MessageRefused("400 50035"), MessageRefused("400 50035")]
    await sender.step()
    # It has changed, and is not due again yet.
    await touch(db, outbox)
    await put(db, outbox, "done")
    await sender.step()
    assert post.texts(CHANNEL) == ["done full"]


@pytest.mark.parametrize("has_card", [False, True])
async def test_a_held_message_was_refused_and_is_not_looked_for(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock, has_card: bool
) -> None:
    if has_card:
        await touch(db, outbox)
    await put(db, outbox, "done")
    post.answers[CHANNEL] = HELD
    await sender.step()
    del post.answers[CHANNEL]
    clock.advance(61)
    await sender.step()
    assert post.texts(CHANNEL) == ["card full", "done full"][not has_card :]
    assert post.finds == 0
