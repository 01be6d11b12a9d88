"""`/finetune` shows the dataset first; the job is queued after "Start training", and once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.datasets import Dataset
from bot.queue import RoleLimit
from tests.bot.cogs.conftest import (
    World,
    answer,
    archive,
    first_bot,
    next_bot,
    text_of,
    with_settings_file,
    world,
)
from tests.bot.cogs.dataset_helpers import DEFECTIVE, buttons, press, press_forged, shown_again


async def ask(lab: World, **options: Any) -> Any:
    """Ana's `/finetune`; the card that she gets."""
    asked = with_settings_file({"dataset": DEFECTIVE, "epochs": 2, **options})
    result = await lab.ana.slash(lab.channel, "finetune", **asked)
    return result.response.message


async def refused_go_on(lab: World, card: Any) -> str:
    """Press "Start training"; return why it is refused."""
    return text_of((await press(lab.ana, card, "Start training")).followups[-1])


async def test_nothing_is_queued_before_go_on(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, prompts="a fox", name="Red One")
        assert "**Images**: 7 images" in text_of(card)
        assert "Train “red-one”?" in text_of(card)
        asked = ["Start training", "Edit", "Advanced…", "Cancel"]
        assert list(buttons(card)) == [*asked, "▶️", "Review 1 image", "Captions", "Report"]
        assert card.flags.ephemeral
        assert await lab.recent() == []
        assert lab.channel.history() == []

        receipt = (await press(lab.ana, card, "Start training")).response.message

        assert "✅ **Queued #1 “red-one”**" in text_of(receipt)
        (job,) = await lab.recent()
        assert (job.spec.training.epochs, job.spec.samples.prompts) == (2, ("a fox",))
        assert job.owner_id == lab.ana.id
        await lab.until_shown("is done")


async def test_go_on_pressed_twice_is_one_job(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        draft = buttons(card)["Start training"]
        await lab.ana.click(card, custom_id=draft)
        for _ in range(2):
            await press_forged(lab, draft)
        await lab.until_shown("is done")
        assert len(await lab.recent()) == 1


async def test_cancel_queues_nothing_and_keeps_the_dataset(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        await press(lab.ana, card, "Cancel")
        assert await lab.recent() == []
        assert await lab.app.services.datasets.named(lab.channel.guild.id, "fox")
        assert "cancelled" in await press_forged(lab, "ds:1:go:1")


async def test_sheets_can_be_turned_on_the_card_of_a_draft(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        turned = (await press(lab.ana, card, "▶️")).response.message
        assert [file.filename for file in turned.attachments] == ["fox-prepared-2.png"]
        assert "Start training" in buttons(turned)
        await press(lab.ana, turned, "Start training")
        assert [job.id for job in await lab.recent()] == [1]


async def test_fix_leads_to_the_review_and_back_to_the_draft(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        page = (await press(lab.ana, card, "Review")).response.message
        page = (await press(lab.ana, page, "Drop")).response.message
        back = (await press(lab.ana, page, "Done")).response.message
        assert "**Images**: 6 images" in text_of(back)
        assert "Start training" in buttons(back)
        await press(lab.ana, back, "Start training")
        (job,) = await lab.recent()
        dataset = await lab.app.services.datasets.get(job.dataset_id)
        assert job.spec.dataset == str(dataset.folder)
        assert dataset.folder.name != "prepared"


async def test_go_on_applies_pending_decisions(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        await press(lab.ana, page, "Drop")
        assert "6 images, 2 skipped" in answer(await press(lab.ana, shown_again(lab, card), "Start training"))
        (job,) = await lab.recent()
        assert not job.spec.dataset.endswith("prepared")


async def test_a_job_keeps_its_revision_when_the_dataset_changes(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        await press(lab.ana, await ask(lab), "Start training")
        (job,) = await lab.recent()
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        page = (await press(lab.ana, page, "Drop")).response.message
        await press(lab.ana, page, "Done")
        moved = await lab.app.services.datasets.get(job.dataset_id)
        (same,) = await lab.recent()
        assert same.spec.dataset == job.spec.dataset != str(moved.folder)
        assert (Path(job.spec.dataset) / "report.json").exists()


async def test_a_draft_waits_after_a_refused_go_on(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        for number in range(4):
            await lab.finetune(dataset=archive(6 + number), epochs=2)
        card = await ask(lab)
        assert "You have 3 of 3 jobs waiting" in await refused_go_on(lab, card)
        assert await lab.app.services.drafts.waiting(lab.ana.id, 5)
        await lab.ana.slash(lab.channel, "job cancel", id="2")
        assert "Queued #5" in answer(await press(lab.ana, shown_again(lab, card), "Start training"))


async def test_a_duplicate_needs_a_second_confirmation_and_the_draft_waits(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        await press(lab.ana, await ask(lab), "Start training")
        card = await ask(lab, name="twin")
        reply = await press(lab.ana, card, "Start training")
        notification = reply.followups[-1].message
        assert "**#1** has the same images and settings" in text_of(notification)
        assert "Start training" in buttons(shown_again(lab, card))
        refused = await press_forged(lab, "ds:1:again:2", user=lab.ben)
        assert "can continue with this request" in refused
        assert "Queued #2 “twin”" in answer(await press(lab.ana, notification, "Queue anyway"))
        # The button of the card shows the result.
        assert "Queued #2 “twin”" in answer(await press(lab.ana, shown_again(lab, card), "Start training"))
        assert len(await lab.recent()) == 2


async def test_a_draft_shows_an_estimate_once_there_is_one(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, early_stop=False)
        assert "no estimate yet" in text_of(card)
        await press(lab.ana, card, "Start training")
        await lab.until_shown("is done")
        assert "**Time**: about" in text_of(await ask(lab, seed=7, early_stop=False))


async def test_limits_are_checked_again_at_go_on(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        guild_id = lab.channel.guild.id
        await lab.app.services.limits.set(guild_id, RoleLimit(role_id=guild_id, max_epochs=1), by=1)
        card = (await press(lab.ana, card, "Start training")).response.message
        assert "2 epochs are more than the 1" in text_of(card)
        assert "Fix in form" in buttons(card)
        assert await lab.recent() == []


async def test_go_on_for_a_deleted_dataset_is_refused(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        await lab.app.services.datasets.delete(1)
        assert "There is no dataset" in await refused_go_on(lab, card)
        assert await lab.recent() == []


async def test_another_member_may_train_on_a_dataset(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await press(lab.ana, await ask(lab), "Cancel")
        card = (await lab.ben.slash(lab.channel, "finetune", from_dataset="fox", epochs=1)).response.message
        assert "Queued #1" in answer(await press(lab.ben, card, "Start training"))
        assert [job.owner_id for job in await lab.recent()] == [lab.ben.id]


async def test_only_the_owner_can_settle_a_draft(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await ask(lab)
        for verb in ("go", "cancel"):
            reply = await press_forged(lab, f"ds:1:{verb}:1", user=lab.ben)
            assert f"Only <@{lab.ana.id}> can continue with this request." in reply
        assert await lab.recent() == []


async def test_a_draft_survives_a_restart_and_is_one_job(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        card = await ask(lab)
    async with next_bot(lab, data_dir):
        await press(lab.ana, card, "Start training")
        await lab.until_shown("is done")
        assert len(await lab.recent()) == 1


async def test_a_dataset_that_is_deleted_during_go_on_gets_no_job(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        datasets = lab.app.services.datasets
        apply = datasets.apply

        async def apply_and_lose(dataset_id: int) -> Dataset:
            found = await apply(dataset_id)
            await datasets.delete(dataset_id)
            return found

        monkeypatch.setattr(datasets, "apply", apply_and_lose)
        assert "There is no dataset" in answer(await press(lab.ana, card, "Start training"))
        assert await lab.recent() == []


async def test_go_on_for_a_job_whose_dataset_was_deleted_later(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        go_on = buttons(card)["Start training"]
        await press(lab.ana, card, "Start training")
        await lab.until_shown("is done")
        await lab.app.services.datasets.delete(1)
        assert "already queued as #1" in await press_forged(lab, go_on)


async def test_a_request_is_settled_in_its_own_server_only(data_dir: Path) -> None:
    """Elsewhere, its owner may have permissions and limits that they do not have here."""
    async with world(data_dir) as lab:
        user, elsewhere = lab.env.create_user("eve"), lab.env.create_guild("Elsewhere")
        here, there = lab.channel.guild.add_member(user), elsewhere.add_member(user)
        channel = elsewhere.create_text_channel("there")
        card = (await here.slash(lab.channel, "finetune", dataset=archive(), epochs=1)).response.message
        for verb in ("go", "again", "request", "cancel"):
            assert "no longer waits" in await press_forged(lab, f"ds:1:{verb}:1", there, channel), verb
        assert await lab.recent() == []
        assert "Queued #1" in answer(await press(here, card, "Start training"))
