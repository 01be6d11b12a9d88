"""What is not for the channel goes into the job's thread; where there can be none, into one message of the channel."""

from __future__ import annotations

import pytest

from bot.bot_failpoints import failpoint
from bot.config import CardSettings
from bot.db import Database
from bot.outbox import (
    ChannelGone,
    ChannelHeld,
    HoldReason,
    MessageForm,
    NoThread,
    Notification,
    NotificationKind,
    Outbox,
    RecipientUnreachable,
    Sender,
    SendLater,
)
from bot.outbox.audience import NotifyEvent, NotifyPlace
from tests.bot.conftest import CHANNEL, GUILD
from tests.bot.fakes import FakeClock, Killed
from tests.bot.outbox.scripted_post import OWNER, ScriptedPost, state_of, touch

#: A thread has the ID of the message that it starts from: here the first one, the card.
THREAD = 1
FRIEND = OWNER + 1


async def render(notification: Notification, form: MessageForm) -> str:
    """`epoch 3`, `epoch 1–3`, `latest: base, lost`, `done @7`."""
    if notification.kind is NotificationKind.LATEST:
        return "latest: " + ", ".join([await render(part, form) for part in notification.parts])
    kind, _, number = notification.dedupe_key.partition(":")
    if notification.epochs > 1:
        number = f"{int(number) - notification.epochs + 1}–{number}"
    words = [str(notification.kind), *([number] if kind == "epoch" else [])]
    words += [f"@{user}" for user in notification.mentions] + (["returned"] if notification.is_returned else [])
    return " ".join(words)


@pytest.fixture
def sender(outbox: Outbox, post: ScriptedPost, clock: FakeClock) -> Sender:
    return Sender(outbox, post, render, settings=CardSettings(edit_interval_s=10), poll_s=0.05, clock=clock)


async def news(db: Database, outbox: Outbox, *keys: str) -> None:
    """Put news of job 1 into the outbox: `kind`, or `kind:seq`."""
    async with db.transaction() as connection:
        for key in keys:
            notification = Notification(
                kind=NotificationKind(key.partition(":")[0]),
                job_id=1,
                seq=int(key.partition(":")[2] or 0),
                dedupe_key=key,
                guild_id=GUILD,
                owner_id=OWNER,
            )
            await outbox.put_news(connection, notification, channel_id=CHANNEL)


async def test_the_channel_has_the_card_and_the_result_and_the_thread_has_the_rest(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await touch(db, outbox)
    await news(db, outbox, "base", "warning:3", "early_stop:4", "lost:5", "paused:6", "stage:7", "alarm:8", "done:9")
    await sender.step()
    await sender.step()
    assert post.threads == {THREAD: "#1"}
    assert post.texts(CHANNEL) == ["card", "alarm", f"done @{OWNER}"]
    assert post.texts(THREAD) == ["base", "warning", "early_stop", "lost", "paused", "stage"]


async def test_the_thread_starts_with_the_card(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    """Of an older message, Discord would tell the channel of it."""
    await touch(db, outbox)
    await sender.step()
    assert post.threads == {THREAD: "#1"}


async def test_a_thread_that_cannot_start_yet_is_tried_again_with_its_first_message(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    post.thread_error = SendLater("503")
    await touch(db, outbox)
    await sender.step()
    await news(db, outbox, "base")
    await sender.step()
    assert (await state_of(db, "base"))[0] == "waiting"
    post.thread_error = None
    clock.advance(10)
    await sender.step()
    assert post.texts(THREAD) == ["base"]


async def test_a_bot_that_dies_after_it_started_a_thread_finds_it(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(name: str) -> None:
        if name == "thread_started":
            raise Killed

    monkeypatch.setattr("bot.outbox.sender.failpoint", die)
    await touch(db, outbox)
    with pytest.raises(BaseExceptionGroup):  # of `Killed`
        await sender.step()
    monkeypatch.setattr("bot.outbox.sender.failpoint", failpoint)
    await news(db, outbox, "base")
    await sender.step()
    assert (post.texts(CHANNEL), post.texts(THREAD)) == (["card"], ["base"])


async def test_a_replaced_card_keeps_its_thread(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await touch(db, outbox)
    await sender.step()
    await post.delete(CHANNEL, THREAD)
    await touch(db, outbox)
    await news(db, outbox, "base")
    await sender.step()
    await sender.step()
    assert (post.texts(CHANNEL), post.texts(THREAD)) == (["card"], ["base"])


async def test_a_card_that_is_deleted_before_its_thread_starts_comes_again_with_one(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    post.thread_error = SendLater("503")
    await touch(db, outbox)
    await sender.step()
    post.messages.clear()
    post.thread_error = None
    await news(db, outbox, "base")
    for _ in range(3):
        await sender.step()
        clock.advance(10)
    (card,) = [message for message in post.messages if message.channel_id == CHANNEL]
    assert post.texts(card.id) == ["base"]


# -- epochs --------------------------------------------------------------------------------------------------------


async def test_short_epochs_are_posted_together_and_long_ones_alone(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox)
    await sender.step()
    for epoch in range(1, 9):
        await news(db, outbox, f"epoch:{epoch}")
        await sender.step()
        clock.advance(5)
    assert post.texts(THREAD) == ["epoch 1", "epoch 2–5"]
    clock.advance(20)
    await sender.step()
    for epoch in (9, 10):
        clock.advance(20)
        await news(db, outbox, f"epoch:{epoch}")
        await sender.step()
    assert post.texts(THREAD) == ["epoch 1", "epoch 2–5", "epoch 6–8", "epoch 9", "epoch 10"]
    assert await outbox.depth() == 0


async def test_what_follows_an_epoch_does_not_overtake_it(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox)
    await news(db, outbox, "epoch:1")
    await sender.step()
    await sender.step()
    clock.advance(1)
    await news(db, outbox, "epoch:2", "epoch:3", "early_stop")
    await sender.step()
    assert post.texts(THREAD) == ["epoch 1", "epoch 2–3", "early_stop"]


async def test_an_epoch_that_may_have_been_sent_is_not_merged(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox)
    await sender.step()
    await news(db, outbox, "epoch:1")
    post.answers[THREAD] = SendLater("the answer was lost")
    await sender.step()
    assert (await state_of(db, "epoch:1"))[0] == "sending"
    del post.answers[THREAD]
    await news(db, outbox, "epoch:2", "epoch:3")
    for _ in range(3):
        clock.advance(30)
        await sender.step()
    assert post.texts(THREAD) == ["epoch 1", "epoch 2–3"]


# -- without a thread ---------------------------------------------------------------------------------------------


async def test_without_threads_one_message_shows_the_newest(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    post.thread_error = NoThread("400 50024 Cannot execute action on this channel type")
    await touch(db, outbox)
    await news(db, outbox, "base:1")
    for number in range(2, 8):
        await news(db, outbox, f"epoch:{number}")
        await sender.step()
        clock.advance(11)
        await sender.step()
    assert post.texts(CHANNEL) == ["card", "latest: epoch 7"]
    await news(db, outbox, "warning:8", "lost:9", "early_stop:10", "stage:11", "paused:12", "done:13")
    for _ in range(3):
        clock.advance(11)
        await sender.step()
    assert post.texts(CHANNEL) == ["card", "latest: epoch 7, lost, early_stop", f"done @{OWNER}"]
    assert await outbox.depth() == 0


@pytest.mark.parametrize(
    "error",
    [
        ChannelHeld("403 50083", kind=HoldReason.ARCHIVED),
        ChannelHeld("403 160005", kind=HoldReason.LOCKED),
        ChannelGone("404 10003 Unknown Channel"),
    ],
    ids=["archived and locked", "locked", "deleted"],
)
async def test_a_thread_that_a_person_closed_is_left(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, error: Exception
) -> None:
    await touch(db, outbox)
    await sender.step()
    post.answers[THREAD] = error
    await news(db, outbox, "epoch:1", "epoch:2")
    await sender.step()
    await sender.step()
    assert post.texts(CHANNEL) == ["card", "latest: epoch 2"]
    assert post.texts(OWNER) == []
    assert await outbox.held(THREAD) is None


async def test_a_thread_without_permission_is_tried_again_before_it_is_left(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox)
    await sender.step()
    await news(db, outbox, "base:1")
    post.answers[THREAD] = ChannelHeld("403 50013", kind=HoldReason.NO_PERMISSION)
    await sender.step()
    assert post.texts(CHANNEL) == ["card"]
    # A role was given back.
    del post.answers[THREAD]
    await outbox.recheck_held()
    clock.advance(1)
    await sender.step()
    assert post.texts(THREAD) == ["base"]

    await news(db, outbox, "lost:2")
    post.answers[THREAD] = ChannelHeld("403 50013", kind=HoldReason.NO_PERMISSION)
    for _ in range(3):
        clock.advance(61)
        await sender.step()
    await sender.step()
    assert post.texts(CHANNEL) == ["card", "latest: lost"]


async def test_a_thread_that_takes_no_messages_delays_nothing_in_the_channel(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await touch(db, outbox)
    await sender.step()
    await news(db, outbox, "base:1", "done:2")
    post.answers[THREAD] = ChannelHeld("403 50013", kind=HoldReason.NO_PERMISSION)
    await sender.step()
    assert post.texts(CHANNEL) == ["card", f"done @{OWNER}"]


# -- who is told --------------------------------------------------------------------------------------------------


async def test_each_person_is_told_where_they_chose(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await outbox.audience.watch(1, FRIEND, is_watching=True)
    await outbox.audience.choose(OWNER, NotifyEvent.EPOCH, NotifyPlace.MENTION)
    await outbox.audience.choose(OWNER, NotifyEvent.DONE, NotifyPlace.NONE)
    await outbox.audience.choose(OWNER, NotifyEvent.FAILED, NotifyPlace.DIRECT)
    await outbox.audience.choose(FRIEND, NotifyEvent.STARTED, NotifyPlace.DIRECT)
    await touch(db, outbox)
    await sender.step()
    await news(db, outbox, "queued", "started", "epoch:1", "done", "failed")
    await sender.step()
    assert post.texts(THREAD) == [f"epoch 1 @{OWNER}"]
    assert post.texts(CHANNEL) == ["card", f"done @{FRIEND}", f"failed @{FRIEND}"]
    assert post.texts(OWNER) == [f"failed @{OWNER}"]
    assert post.texts(FRIEND) == [f"started @{FRIEND}"]


async def test_what_only_a_mention_is_for_is_sent_to_nobody_else(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await touch(db, outbox)
    await sender.step()
    await news(db, outbox, "queued", "started")
    await sender.step()
    assert post.texts(THREAD) == []
    await outbox.audience.choose(OWNER, NotifyEvent.STARTED, NotifyPlace.MENTION)
    await news(db, outbox, "started:2")
    await sender.step()
    assert post.texts(THREAD) == [f"started @{OWNER}"]


async def test_closed_direct_messages_are_told_in_the_thread(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await outbox.audience.choose(OWNER, NotifyEvent.DONE, NotifyPlace.DIRECT)
    post.answers[OWNER] = RecipientUnreachable("403 50007")
    await touch(db, outbox)
    await sender.step()
    await news(db, outbox, "done")
    await sender.step()
    await sender.step()
    assert post.texts(CHANNEL) == ["card", "done"]
    assert post.texts(THREAD) == [f"done @{OWNER} returned"]


async def test_closed_direct_messages_without_a_thread_are_told_in_the_channel(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    """An edited message would mention no one."""
    await outbox.audience.choose(OWNER, NotifyEvent.DONE, NotifyPlace.DIRECT)
    post.answers[OWNER] = RecipientUnreachable("403 50007")
    post.thread_error = NoThread("403 50013")
    await touch(db, outbox)
    await sender.step()
    await news(db, outbox, "done")
    for _ in range(3):
        await sender.step()
    assert post.texts(CHANNEL) == ["card", "done", f"done @{OWNER} returned"]
