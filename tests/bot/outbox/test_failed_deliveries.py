"""What follows a refusal: once the channel takes messages, elsewhere, or in a smaller form; nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bot.db import Database
from bot.outbox import (
    ChannelGone,
    HoldReason,
    MessageForm,
    MessageGone,
    MessageRefused,
    MessageTooLarge,
    Notification,
    NotificationKind,
    Outbox,
    RecipientUnreachable,
    Sender,
    UndeliveredReason,
)
from tests.bot.conftest import CHANNEL, GUILD
from tests.bot.fakes import FakeClock
from tests.bot.outbox.scripted_post import (
    HELD,
    LOG_CHANNEL,
    OTHER,
    OWNER,
    ScriptedPost,
    make_sender,
    put,
    state_of,
    touch,
)

# -- a channel that takes no messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [put, touch])
async def test_messages_of_a_held_channel_wait_and_are_sent_once(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock, fill: Callable[..., Any]
) -> None:
    await (put(db, outbox, "epoch:1") if fill is put else touch(db, outbox))
    await put(db, outbox, "warning:1", channel=OTHER)
    post.answers[CHANNEL] = HELD
    await sender.step()
    clock.advance(30)
    await sender.step()
    assert post.tried.count(CHANNEL) == 1
    assert post.texts(OTHER) == ["warning full"]

    del post.answers[CHANNEL]
    clock.advance(31)
    await sender.step()
    await sender.step()
    assert post.texts(CHANNEL) == ["epoch full" if fill is put else "card full"]
    assert await outbox.held(CHANNEL) is None
    assert await outbox.depth() == 0


async def test_a_held_channel_is_looked_at_again_when_roles_change(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "epoch:1")
    post.answers[CHANNEL] = HELD
    await sender.step()
    del post.answers[CHANNEL]

    await outbox.recheck_held()
    clock.advance(1)
    await sender.step()
    assert post.texts(CHANNEL) == ["epoch full"]


async def test_what_changes_while_a_channel_is_tried_is_not_missed(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    class Changing(ScriptedPost):
        async def send(self, channel_id: int, message: Any, nonce: str) -> int:
            clock.advance(0.1)
            await outbox.recheck_held()
            return await super().send(channel_id, message, nonce)

    post = Changing()
    sender = make_sender(outbox, post, clock)
    await put(db, outbox, "epoch:1")
    post.answers[CHANNEL] = HELD
    await sender.step()
    del post.answers[CHANNEL]
    clock.advance(1)
    await sender.step()
    assert post.texts(CHANNEL) == ["epoch full"]


async def test_changes_in_bursts_cause_one_look(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "epoch:1")
    post.answers[CHANNEL] = HELD
    await sender.step()
    for _ in range(22):
        await outbox.recheck_held()
        clock.advance(0.05)
        await sender.step()
    assert len(post.tried) == 2


async def test_the_owner_of_a_result_that_waits_is_told_once_at_once(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "epoch:1")
    post.answers[CHANNEL] = HELD
    await sender.step()
    assert post.texts(OWNER) == []

    # The channel is tried at once for a new message, not only a minute later.
    await put(db, outbox, "done")
    for _ in range(3):
        await sender.step()
    assert post.texts(OWNER) == ["undelivered held full"]
    row = await db.one("SELECT notification FROM outbox WHERE recipient_id = ?", (OWNER,))
    assert row is not None
    told = Notification.model_validate_json(row["notification"])
    assert told.undelivered is not None
    assert (told.undelivered.kind, told.undelivered.hold) == (NotificationKind.DONE, HoldReason.NO_PERMISSION)

    del post.answers[CHANNEL]
    clock.advance(61)
    await sender.step()
    assert post.texts(CHANNEL) == ["epoch full", "done full"]
    assert len(post.texts(OWNER)) == 1


async def test_the_owner_of_other_messages_is_told_once_if_the_channel_stays_held(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await put(db, outbox, "epoch:1")
    await put(db, outbox, "epoch:2")
    post.answers[CHANNEL] = HELD
    for _ in range(4):
        await sender.step()
        clock.advance(61)
    assert post.texts(OWNER) == ["undelivered held full"]


async def test_an_owner_without_direct_messages_is_told_in_the_log_channel(
    db: Database, outbox: Outbox, post: ScriptedPost, clock: FakeClock
) -> None:
    sender = make_sender(outbox, post, clock, log_channel_id=LOG_CHANNEL)
    await put(db, outbox, "done")
    post.answers |= {CHANNEL: HELD, OWNER: RecipientUnreachable("403 50007")}
    for _ in range(3):
        await sender.step()
    assert post.texts(LOG_CHANNEL) == ["undelivered held full"]


async def test_without_a_log_channel_either_the_failure_stays_visible(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await put(db, outbox, "done")
    # Not only "closed": whatever a direct message is refused with.
    post.answers |= {CHANNEL: HELD, OWNER: HELD}
    for _ in range(3):
        await sender.step()
    assert await state_of(db, "undelivered:done") == ("dead", HELD.reason, 0)
    assert await outbox.held(0) is None


# -- a channel that is gone ---------------------------------------------------------------------------------------


async def test_the_owner_is_told_of_a_deleted_channel_and_its_messages_end(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await touch(db, outbox)
    await put(db, outbox, "epoch:1")
    await put(db, outbox, "done")
    post.answers[CHANNEL] = ChannelGone("404 10003 Unknown Channel")
    await sender.step()
    await sender.step()
    assert await state_of(db, "done") == ("dead", "404 10003 Unknown Channel", 0)
    # One for the result, one for all other messages.
    assert post.texts(OWNER) == ["undelivered gone full"] * 2
    assert await outbox.depth() == 0


async def test_a_dead_message_is_sent_again_on_demand_here_or_there(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    for key in ("done", "failed"):
        await put(db, outbox, key)
    await put(db, outbox, "warning:2", guild=GUILD + 1)
    post.answers[CHANNEL] = ChannelGone("404")
    await sender.step()

    assert await outbox.resend(GUILD + 2) == 0
    assert await outbox.resend(GUILD, job_id=2) == 0
    assert await outbox.resend(GUILD, job_id=1, channel_id=OTHER) >= 2
    await sender.step()
    assert sorted(post.texts(OTHER)) == ["done full", "failed full"]
    assert (await state_of(db, "warning:2"))[0] == "dead"


async def test_a_resend_of_a_message_that_exists_makes_no_second_one(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await put(db, outbox, "done")
    await sender.step()
    post.enforces_nonce = False
    async with db.transaction() as connection:
        await connection.execute("UPDATE outbox SET state = 'dead'")
    await outbox.resend(GUILD)
    await sender.step()
    assert post.texts(CHANNEL) == ["done full"]


# -- smaller forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "form"),
    [
        ([MessageTooLarge("413")], MessageForm.SMALL_FILES),
        ([MessageTooLarge("413"), MessageTooLarge("413")], MessageForm.NO_FILES),
        ([MessageTooLarge("413")] * 3, MessageForm.TEXT),
        ([MessageRefused("400 50035")], MessageForm.TEXT),
        ([MessageTooLarge("413"), MessageRefused("400 50035")], MessageForm.TEXT),
    ],
)
async def test_a_message_that_is_refused_is_sent_in_a_smaller_form(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, failures: list[Exception], form: MessageForm
) -> None:
    await put(db, outbox, "done")
    post.failures = list(failures)
    await sender.step()
    assert post.texts(CHANNEL) == [f"done {form}"]


async def test_a_message_that_is_refused_in_every_form_ends_and_its_owner_is_told(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await put(db, outbox, "done")
    await put(db, outbox, "epoch:1")
    post.failures = [MessageRefused("400 50035"), MessageRefused("400 50035")]
    await sender.step()
    await sender.step()
    assert post.texts(CHANNEL) == ["epoch full"]
    assert post.texts(OWNER) == [f"undelivered {UndeliveredReason.FAILED} full"]


async def test_a_refused_card_is_drawn_again_at_its_next_change(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender, clock: FakeClock
) -> None:
    await touch(db, outbox)
    await sender.step()
    await touch(db, outbox)
    post.failures = [MessageRefused("400 50035"), MessageRefused("400 50035")]
    await sender.step()
    assert await outbox.depth() == 0

    clock.advance(10)
    await touch(db, outbox)
    await sender.step()
    assert [message.edits for message in post.messages] == [1]
    assert await outbox.depth() == 0


async def test_a_card_that_may_not_be_edited_any_more_is_replaced_at_once(
    db: Database, outbox: Outbox, post: ScriptedPost, sender: Sender
) -> None:
    await touch(db, outbox)
    await sender.step()
    old = post.messages[0]
    await touch(db, outbox)
    post.failures = [MessageGone("429 30046")]
    await sender.step()
    assert [(message.text, message.id != old.id) for message in post.messages] == [("card full", True)]
    assert post.messages[0].nonce != old.nonce
