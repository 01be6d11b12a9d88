"""Answers to people when Discord refuses, is cut off, repeats itself or is late: each act counts once."""

from __future__ import annotations

import asyncio

import pytest

from bot.bot_failpoints import FAILPOINT_VARIABLE
from tests.wire.conftest import archive
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord, WireInteraction
from tests.wire.wire_faults import Fault, cut, lose_answer, rate_limit, refuse, refuse_html
from tests.wire.wire_people import Person
from tests.wire.wire_state import WireMessage

pytestmark = pytest.mark.slow

CALLBACK = "/interactions/*/*/callback"
ORIGINAL = "/webhooks/*/*/messages/@original"
FOLLOWUP = "/webhooks/*/*"
#: What a first answer meets, once or twice.
TROUBLES: dict[str, tuple[Fault, int]] = {
    "cut": (cut(), 2),
    "Cloudflare's 429": (rate_limit(0, via=False), 2),
    "its page": (refuse_html(403), 1),
    "Discord's 429": (rate_limit(0.3), 1),
    "500": (refuse(500), 1),
    "an answer that is lost": (lose_answer(), 1),
}


def assert_nothing_broke(bot: WireBot, *asked: WireInteraction) -> None:
    assert "Traceback" not in bot.log, bot.log[-6000:]
    for each in asked:
        assert "Something broke" not in each.text, each.text


async def settled(discord: WireDiscord, asked: WireInteraction, seconds: float = 20) -> WireInteraction:
    await discord.until(lambda: asked.is_settled, seconds)
    return asked


async def requested(discord: WireDiscord, ana: Person, name: str) -> WireMessage:
    """A card with [Start training]."""
    asked = await settled(
        discord,
        await ana.slash(
            "finetune", dataset=archive(salt=name), name=name, epochs=1, trigger=f"zk{len(discord.interactions)}"
        ),
    )
    assert asked.message is not None, asked.text
    return asked.message


async def test_a_first_answer_in_trouble_is_tried_again(discord: WireDiscord, bot: WireBot, ana: Person) -> None:
    for name, (fault, times) in TROUBLES.items():
        with discord.faults.on("POST", CALLBACK, fault, times=times) as rule:
            asked = await settled(discord, await ana.slash("queue"))
        assert len(rule.hits) == times, name
        assert len(asked.callbacks) == 1, name
        assert asked.followups == [], name
        with discord.faults.on("POST", CALLBACK, fault, times=times):
            form = await ana.slash("dataset upload")
            await discord.until(lambda: form.modal)  # noqa: B023
        # The form is known when it comes back, also if the confirmation of its question was lost.
        submitted = await settled(discord, await ana.submit(form, files=[archive(salt=name)]))
        assert "6 images" in submitted.text, name
        with discord.faults.on("POST", CALLBACK, fault, times=times):
            typed = await ana.complete("dataset inspect", "dataset", "fo")
            await discord.until(lambda: typed.callbacks)  # noqa: B023
        assert typed.choices, name
        assert_nothing_broke(bot, asked, submitted)


async def test_a_later_answer_in_trouble_is_given_once(discord: WireDiscord, bot: WireBot, ana: Person) -> None:
    for number, (name, (fault, times)) in enumerate(TROUBLES.items(), 1):
        card = await requested(discord, ana, f"job-{number}")
        with discord.faults.on("PATCH", ORIGINAL, fault, times=times) as rule:
            pressed = await ana.click(card, "Start training")
            await discord.until(lambda: "Queued" in card.text)  # noqa: B023
        assert len(rule.hits) == times, name
        with discord.faults.on("PATCH", ORIGINAL, fault, times=times):
            shown = await settled(discord, await ana.slash("job status", id=f"job-{number}"))
        assert len(bot.rows("SELECT 1 FROM job")) == number, name
        assert pressed.followups == shown.followups == [], name
        assert_nothing_broke(bot, pressed, shown)


async def test_a_late_command_changes_nothing(discord: WireDiscord, offline_bot: WireBot, ana: Person) -> None:
    bot = offline_bot
    bot.configure({"trainer.env": {"FAKE_STEP_S": "5"}})
    await bot.start()
    await bot.until_online()
    await settled(discord, await ana.click(await requested(discord, ana, "one"), "Start training"))
    card = await discord.until_posted("one")
    await discord.until(lambda: any("Stop" in label for label in card.buttons))
    typed = await ana.complete("job status", "id", "o")
    await discord.until(lambda: typed.callbacks)

    def audited() -> list[str]:
        return [row["verb"] for row in bot.rows("SELECT verb FROM audit ORDER BY id")]

    await discord.until(lambda: "begin" in audited())
    before = audited()
    late = [
        WireInteraction(2, ana.user, discord.channel, _job_command(discord, ana, "pause")),
        WireInteraction(2, ana.user, discord.channel, _job_command(discord, ana, "pin")),
        WireInteraction(3, ana.user, discord.channel, _pressed("job:1:pause"), source=card),
        WireInteraction(4, ana.user, discord.channel, typed.data),
    ]
    for each in late:
        each.at -= 4
        await ana.send(each)
    await settled(discord, await ana.slash("queue"))
    await asyncio.sleep(1)
    assert audited() == before
    assert all(each.callbacks == [] for each in late)
    assert_nothing_broke(bot)


def _job_command(discord: WireDiscord, ana: Person, verb: str) -> dict[str, object]:
    found = ana._command("job", 1, discord.channel)
    option = {"name": "id", "type": 3, "value": "1"}
    return {
        "id": found["id"], "name": "job", "type": 1, "options": [{"name": verb, "type": 1, "options": [option]}],
    }  # fmt: skip


def _pressed(custom_id: str) -> dict[str, object]:
    return {"component_type": 2, "custom_id": custom_id}


async def test_what_is_delivered_twice_is_done_once(discord: WireDiscord, bot: WireBot, ana: Person) -> None:
    asked = await ana.slash("finetune", dataset=archive(), epochs=1, confirm=False)
    await ana.send(asked)
    await settled(discord, asked)
    await ana.send(asked)
    shown = await ana.slash("queue")
    await ana.send(shown)
    await settled(discord, shown)
    done = await discord.until_posted("is done")
    pressed = await ana.click(done, "job:1:details")
    await ana.send(pressed)
    await settled(discord, pressed)
    typed = await ana.complete("job status", "id", "fo")
    await ana.send(typed)
    await discord.until(lambda: typed.callbacks)
    await settled(discord, await ana.slash("job list"))
    for each in (asked, shown, pressed, typed):
        assert len(each.callbacks) == 1
        assert each.followups == []
    assert len(bot.rows("SELECT 1 FROM job")) == 1
    assert "40060" not in bot.log
    assert_nothing_broke(bot, asked, shown, pressed)


async def test_who_cannot_be_answered_is_told_in_the_channel(
    discord: WireDiscord, offline_bot: WireBot, ana: Person
) -> None:
    bot = offline_bot
    bot.env["FAKE_PREPARE_S"] = "1"
    await bot.start()
    await bot.until_online()

    # After 15 minutes the token of an interaction is worth nothing.
    asked = await ana.slash("finetune", dataset=archive(salt="a"), epochs=1)
    await discord.until(lambda: asked.callbacks)
    asked.expire()
    post = await discord.until_posted("waits")
    assert post.mentions == [ana.id]
    assert "15 minutes" in post.text
    assert "restarted" not in post.text
    card = await settled(discord, await ana.click(post, "Show my request"))
    assert card.message is not None
    assert "Start training" in card.message.buttons

    # An error too.
    refused = await ana.slash("dataset add", dataset="fox", file=("empty.zip", b"PK"))
    await discord.until(lambda: refused.callbacks)
    refused.expire()
    post = await discord.until_posted("empty.zip")
    assert "not a zip archive" in post.text
    assert "15 minutes" in post.text

    # What is no upload.
    inspected = await ana.slash("dataset inspect", dataset="fox")
    inspected.expire()
    post = await discord.until_posted("/dataset inspect")
    assert post.mentions == [ana.id]
    assert bot.rows("SELECT * FROM upload") == []
    assert_nothing_broke(bot, asked, refused, inspected)


async def test_who_is_cut_off_is_told_in_the_channel(discord: WireDiscord, bot: WireBot, ana: Person) -> None:
    with discord.faults.on("PATCH", ORIGINAL, cut()), discord.faults.on("POST", FOLLOWUP, cut()):
        asked = await ana.slash("finetune", dataset=archive(), epochs=1)
        post = await discord.until_posted("waits")
    assert post.mentions == [ana.id]
    assert "could not be reached" in post.text
    assert "restarted" not in post.text
    assert bot.rows("SELECT * FROM upload") == []
    assert_nothing_broke(bot, asked)


@pytest.mark.parametrize("point", ["upload_recorded", "upload_acknowledged"])
async def test_an_upload_survives_a_kill_around_its_acknowledgement(
    discord: WireDiscord, offline_bot: WireBot, ana: Person, point: str
) -> None:
    offline_bot.env[FAILPOINT_VARIABLE] = point
    await offline_bot.start()
    await offline_bot.until_online()
    asked = await ana.slash("finetune", dataset=archive(), epochs=1)
    assert await offline_bot.ended() == -9
    # It is stored before Ana reads "thinking…": there is no moment at which only Discord knows of it.
    assert len(asked.callbacks) == (point == "upload_acknowledged")
    offline_bot.env.clear()
    await offline_bot.start()
    post = await discord.until_posted("I was restarted")
    assert "before **fox.zip** had arrived" in post.text
    assert post.mentions == [ana.id]
