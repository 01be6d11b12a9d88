"""`/preset`: settings of a job are saved for a server, chosen by name, shown as TOML, and deleted by their owner."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bot.queue import PauseKind
from bot.queue.store import preset_store
from tests.bot.cogs.conftest import World, answer, archive, world
from tests.bot.cogs.dataset_helpers import press
from trainer.protocol.presets import presets


async def saved(lab: World, **settings: object) -> None:
    """A job of Ana's with these settings, saved as the preset `ours`; nothing runs."""
    await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
    await lab.finetune(trigger="zkz", prompts="a fox", **settings)
    reply = answer(await lab.ana.slash(lab.channel, "preset save", id="1", name="Ours", summary="Soft *ink*."))
    assert "Preset **ours** is saved" in reply


async def test_a_saved_preset_brings_the_settings_and_not_what_belongs_to_the_images(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await saved(lab, preset="style", lr=3e-5, rank=8, epochs=7)
        (choice, *others) = await lab.ben.autocomplete(lab.channel, "finetune", "preset", "")
        assert choice == {"name": "ours · of this server · Soft *ink*.", "value": "ours"}
        assert [each["value"] for each in others] == list(presets())

        asked = {"dataset": archive(7), "preset": "ours", "confirm": False}
        await lab.ben.slash(lab.channel, "finetune", **asked)

        job, first = await lab.recent()
        assert job.spec.preset == "ours"
        assert job.spec.training == first.spec.training.model_copy(update={"trigger": ""})
        assert (job.spec.method, job.spec.objective, job.spec.base) == (
            first.spec.method,
            first.spec.objective,
            first.spec.base,
        )
        assert (job.spec.samples.prompts, job.name) == ((), "fox-2")


async def test_a_preset_with_class_images_asks_for_the_words(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
        settings = ("s.toml", b'trigger = "zkz"\nclass_prompt = "a fox"\nprior.images = 5')
        asked = {"dataset": archive(), "preset": "dreambooth", "settings": settings, "confirm": False}
        await lab.ana.slash(lab.channel, "finetune", **asked)
        await lab.ana.slash(lab.channel, "preset save", id="1", name="ours")
        result = await lab.finetune(preset="ours", dataset=archive(7))
        assert "The preset ours needs trigger" in answer(result)
        opened = await press(lab.ana, result.response.message, "Fix in form")
        typed = {"training.trigger": "sks", "prior.class_prompt": "a dog"}
        card = (await lab.ana.submit_modal(opened, typed)).response.message
        await press(lab.ana, card, "Start training")
        job = (await lab.recent())[0]
        assert (job.spec.prior.class_prompt, job.spec.prior.images, job.spec.training.trigger) == ("a dog", 5, "sks")


async def test_what_is_shown_of_a_preset_works_as_a_file(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await saved(lab, lr=3e-5, settings=("s.toml", b"lr = 3e-5\n[[stages]]\nepochs = 1"))
        shown = answer(await lab.ben.slash(lab.channel, "preset show", name="ours"))
        assert "Soft \\*ink\\*." in shown
        assert f"Saved by <@{lab.ana.id}>." in shown
        toml = shown.partition("```toml\n")[2].partition("\n```")[0]
        assert tomllib.loads(toml)["training"]["learning_rate"] == 3e-5
        await lab.ben.slash(
            lab.channel, "finetune", dataset=archive(7), settings=("s.toml", toml.encode()), confirm=False
        )
        job, first = await lab.recent()
        assert (job.spec.stages, job.spec.training.learning_rate) == (first.spec.stages, 3e-5)


async def test_every_built_in_preset_is_listed_for_its_audience(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await saved(lab)
        listed = answer(await lab.ana.slash(lab.channel, "preset list"))
        places = [listed.index(title) for title in ("Of this server", "For designers", "For experts", "For the demo")]
        assert places == sorted(places)
        assert all(f"`{name}`" in listed for name in ("ours", *presets()))
        shown = answer(await lab.ana.slash(lab.channel, "preset show", name="dreambooth"))
        assert "You give: trigger, class_prompt." in shown
        assert "There is no preset “x”" in answer(await lab.ana.slash(lab.channel, "preset show", name="x"))
        assert lab.env.errors


async def test_only_its_owner_or_a_manager_replaces_or_deletes_a_preset(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await saved(lab)
        for command, options in (("save", {"id": "1"}), ("delete", {})):
            refused = await lab.ben.slash(lab.channel, f"preset {command}", name="ours", **options)
            assert "There is a preset ours already" in answer(refused) or "Only <@" in answer(refused)
        for name in ("lora", "!!!"):
            refused = await lab.ana.slash(lab.channel, "preset save", id="1", name=name)
            assert "cannot be the name of a preset" in answer(refused)
        assert "is saved" in answer(await lab.ana.slash(lab.channel, "preset save", id="1", name="ours"))
        choices = await lab.ben.autocomplete(lab.channel, "preset delete", "name", "ou")
        assert [each["value"] for each in choices] == ["ours"]
        await lab.add_manager().slash(lab.channel, "preset delete", name="ours")
        refused = await lab.ana.slash(lab.channel, "preset delete", name="ours")
        assert "no saved preset ours" in answer(refused)
        assert lab.env.errors


async def test_a_request_keeps_the_settings_of_a_preset_that_is_deleted_meanwhile(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await saved(lab, rank=8)
        result = await lab.finetune(lab.ben, preset="ours", dataset=archive(7), confirm=True)
        await lab.ana.slash(lab.channel, "preset delete", name="ours")
        await press(lab.ben, result.response.message, "Start training")
        assert (await lab.recent())[0].spec.method.rank == 8


async def test_presets_of_other_servers_are_not_seen(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await saved(lab)
        elsewhere = lab.env.create_guild("Elsewhere")
        channel = elsewhere.create_text_channel("there")
        mallory = elsewhere.add_member(lab.env.create_user("mallory"))
        assert "ours" not in answer(await mallory.slash(channel, "preset list"))
        assert "There is no preset" in answer(await mallory.slash(channel, "preset show", name="ours"))
        assert "no saved preset" in answer(await mallory.slash(channel, "preset delete", name="ours"))
        assert "no job" in answer(await mallory.slash(channel, "preset save", id="1", name="stolen"))
        assert lab.env.errors


async def test_a_server_has_a_limited_number_of_presets(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset_store, "MAX_PRESETS", 1)
    async with world(data_dir) as lab:
        await saved(lab)
        refused = await lab.ana.slash(lab.channel, "preset save", id="1", name="another")
        assert "the most there can be" in answer(refused)
        assert "is saved" in answer(await lab.ana.slash(lab.channel, "preset save", id="1", name="ours"))
        assert lab.env.errors
