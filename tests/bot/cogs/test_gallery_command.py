"""[Share] and `/gallery`: by owner, teammate, stranger to the role, and manager; settings tried on other images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.cogs.job_request import JobRequest
from tests.bot.cogs.conftest import World, answer, first_bot, next_bot, settings_file, text_of, world
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged, upload_dataset
from tests.bot.cogs.test_access import set_rules


async def share(lab: World, **options: Any) -> Any:
    """Share job 1 as Ana and return the picture's message."""
    await lab.ana.slash(lab.channel, "job share", id="1", **options)
    await lab.until_sent()
    return pictures(lab)[-1]


def pictures(lab: World, channel: Any = None) -> list[Any]:
    """The messages of pictures in a channel, oldest first."""
    return [
        each
        for each in (channel or lab.channel).history()
        if any("gallery:" in custom_id for custom_id in buttons(each).values())
    ][::-1]


async def test_a_shared_picture_says_what_it_takes_and_leaves_with_unshare(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(prompts="a red fox", trigger="zkz")
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job share", id="1"))
        shown = await lab.ana.slash(lab.channel, "job share", id="1", tags="Fox, #snow")
        assert shown.response.ephemeral
        assert f"Shared in <#{lab.channel.id}>" in answer(shown)
        await lab.until_sent()
        (message,) = pictures(lab)
        text = text_of(message)
        for part in (
            f"fox by <@{lab.ana.id}>",
            "> a red fox · seed 0",
            "`zkz`",
            "epoch 1",
            "preset lora",
            "#fox #snow",
        ):
            assert part in text
        assert message.attachments
        assert "Shared in" in answer(await lab.ana.slash(lab.channel, "job share", id="1"))
        await lab.until_sent()
        assert len(pictures(lab)) == 1

        assert "Only" in answer(await press(lab.ben, message, "Unshare"))
        assert "no longer in the gallery" in answer(await press(lab.ana, message, "Unshare"))
        await lab.until_sent()
        assert pictures(lab) == []
        assert not (await lab.jobs.get(1)).is_shared
        assert "#1 is not shared." in answer(await lab.ana.slash(lab.channel, "job unshare", id="1"))
        assert lab.env.errors


async def test_the_gallery_channel_is_set_by_a_manager(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        wall = lab.channel.guild.create_text_channel("wall")
        await lab.train()
        boss = lab.add_manager()
        assert f"<#{wall.id}>" in answer(await boss.slash(lab.channel, "admin gallery", channel=wall))
        # The form of the roles leaves it as it is.
        form = await boss.slash(lab.channel, "admin settings")
        await boss.submit_modal(form, {})
        assert f"Shared in <#{wall.id}>" in answer(await lab.ana.slash(lab.channel, "job share", id="1"))
        await lab.until_sent()
        assert len(pictures(lab, wall)) == 1
        assert pictures(lab) == []
        # Unshared by the command, though the message is gone already.
        await pictures(lab, wall)[0].delete()
        assert "no longer" in answer(await boss.slash(lab.channel, "job unshare", id="1"))
        await lab.until_sent()
        assert pictures(lab, wall) == []


async def test_likes_are_counted_once_each_and_outlive_the_bot(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        await lab.train()
        message = await share(lab)
        await press(lab.ben, message, "0")
        await press(lab.ana, message, "0")
        await press(lab.ben, message, "0")
        await lab.until_sent()
    async with next_bot(lab, data_dir):
        (message,) = pictures(lab)
        assert "1" in buttons(message)
        await press(lab.ben, message, "1")
        await lab.until_sent()
        assert "2" in buttons(pictures(lab)[0])


async def test_the_gallery_is_browsed_by_person_base_and_tag(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        assert "The gallery is empty" in answer(await lab.ben.slash(lab.channel, "gallery"))
        await lab.train(prompts="a red fox")
        await share(lab, tags="fox")
        shown = await lab.ben.slash(lab.channel, "gallery")
        assert shown.response.ephemeral
        assert "The gallery: 1 picture" in answer(shown)
        assert "a red fox" in answer(shown)
        page = shown.response.message
        await press(lab.ben, page, "0")
        page = next(each for each in lab.channel.history(viewer=lab.ben) if each.id == page.id)
        assert "1" in buttons(page)
        await press(lab.ben, page, "Most liked first")
        page = next(each for each in lab.channel.history(viewer=lab.ben) if each.id == page.id)
        assert "most liked first" in text_of(page)
        assert "no such pictures" in answer(await lab.ben.slash(lab.channel, "gallery", tag="wolf"))
        assert "#fox" in answer(await lab.ben.slash(lab.channel, "gallery", tag="#Fox", person=lab.ana.user))
        assert [each["value"] for each in await lab.ben.autocomplete(lab.channel, "gallery", "tag", "F")] == ["fox"]


async def test_the_settings_of_a_picture_are_tried_on_other_images(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(prompts="a red fox", trigger="zkz", rank=4, epochs=2)
        message = await share(lab)
        await upload_dataset(lab)
        form = await press(lab.ben, message, "Try these settings")
        assert form.modal["title"] == "Settings of #1 fox"
        result = await lab.ben.submit_modal(form, {"dataset": ["fox-2"], "training.trigger": "qux", "name": "mine"})
        assert "mine" in answer(result)
        draft = await lab.app.services.drafts.get(2)
        request = JobRequest.model_validate_json(draft.request)
        assert draft.owner_id == lab.ben.id
        assert request.overrides == {"training.trigger": "qux"}
        assert request.saved_preset is not None
        assert request.saved_preset.settings["method"]["rank"] == 4
        assert request.saved_preset.settings["training"]["epochs"] == 2


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
async def test_a_training_starts_from_what_another_has_learned(data_dir: Path, init: str) -> None:
    async with world(data_dir) as lab:
        await lab.train(trigger="zkz", settings=settings_file(**{"method.init": init, "method.rank": 4}))
        await upload_dataset(lab)
        form = await press(lab.ana, await share(lab), "Try these settings")
        start = "what #1 has learned"
        result = await lab.ana.submit_modal(form, {"dataset": ["fox-2"], "name": "more", "start": [start]})
        assert "from what an earlier training has learned" in answer(result)
        await press(lab.ana, result.followups[-1] if result.followups else result.response.message, "Start training")
        await lab.until_shown("#2 more is done")
        earlier, job = await lab.jobs.get(1), await lab.jobs.get(2)
        (exported,) = [each for each in await lab.jobs.events(1) if each.type == "exported" and each.format == "kohya"]
        assert job.spec.method.start_sha256 == exported.sha256
        # The file of a PiSSA is an ordinary LoRA of twice the rank.
        assert (job.spec.method.init, job.spec.method.rank) == ("gaussian", 8 if init == "pissa" else 4)
        # So retention keeps it while this one waits.
        assert job.source_id == 1
        copied = lab.jobs.job_dir(job) / "start.safetensors"
        assert copied.read_bytes() == (lab.jobs.job_dir(earlier) / exported.path).read_bytes()


async def test_a_start_that_does_not_fit_is_refused_before_it_waits(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        await upload_dataset(lab)
        form = await press(lab.ana, await share(lab), "Try these settings")
        result = await lab.ana.submit_modal(form, {"dataset": ["fox-2"], "name": "m", "start": ["what #1 has learned"]})
        draft = await lab.app.services.drafts.get(2)
        request = JobRequest.model_validate_json(draft.request).changed({"method.rank": 64})
        await lab.app.services.drafts.change(draft.id, request.model_dump_json())
        shown = await press(
            lab.ana, result.followups[-1] if result.followups else result.response.message, "Start training"
        )
        assert "starts from #1 must have the same base model and method" in answer(shown)
        assert len(await lab.recent()) == 1


async def test_a_training_is_run_again_with_changes(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(prompts="a red fox", trigger="zkz", rank=4, epochs=2)
        shown = await press_forged(lab, "job:1:run_again")
        assert "fox" in shown
        draft = await lab.app.services.drafts.get(2)
        request = JobRequest.model_validate_json(draft.request)
        assert request.overrides == {"training.trigger": "zkz", "samples.prompts": ["a red fox"]}
        assert request.name == "fox"
        # The same again is no news.
        assert "same images and settings" in await press_forged(lab, f"ds:1:go:{draft.id}")


async def test_whoever_may_not_share_or_train_is_told_which_role_it_takes(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        message = await share(lab)
        role = lab.channel.guild.create_role("Artists")
        await set_rules(lab, train=[role.id], share=[role.id])
        assert f"<@&{role.id}>" in answer(await press(lab.ben, message, "Try these settings"))
        assert f"<@&{role.id}>" in answer(await lab.ana.slash(lab.channel, "job share", id="1"))
        await press(lab.ben, message, "0")
        await lab.until_sent()
        assert "1" in buttons(pictures(lab)[0])
        assert "is no longer in the gallery" in await press_forged(lab, "gallery:99:download")
        assert "another version" in await press_forged(lab, "gallery:1:eat")
