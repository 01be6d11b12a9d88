"""`/notify` and [🔔]: who is told of what, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discord import ui

from bot.outbox.audience import NotifyEvent, NotifyPlace, QuietHours
from tests.bot.cogs.conftest import World, answer, first_bot, next_bot, text_of, world
from tests.bot.cogs.dataset_helpers import DEFECTIVE, press, shown_again

SLOW = "0.3"


async def choose(lab: World, page: Any, event: NotifyEvent, place: NotifyPlace, member: Any = None) -> Any:
    return await (member or lab.ana).select(page, [place], custom_id=f"notify:at:{event}")


def places_of(message: Any) -> dict[str, str]:
    """What the menus of a page show as chosen."""
    view = ui.LayoutView.from_message(message, timeout=None)
    menus = [item for item in view.walk_children() if isinstance(item, ui.Select)]
    return {
        menu.custom_id.rpartition(":")[2]: option.value for menu in menus for option in menu.options if option.default
    }


async def test_choices_are_kept_and_are_each_persons_own(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        page = (await lab.ana.slash(lab.channel, "notify")).response.message
        assert places_of(page)["done"] == "mention"
        await choose(lab, page, NotifyEvent.EPOCH, NotifyPlace.MENTION)
        assert places_of((await lab.ana.slash(lab.channel, "notify")).response.message)["epoch"] == "mention"
    async with next_bot(lab, data_dir):
        # The page of an earlier bot still works.
        await choose(lab, page, NotifyEvent.DONE, NotifyPlace.NONE)
        chosen = places_of((await lab.ana.slash(lab.channel, "notify")).response.message)
        assert (chosen["epoch"], chosen["done"]) == ("mention", "none")
        others = places_of((await lab.ben.slash(lab.channel, "notify")).response.message)
        assert (others["epoch"], others["done"]) == ("none", "mention")


async def test_who_wants_plain_text_gets_it_in_each_answer_and_only_they(data_dir: Path) -> None:
    async def shape(actor: Any, command: str, **options: Any) -> set[str]:
        message = (await actor.slash(lab.channel, command, **options)).response.message
        view = ui.LayoutView.from_message(message, timeout=None)
        return {type(item).__name__ for item in view.children}

    async with first_bot(data_dir) as lab:
        await lab.train(dataset=DEFECTIVE)
        assert "plain text now" in answer(await lab.ana.slash(lab.channel, "notify", plain=True))
    async with next_bot(lab, data_dir):
        for command, options in (("job status", {"id": "1"}), ("dataset inspect", {"dataset": "fox"}), ("queue", {})):
            assert "Container" in await shape(lab.ben, command, **options), command
            assert await shape(lab.ana, command, **options) <= {"TextDisplay", "ActionRow", "File"}, command
        # An answer of hers that a button replaces is plain too; what others see stays as it is for them.
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        await press(lab.ana, page, "Keep")
        replaced = ui.LayoutView.from_message(shown_again(lab, page), timeout=None)
        assert not [item for item in replaced.children if isinstance(item, ui.Container)]
        card = lab.messages()[0]
        before = text_of(card)
        await lab.ana.click(card, custom_id="job:1:details")
        assert text_of(lab.messages()[0]) == before
        assert "boxes and pictures again" in answer(await lab.ana.slash(lab.channel, "notify", plain=False))
        assert "Container" in await shape(lab.ana, "job status", id="1")


async def test_a_training_tells_its_owner_and_who_watches_it_where_they_chose(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        audience = lab.app.outbox.audience
        await audience.choose(lab.ana.id, NotifyEvent.STARTED, NotifyPlace.MENTION)
        await audience.choose(lab.ana.id, NotifyEvent.DONE, NotifyPlace.NONE)
        await audience.choose(lab.ben.id, NotifyEvent.DONE, NotifyPlace.MENTION)
        await lab.finetune(epochs=2)
        await lab.until(lambda: bool(lab.texts()))
        pressed = await lab.ben.click(lab.channel.history()[0], custom_id="job:1:watch")
        assert "You follow" in answer(pressed)
        await lab.until(lambda: len(lab.texts()) == 2)
        assert lab.mentions()[-1] == [lab.ben.id]
        started = [text for text in lab.thread_texts() if "has started" in text]
        assert len(started) == 1
        assert f"<@{lab.ana.id}>" in started[0]


async def test_a_second_press_on_the_bell_ends_it_also_for_the_owner(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await lab.finetune(epochs=2)
        await lab.until(lambda: bool(lab.texts()))
        card = lab.channel.history()[0]
        for member, follows in ((lab.ana, False), (lab.ben, True), (lab.ben, False)):
            pressed = answer(await member.click(card, custom_id="job:1:watch"))
            assert ("You follow" in pressed) is follows
        await lab.until(lambda: len(lab.texts()) == 2)
        assert lab.mentions()[-1] == []


async def test_quiet_hours_silence_the_result_and_keep_what_was_typed_wrong(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        page = (await lab.ana.slash(lab.channel, "notify")).response.message
        form = await lab.ana.click(page, custom_id="notify:quiet")
        refused = await lab.ana.submit_modal(form, {"begins": "22 o'clock", "ends": "7:00", "zone": "Berlin"})
        assert "is not a time of day" in answer(refused)
        form = await lab.ana.click(page, custom_id="notify:quiet")
        await lab.ana.submit_modal(form, {"begins": "0:00", "ends": "23:59", "zone": "Berlin"})
        preferences = await lab.app.outbox.audience.preferences(lab.ana.id)
        assert preferences.quiet == QuietHours(begins=0, ends=1439, zone="Europe/Berlin")
        await lab.finetune()
        await lab.until(lambda: len(lab.texts()) == 2)
        assert lab.mentions()[-1] == [lab.ana.id]
        assert all(message.flags.suppress_notifications for message in lab.messages())


async def test_who_takes_no_direct_messages_learns_it_at_once(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        page = (await lab.ana.slash(lab.channel, "notify")).response.message
        lab.env.inject_error("POST", "/channels/*/messages", status=403, code=50007, message="Cannot send")
        chosen = await choose(lab, page, NotifyEvent.DONE, NotifyPlace.DIRECT)
        assert "could not send you a direct message" in answer(chosen)
