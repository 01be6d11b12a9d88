"""A request that waits is edited in forms; wrong values come back in one, and nothing that was typed is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.cogs.job_request import JobRequest
from bot.errors import DatasetInUse
from bot.queue import PauseKind
from tests.bot.cogs.conftest import (
    World,
    answer,
    archive,
    first_bot,
    next_bot,
    settings_file,
    text_of,
    with_settings_file,
    world,
)
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged, shown_again, upload_dataset


async def ask(lab: World, **options: Any) -> Any:
    """Ana's `/finetune`, with a confirmation; its card."""
    asked = with_settings_file({"dataset": archive(), "epochs": 2, **options})
    return (await lab.ana.slash(lab.channel, "finetune", **asked)).response.message


async def request_of(lab: World) -> JobRequest:
    """The only request that waits."""
    (row,) = await lab.app.db.all("SELECT request FROM draft")
    return JobRequest.model_validate_json(row["request"])


def fields(opened: Any) -> dict[str, Any]:
    """What stands in each field of a form."""
    found = {}
    for label in opened.modal["components"]:
        field = label["component"]
        chosen = [each["value"] for each in field.get("options", []) if each.get("default")]
        found[field["custom_id"]] = chosen[0] if chosen else field.get("value") or ""
    return found


async def test_a_wrong_value_comes_back_in_a_form_and_nothing_is_lost(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, name="Red Fox", prompts="a fox | a red fox", lr=0.5, rank=8)
        assert "lr 0.5 is too high for adamw; use 0.01 at most." in text_of(card)
        assert "**0.01**" in text_of(card)
        assert list(buttons(card)) == ["Fix in form", "All settings…", "Cancel"]
        assert await lab.recent() == []

        opened = await press(lab.ana, card, "Fix in form")
        assert fields(opened) == {"training.learning_rate": "0.5"}
        again = await lab.ana.submit_modal(opened, {"training.learning_rate": "fast"})
        assert "lr “fast” is not a number" in text_of(again.response.message)
        opened = await press(lab.ana, again.response.message, "Fix in form")
        assert fields(opened) == {"training.learning_rate": "fast"}
        fixed = (await lab.ana.submit_modal(opened, {"training.learning_rate": "0.0003"})).response.message
        await press(lab.ana, fixed, "Start training")

        (job,) = await lab.recent()
        assert (job.spec.training.learning_rate, job.spec.method.rank, job.name) == (0.0003, 8, "red-fox")
        assert job.spec.samples.prompts == ("a fox", "a red fox")


async def test_a_preset_asks_for_the_words_that_it_needs(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, preset="dreambooth")
        assert "The preset dreambooth needs trigger" in text_of(card)
        opened = await press(lab.ana, card, "Fix in form")
        assert fields(opened) == {"training.trigger": "", "prior.class_prompt": ""}
        typed = {"training.trigger": "zkz", "prior.class_prompt": "a photo of a fox"}
        card = (await lab.ana.submit_modal(opened, typed)).response.message
        await press(lab.ana, card, "Start training")
        (job,) = await lab.recent()
        assert (job.spec.training.trigger, job.spec.prior.class_prompt) == ("zkz", "a photo of a fox")


async def test_wrong_settings_are_asked_for_also_without_a_confirmation(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        result = await lab.finetune(preset="lorra", base="sd9")
        assert "There is no preset" in answer(result)
        opened = await press(lab.ana, result.response.message, "Fix in form")
        result = await lab.ana.submit_modal(opened, {"preset": ["lora"]})
        assert "There is no base model “sd9” here" in answer(result)
        opened = await press(lab.ana, result.response.message, "Fix in form")
        result = await lab.ana.submit_modal(opened, {"base": ["tiny"]})
        assert "Start training" in buttons(result.response.message)


async def test_without_a_real_base_the_toy_model_is_not_taken_silently(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        config = lab.app.services.config
        models = config.models.model_copy(update={"default": ""})
        object.__setattr__(lab.app.services, "config", config.model_copy(update={"models": models}))
        result = await lab.finetune()
        assert "No real base model is set up here yet" in answer(result)
        assert "`/admin models`" in answer(result).replace("\\", "")
        assert await lab.recent() == []
        await lab.finetune(base="tiny")
        assert len(await lab.recent()) == 1


async def test_every_setting_can_be_given_in_a_toml_file(data_dir: Path) -> None:
    toml = b"""
preset = "style"
name = "From file"
lr = 3e-4
prompts = ["a fox"]
objective.snr_gamma = 3.0
[training]
epochs = 4
max_steps = 100
[[stages]]
epochs = 1
[[stages]]
epochs = 3
learning_rate = 1e-5
"""
    async with world(data_dir) as lab:
        asked = {"dataset": archive(), "settings": ("all.TOML", toml), "confirm": False}
        await lab.ana.slash(lab.channel, "finetune", **asked)
        (job,) = await lab.recent()
        spec = job.spec
        assert (spec.preset, spec.name, spec.training.learning_rate, spec.objective.snr_gamma) == (
            "style",
            "from-file",
            3e-4,
            3.0,
        )
        assert [stage.epochs for stage in spec.stages] == [1, 3]
        assert (spec.training.max_steps, spec.samples.prompts) == (100, ("a fox",))


async def test_an_option_counts_more_than_the_file(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.finetune(epochs=3, settings=settings_file(epochs=5, rank=8))
        (job,) = await lab.recent()
        assert (job.spec.training.epochs, job.spec.method.rank) == (3, 8)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (("settings.toml", b"lr = = 3"), "is not valid TOML"),
        (("settings.zip", b"lr = 3"), "takes a .toml file"),
        (("settings.toml", b"#" * 70_000), "takes a .toml file"),
        (("settings.toml", b"\xff\xfe"), "is not valid TOML"),
    ],
)
async def test_a_file_that_is_no_settings_is_refused(data_dir: Path, file: tuple[str, bytes], sentence: str) -> None:
    async with world(data_dir) as lab:
        result = await lab.finetune(settings=file)
        assert sentence in answer(result).replace("\\", "")
        assert await lab.recent() == []
        assert lab.env.errors


@pytest.mark.parametrize(
    "line", ['base.source = "/etc"', 'base.vae = "x/y"', 'method.start_from = "/etc"', 'dataset = "/etc"']
)
async def test_members_name_no_files_of_the_machine(data_dir: Path, line: str) -> None:
    async with world(data_dir) as lab:
        result = await lab.finetune(settings=("settings.toml", line.encode()))
        assert "cannot be set from Discord" in answer(result)
        opened = await press(lab.ana, result.response.message, "Fix in form")
        again = await lab.ana.submit_modal(opened, {line.partition(" ")[0]: "/root"})
        assert "cannot be set from Discord" in answer(again)
        assert await lab.recent() == []


async def test_a_misspelled_setting_is_corrected_with_its_value(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, settings=("s.toml", b"training.learning_rat = 3e-4"))
        assert "did you mean" in text_of(card)
        opened = await press(lab.ana, card, "Fix in form")
        assert fields(opened) == {"training.learning_rate": "0.0003"}
        await lab.ana.submit_modal(opened, {"training.learning_rate": "0.0003"})
        assert (await request_of(lab)).overrides == {"training.epochs": 2, "training.learning_rate": 0.0003}


async def test_the_pages_of_settings_lead_back_to_the_request(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        pages = (await press(lab.ana, card, "Advanced")).response.message
        opened = await press(lab.ana, pages, "Size")
        typed = {"method.rank": "32", "method.targets": ["all"], "method.text_encoder": ["true"]}
        pages = (await lab.ana.submit_modal(opened, typed)).response.message
        assert "rank" in text_of(pages)
        opened = await press(lab.ana, pages, "Size")
        assert fields(opened)["method.rank"] == "32"
        assert fields(opened)["method.targets"] == "all"
        pages = (await lab.ana.submit_modal(opened, {"method.rank": "", "method.targets": ["all"]})).response.message
        card = (await press(lab.ana, pages, "Back")).response.message
        await press(lab.ana, card, "Start training")
        (job,) = await lab.recent()
        assert (job.spec.method.rank, job.spec.method.targets) == (16, "all")


async def test_other_settings_are_typed_as_toml_and_a_broken_line_is_not_forgotten(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        pages = (await press(lab.ana, card, "Advanced")).response.message
        opened = await press(lab.ana, pages, "More datasets")
        refused = await lab.ana.submit_modal(opened, {"mix": "cats", "settings": "objective.snr_gamma = = 5"})
        assert "is not valid TOML" in answer(refused)
        # Only who typed it gets it back.
        key = buttons(refused.followups[-1])["Fix in form"]
        assert "no longer have what you typed" in await press_forged(lab, key, lab.ben)
        assert "no longer have what you typed" in await press_forged(lab, "form:99")
        again = await press(lab.ana, refused.followups[-1], "Fix in form")
        assert fields(again) == {"mix": "cats", "settings": "objective.snr_gamma = = 5"}
        await lab.ana.submit_modal(again, {"mix": "", "settings": "objective.snr_gamma = 5\nlr = 1e-5"})
        assert (await request_of(lab)).overrides == {
            "training.epochs": 2,
            "objective.snr_gamma": 5,
            "training.learning_rate": 1e-5,
        }


async def test_datasets_are_mixed_by_their_names_and_cannot_be_deleted_meanwhile(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
        await upload_dataset(lab, ("cats.zip", archive(7)[1]))
        await upload_dataset(lab, ("people.zip", archive(8)[1]))
        card = await ask(lab)
        pages = (await press(lab.ana, card, "Advanced")).response.message
        opened = await press(lab.ana, pages, "More datasets")
        pages = (await lab.ana.submit_modal(opened, {"mix": "cats weight=0.3\ndogs"})).response.message
        card = (await press(lab.ana, pages, "Back")).response.message
        assert "There is no dataset dogs here to mix in" in text_of(card)
        opened = await press(lab.ana, card, "Fix in form")
        assert fields(opened) == {"mix": "cats weight=0.3\ndogs"}
        card = (await lab.ana.submit_modal(opened, {"mix": "cats weight=0.3\nfox"})).response.message
        assert "fox would be mixed with itself" in text_of(card)
        opened = await press(lab.ana, card, "Fix in form")
        typed = {"mix": "cats weight=0.3\npeople regularization"}
        card = (await lab.ana.submit_modal(opened, typed)).response.message
        await press(lab.ana, card, "Start training")

        (job,) = await lab.recent()
        guild_id = lab.channel.guild.id
        cats, people = [await lab.app.services.datasets.named(guild_id, name) for name in ("cats", "people")]
        assert [(part.dataset, part.weight, part.role) for part in job.spec.mix] == [
            (str(cats.folder), 0.3, "train"),
            (str(people.folder), None, "regularization"),
        ]
        with pytest.raises(DatasetInUse):
            await lab.app.services.datasets.delete(people.id)


async def test_a_dataset_of_another_server_is_not_mixed_in(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        elsewhere = lab.env.create_guild("Elsewhere")
        channel = elsewhere.create_text_channel("there")
        mallory = elsewhere.add_member(lab.env.create_user("mallory"))
        await upload_dataset(lab, ("cats.zip", archive(7)[1]))
        result = await mallory.slash(
            channel, "finetune", dataset=archive(), settings=("s.toml", b'mix = [{dataset = "cats"}]'), confirm=False
        )
        assert "There is no dataset cats here" in answer(result)


async def test_fine_tune_with_this_asks_for_a_preset_and_shows_the_request(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await upload_dataset(lab, archive())
        opened = await lab.ana.click(card, custom_id="ds:1:train")
        assert set(fields(opened)) == {"preset", "base", "name", "training.trigger", "prior.class_prompt"}
        result = await lab.ana.submit_modal(opened, {"preset": ["style"], "training.trigger": "zkz"})
        await press(lab.ana, result.response.message, "Start training")
        (job,) = await lab.recent()
        assert (job.spec.preset, job.spec.training.trigger, job.name) == ("style", "zkz", "fox")


async def test_a_form_of_a_request_that_is_queued_meanwhile_changes_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        opened = await press(lab.ana, card, "Edit")
        await press(lab.ana, card, "Start training")
        refused = await lab.ana.submit_modal(opened, {"training.epochs": "9"})
        assert "already queued" in answer(refused)
        (job,) = await lab.recent()
        assert job.spec.training.epochs == 2


@pytest.mark.slow
async def test_a_wrong_request_waits_through_a_restart(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        card = await ask(lab, lr=0.5)
    async with next_bot(lab, data_dir):
        opened = await press(lab.ana, shown_again(lab, card), "Fix in form")
        assert fields(opened) == {"training.learning_rate": "0.5"}
        fixed = await lab.ana.submit_modal(opened, {"training.learning_rate": "1e-4"})
        await press(lab.ana, fixed.response.message, "Start training")
        assert len(await lab.recent()) == 1
