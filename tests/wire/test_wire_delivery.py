"""Messages on a real wire: each arrives once, whatever Discord answers, and no channel waits for another."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from tests.wire.conftest import archive
from tests.wire.forked_bot import FIRST_BACKOFF_S
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord, WireInteraction
from tests.wire.wire_faults import Fault, cut, hang, lose_answer, rate_limit, refuse, refuse_html
from tests.wire.wire_people import Person, person
from tests.wire.wire_state import VOICE, WireChannel, WireMessage, bits

pytestmark = pytest.mark.slow

POSTS = "/channels/*/messages"
CARDS = "/channels/*/messages/*"
#: Time for two tries after the first: a pause lasts between half of its length and all of it.
_SEVERAL_TRIES_S = 3 * FIRST_BACKOFF_S + 0.5


async def finetune(ana: Person, channel: WireChannel | None = None, *, epochs: int = 1, images: int = 6) -> None:
    """Queue a training, and wait for the receipt. One of the same images and epochs as another is its repetition."""
    asked = await ana.slash("finetune", channel, dataset=archive(images), epochs=epochs, confirm=False)
    # Before, it may say that other datasets are examined first.
    await ana.discord.until(lambda: "Queued" in asked.text, what=asked.text)


async def answered(person: Person, command: str, channel: WireChannel | None = None, **options: str) -> WireInteraction:
    asked = await person.slash(command, channel, **options)
    await person.discord.until(lambda: asked.is_settled)
    return asked


@pytest.fixture
def boss(discord: WireDiscord) -> Person:
    return person(discord, "boss", permissions=bits("manage_guild"))


# -- a channel that takes no messages -----------------------------------------------------------------------------


async def test_a_result_arrives_once_after_several_tries_without_permission(
    discord: WireDiscord, bot: WireBot, ana: Person, boss: Person
) -> None:
    await finetune(ana)
    await discord.deny(discord.channel)
    direct = discord.dm_of(ana.user)
    told = (await discord.until(lambda: direct.posts("is done")))[0]
    assert "/job files id:1" in told.text
    health = await answered(boss, "admin health")
    assert f"<#{discord.channel.id}> has taken no messages" in health.text
    assert "Send Messages" in health.text

    await asyncio.sleep(_SEVERAL_TRIES_S)
    await discord.allow(discord.channel)
    done = await discord.until_posted("is done")
    assert done.mentions == [ana.id]
    assert any(name.endswith(".safetensors") for name in done.file_names)
    await asyncio.sleep(1)
    assert len(discord.channel.posts("is done")) == 1
    assert len(direct.messages) == 1
    assert "All is well" in (await answered(boss, "admin health")).text
    assert "Traceback" not in bot.log


async def test_an_owner_without_direct_messages_is_told_in_the_log_channel(
    discord: WireDiscord, offline_bot: WireBot, ana: Person
) -> None:
    logs = discord.add_channel("logs")
    ana.user.accepts_dms = False
    offline_bot.configure({"discord": {"log_channel": logs.id}})
    await offline_bot.start()
    await offline_bot.until_online()
    await finetune(ana)
    await discord.deny(discord.channel)
    told = await discord.until_posted("is done", logs)
    assert told.mentions == [ana.id]
    await discord.allow(discord.channel)
    await discord.until_posted("is done")


async def test_the_result_of_a_deleted_channel_is_told_and_handed_over_elsewhere(
    discord: WireDiscord, offline_bot: WireBot, ana: Person, ben: Person, boss: Person
) -> None:
    second = discord.add_channel("second")
    offline_bot.env["FAKE_STEP_S"] = "0.3"
    await offline_bot.start()
    await offline_bot.until_online()
    await finetune(ana)
    await discord.until_posted("#1 fox")
    await discord.delete_channel(discord.channel)
    direct = discord.dm_of(ana.user)
    await discord.until(lambda: direct.posts("is done"), 40)

    for asked in (await answered(ana, "job files", second, id="1"), await answered(ben, "job files", second, id="1")):
        assert asked.message is not None
        assert any(name.endswith(".safetensors") for name in asked.message.file_names)
    shown = await answered(ana, "job status", second, id="1")
    assert shown.message is not None
    pressed = await ana.click(shown.message, "All files")
    await discord.until(lambda: pressed.is_settled)
    assert pressed.message is not None
    assert any(name.endswith(".safetensors") for name in pressed.message.file_names)

    assert "404 10003" in (await answered(boss, "admin health", second)).text
    asked = await boss.slash("admin resend", second, here=True)
    await discord.until(lambda: asked.is_settled)
    done = await discord.until_posted("is done", second)
    assert done.mentions == [ana.id]
    await asyncio.sleep(1)
    assert len(second.posts("is done")) == 1


# -- answers that pass --------------------------------------------------------------------------------------------


PASSING: dict[str, Fault] = {
    "Cloudflare's page": refuse_html(403),
    "500": refuse(500),
    "502": refuse_html(502),
    "403 without a code": refuse(403),
    "cut": cut(),
    "answer lost": lose_answer(),
}


async def test_what_passes_after_several_tries_loses_and_doubles_nothing(
    discord: WireDiscord, offline_bot: WireBot
) -> None:
    channels = {name: discord.add_channel(name) for name in PASSING}
    people = {name: person(discord, f"user of {name}") for name in PASSING}
    offline_bot.configure({"queue": {"slots": len(PASSING)}})
    async with offline_bot:
        rules = {}
        for number, (name, channel) in enumerate(channels.items(), start=1):
            rules[name] = discord.faults.on("*", POSTS, PASSING[name], channel=channel.id, for_s=_SEVERAL_TRIES_S)
            await finetune(people[name], channel, images=6 + number)
        for name, channel in channels.items():
            done = await discord.until_posted("is done", channel)
            assert any(file.endswith(".safetensors") for file in done.file_names), name
            assert rules[name].hits, name
        await asyncio.sleep(1)
        for name, channel in channels.items():
            # The card and the result; the base model and the epoch are in the thread.
            assert len(channel.texts) == 2, name
            (thread,) = [each for each in discord.threads if each.parent is channel]
            await discord.until(lambda: len(thread.texts) >= 2)  # noqa: B023
            assert len(thread.texts) == 2, name
            assert not discord.dm_of(people[name].user).messages, name
        # What may have been sent is found by the ID of its first component, and not sent again.
        assert discord.repeated_nonces == []


async def test_being_away_costs_no_tries(discord: WireDiscord, bot: WireBot, ana: Person) -> None:
    bot_rows = "SELECT MAX(tries) AS tries, MAX(errors) AS errors FROM outbox"
    await finetune(ana)
    await discord.stop()
    await asyncio.sleep(2 * _SEVERAL_TRIES_S)
    await discord.start()
    # One hiccup after the outage.
    with discord.faults.on("POST", POSTS, refuse(503), times=1):
        await discord.until_posted("is done")
    assert bot.rows(bot_rows)[0]["tries"] <= 1
    await discord.until(lambda: len(discord.channel.messages) + len(discord.threads[0].messages) >= 4)


# -- smaller forms ------------------------------------------------------------------------------------------------


async def test_what_is_too_large_comes_without_files_and_they_are_handed_over_on_demand(
    discord: WireDiscord, bot: WireBot, ana: Person
) -> None:
    with discord.faults.on("POST", POSTS, refuse_html(413), channel=discord.channel.id, with_files=True):
        await finetune(ana)
        done = await discord.until_posted("is done")
    assert done.file_names == []
    assert "[All files]" in done.text
    handed = await answered(ana, "job files", id="1")
    assert handed.message is not None
    assert any(name.endswith(".safetensors") for name in handed.message.file_names)


async def test_a_refused_form_comes_as_text_and_a_card_is_drawn_at_its_next_change(
    discord: WireDiscord, bot: WireBot, ana: Person
) -> None:
    bad_form = refuse(400, code=50035, message="Invalid Form Body")
    with (
        discord.faults.on("POST", POSTS, bad_form, channel=discord.channel.id, with_files=True),
        # Both forms of one version of the card.
        discord.faults.on("PATCH", CARDS, bad_form, channel=discord.channel.id, times=2) as rule,
    ):
        await finetune(ana)
        done = await discord.until_posted("is done")
        await discord.until(lambda: len(rule.hits) == 2)
    assert done.content
    assert done.components == []
    assert done.mentions == [ana.id]
    await discord.until(lambda: discord.channel.posts("**Done**"))
    # The form is logged under the reference at the end of the text.
    assert f"ref {done.text[-8:]}" in bot.log


# -- no channel waits for another ---------------------------------------------------------------------------------


#: What the requests of a channel meet for good.
TROUBLES: dict[str, Fault] = {
    "hang": hang(),
    "429 of 20 s": rate_limit(20),
    "500": refuse(500),
    "503": refuse(503),
    "429 of 600 s": rate_limit(600),
}


async def test_trouble_in_some_channels_delays_no_other(
    discord: WireDiscord, offline_bot: WireBot, ben: Person
) -> None:
    second = discord.add_channel("second")
    channels = {name: discord.add_channel(name) for name in TROUBLES}
    offline_bot.configure({"queue": {"slots": len(TROUBLES) + 1}})
    async with offline_bot:
        for number, (name, fault) in enumerate(TROUBLES.items(), start=1):
            rule = discord.faults.on("*", POSTS, fault, channel=channels[name].id)
            await finetune(person(discord, f"user of {name}"), channels[name], images=6 + number)
            await discord.until(lambda: rule.hits, what=name)  # noqa: B023
        queued_at = time.time()
        await finetune(ben, second, epochs=2)
        card = await discord.until_posted(f"#{len(TROUBLES) + 1} fox", second)
        done = await discord.until_posted("is done", second)
        # A second, in truth. A bot that waits for a channel waits for 20 s or more; a busy machine costs a few.
        assert card.arrived_at - queued_at < 15
        end = f"SELECT created_at FROM outbox WHERE dedupe_key = 'job:{len(TROUBLES) + 1}:end'"
        assert done.arrived_at - offline_bot.rows(end)[0]["created_at"] < 15


async def test_a_global_rate_limit_delays_all_and_ends(
    discord: WireDiscord, offline_bot: WireBot, ana: Person, ben: Person
) -> None:
    second = discord.add_channel("second")
    await offline_bot.start()
    await offline_bot.until_online()
    with discord.faults.on("POST", POSTS, rate_limit(4, is_global=True), channel=discord.channel.id, times=1) as rule:
        await finetune(ana)
        await discord.until(lambda: rule.hits)
        await finetune(ben, second, epochs=2)
        posted = await discord.until_posted("#2 fox", second)
    assert posted.arrived_at - rule.hits[0] > 3.5
    await discord.until_posted("is done")


async def test_an_edit_that_is_not_allowed_any_more_costs_a_new_card_and_no_time(
    discord: WireDiscord, offline_bot: WireBot, ana: Person
) -> None:
    offline_bot.env["FAKE_STEP_S"] = "0.5"
    async with offline_bot:
        await finetune(ana)
        old = await discord.until_posted("#1 fox")
        # 30046: edits of a message older than an hour.
        with discord.faults.on("PATCH", f"/channels/*/messages/{old.id}", rate_limit(3, code=30046)) as rule:
            await discord.until(lambda: rule.hits)
            new = await discord.until(lambda: _cards_after(discord, old))
        assert len(rule.hits) == 1
        assert new[0].arrived_at - rule.hits[0] < 2
        await discord.until(lambda: "**Done**" in new[0].text)
        assert len(_cards_after(discord, old)) == 1
        # The old one is deleted; the thread that started from it stays.
        assert old not in discord.channel.messages
        assert [thread.id for thread in discord.threads] == [old.id]
        assert f"<#{old.id}>" in new[0].text


# -- threads ------------------------------------------------------------------------------------------------------


async def test_a_job_has_two_messages_in_its_channel_and_the_rest_in_its_thread(
    discord: WireDiscord, offline_bot: WireBot, ana: Person, ben: Person
) -> None:
    voice = discord.add_channel("voice", type=VOICE)
    offline_bot.configure({"queue": {"slots": 2}})
    async with offline_bot:
        await finetune(ana, epochs=6)
        # A channel without threads gets one message with the newest samples instead.
        await finetune(ben, voice, epochs=6, images=7)
        for channel in (discord.channel, voice):
            await discord.until_posted("is done", channel)
        (thread,) = discord.threads
        assert thread.name == "#1 fox"
        assert (thread.id, thread.parent) == (discord.channel.posts("fox")[0].id, discord.channel)
        await _until_all_is_sent(discord, offline_bot)
        assert len(discord.channel.texts) == 2
        # Six epochs of less than a second are not six posts.
        assert 2 <= len(thread.texts) <= 4
        assert not [text for text in (*discord.channel.texts, *thread.texts) if re.search(r"\b[0-9a-f]{8}\b", text)]
        assert len(voice.texts) == 3


async def test_an_archived_thread_opens_again_and_a_locked_or_deleted_one_is_left(
    discord: WireDiscord, offline_bot: WireBot
) -> None:
    channels = {how: discord.add_channel(how) for how in ("archived", "locked", "deleted")}
    people = {how: person(discord, f"user of {how}") for how in channels}
    offline_bot.env["FAKE_STEP_S"] = "0.3"
    offline_bot.configure({"queue": {"slots": len(channels)}})

    async def disturbed(how: str, images: int) -> tuple[WireChannel, int]:
        """The thread of a training, and how many messages it had when it was closed."""
        await finetune(people[how], channels[how], epochs=2, images=images)
        parent = channels[how]
        await discord.until(lambda: any(each.texts for each in discord.threads if each.parent is parent))
        (thread,) = [each for each in discord.threads if each.parent is parent]
        if how == "deleted":
            await discord.delete_channel(thread)
        else:
            await discord.set_thread(thread, archived=True, locked=how == "locked")
        return thread, len(thread.texts)

    async with offline_bot:
        closed = await asyncio.gather(*(disturbed(how, 6 + number) for number, how in enumerate(channels)))
        for channel in channels.values():
            await discord.until_posted("is done", channel)
        await _until_all_is_sent(discord, offline_bot)
    (archived, before), *others = closed
    assert not archived.is_archived
    assert len(archived.texts) > before
    assert len(channels["archived"].texts) == 2
    for how, (thread, before) in zip(("locked", "deleted"), others, strict=True):
        assert len(thread.texts) == before, how
        assert len(channels[how].texts) == 3, how
    assert not any(discord.dm_of(each.user).messages for each in people.values())


async def _until_all_is_sent(discord: WireDiscord, bot: WireBot) -> None:
    unsent = "SELECT 1 FROM outbox WHERE state IN ('waiting', 'sending')"
    await discord.until(lambda: bot.rows(unsent) == [])


def _cards_after(discord: WireDiscord, old: WireMessage) -> list[WireMessage]:
    return [each for each in discord.channel.posts("### ") if each.id > old.id and "is done" not in each.text]
