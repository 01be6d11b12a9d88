"""`/dataset` and the message menu: handing in, looking, growing, rules, deleting; who may, and what is said if not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import discord
import pytest

from tests.bot.cogs.conftest import PNG, World, answer, archive, texts, world
from tests.bot.cogs.room import StrayPress, buttons, hand_in, press


async def names(lab: World) -> list[str]:
    return [each.name for each in await lab.app.services.datasets.search(lab.channel.guild.id)]


async def upload(lab: World, actor: Any, files: list[tuple[str, bytes]], **typed: str) -> Any:
    shown = await actor.slash(lab.channel, "dataset upload")
    return await actor.submit_modal(shown, {"files": files, **typed})


def loose(count: int = 6) -> list[tuple[str, bytes]]:
    return [(f"{n}.png", PNG + bytes([n])) for n in range(count)]


# -- handing in ----------------------------------------------------------------------------------------------------


async def test_an_upload_is_answered_with_its_report_card(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await hand_in(lab)
        text = "\n".join(texts(card.components))
        assert "🖼️ fox · 7 pictures" in text
        assert "Dropped: 1 near duplicate\nTo look at: 1 blur" in text
        assert "Split: 5 train / 1 validation / 1 test" in text
        assert "Captions: 7 of 7" in text
        assert set(buttons(card)) == {"▶️", "Review 2 findings", "Download report"}
        assert card.flags.ephemeral
        assert lab.channel.history() == []


async def test_two_pictures_and_their_captions_come_as_separate_files(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        files = [*loose(6), ("0.txt", b"a red fox"), ("1.txt", b"a grey fox")]
        await upload(lab, lab.ana, files, name="My Foxes", trigger="ohwx")
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "my-foxes")
        report = await lab.app.services.datasets.report(dataset)
        assert [image.caption for image in report.images[:3]] == [
            "ohwx, a red fox",
            "ohwx, a grey fox",
            "ohwx, a fox",
        ]
        assert dataset.edits.rules.trigger == "ohwx"


async def test_captions_are_written_by_a_model_where_one_is_configured_and_wished_for(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        shown = await lab.ana.slash(lab.channel, "dataset upload")
        assert [part["label"] for part in shown.modal["components"]] == [
            "Pictures, archives, captions",
            "Name",
            "Trigger word",
        ]
        captions = lab.app.services.config.captions.model_copy(update={"model": "blip"})
        object.__setattr__(lab.app.services.config, "captions", captions)
        files = [*loose(5), ("bare.png", PNG + b"bare")]
        result = await upload(lab, lab.ana, files, captions="write")
        assert "Captions: 6 of 6\n1 caption by a model, not looked at yet" in answer(result)
        kept = await upload(lab, lab.ana, [*loose(5), ("bare-2.png", PNG + b"bare2")], captions="keep")
        assert "Captions: 5 of 6" in answer(kept)


HOSTILE: list[tuple[list[tuple[str, bytes]], str]] = [
    ([("notes.zip", b"no zip at all")], "notes.zip is not a zip archive"),
    ([("a.txt", b"?"), ("b.txt", b"?")], "holds no pictures"),
    (loose(3), "Only 3 usable images"),
    ([("../../etc/x.png", b"")], "0 bytes"),
]


@pytest.mark.parametrize(("files", "sentence"), HOSTILE, ids=[sentence for _, sentence in HOSTILE])
async def test_a_bad_upload_gets_one_sentence_and_leaves_no_dataset(
    data_dir: Path, files: list[tuple[str, bytes]], sentence: str
) -> None:
    async with world(data_dir) as lab:
        told = answer(await upload(lab, lab.ana, files))
        assert sentence in told
        assert "Traceback" not in told
        assert await names(lab) == []


async def test_what_is_known_is_said_and_a_stranger_changes_nothing_by_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload(lab, lab.ana, loose(), name="foxes")
        told = answer(await upload(lab, lab.ben, loose(), name="mine"))
        assert "These files were here already, as foxes." in told
        refused = answer(await upload(lab, lab.ben, loose(), trigger="bens"))
        assert f"Only <@{lab.ana.id}> or somebody who may manage the server can change the dataset `foxes`" in refused
        assert await names(lab) == ["foxes"]
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "foxes")
        assert dataset.edits.rules.trigger == ""


async def test_a_messages_attachments_become_a_dataset_of_who_asks(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        message = await lab.ben.send(
            lab.channel, "look", attachments=[archive(), ("notes.exe", b"MZ"), ("0.txt", b"x")]
        )
        result = await lab.ana.context_menu(lab.channel, "Use attachments as dataset", message)
        assert "🖼️ fox · 6 pictures" in answer(result)
        assert result.response.ephemeral
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "fox")
        assert dataset.owner_id == lab.ana.id
        assert sorted(path.name for path in dataset.source.iterdir()) == ["0.txt", "fox.zip"]


async def test_a_message_without_pictures_is_refused_in_words(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        for files in ([], [("notes.txt", b"x")]):
            message = await lab.ben.send(lab.channel, "look", attachments=files)
            told = answer(await lab.ana.context_menu(lab.channel, "Use attachments as dataset", message))
            assert "no pictures and no archives attached" in told
        assert lab.env.errors


# -- looking -------------------------------------------------------------------------------------------------------


async def test_contact_sheets_are_turned_and_the_report_is_handed_out(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        result = await lab.ben.slash(lab.channel, "dataset inspect", dataset="fox")
        card = result.response.message
        assert [file.filename for file in card.attachments] == ["fox-prepared-1.png"]
        turned = await press(lab.ben, card, "▶️")
        second = turned.response.message
        assert [file.filename for file in second.attachments] == ["fox-prepared-2.png"]
        assert set(buttons(second)) == {"◀️", "Review 2 findings", "Download report"}
        report = await press(lab.ben, second, "Download report")
        assert [file.filename for file in report.response.attachments] == ["fox-report.zip"]
        packed = zipfile.ZipFile(io.BytesIO(await report.response.attachments[0].read()))
        thumbnails = [f"thumbnails/{number}.png" for number in range(1, 9)]
        assert set(packed.namelist()) == {
            "report.html",
            "report.json",
            "sheets/kept.png",
            "sheets/dropped.png",
            *thumbnails,
        }
        assert list((data_dir / "incoming").iterdir()) == []


async def test_the_list_has_pages_newest_first(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        assert "No datasets yet" in answer(await lab.ana.slash(lab.channel, "dataset list"))
        for number in range(12):
            await hand_in(lab, (f"set{number}.zip", archive(6 + number)[1]))
        first = await lab.ben.slash(lab.channel, "dataset list")
        text = answer(first)
        assert text.index("set11") < text.index("set2")
        assert "set1**" not in text
        assert f"17 pictures, 17 captioned · 1.6 KiB · <@{lab.ana.id}>" in text
        assert "page 1 of 2" in text
        second = await press(lab.ben, first.response.message, "▶️")
        assert "set1**" in answer(second)
        assert "set11" not in answer(second)


async def test_datasets_are_offered_while_somebody_types(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        for command in ("inspect", "review", "captions", "delete"):
            choices = await lab.ben.autocomplete(lab.channel, f"dataset {command}", "dataset", "fo")
            assert choices == [{"name": "fox · 7 images", "value": "fox"}]
        told = answer(await lab.ben.slash(lab.channel, "dataset inspect", dataset="owl"))
        assert "There is no dataset 'owl' here" in told
        assert lab.env.errors


# -- changing ------------------------------------------------------------------------------------------------------


async def test_files_are_added_and_counted(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        result = await lab.ana.slash(
            lab.channel, "dataset add", dataset="fox", file=("a.png", PNG + b"a"), file2=("a.txt", b"a new fox")
        )
        assert "1 picture more to train on; those that were there keep" in answer(result)
        assert "🖼️ fox · 8 pictures" in answer(result)
        again = await lab.ana.slash(lab.channel, "dataset add", dataset="fox", file=("a.png", PNG + b"a"))
        assert "a.png is in this dataset already" in answer(again)
        stranger = await lab.ben.slash(lab.channel, "dataset add", dataset="fox", file=("b.png", PNG + b"b"))
        assert "can add to the dataset `fox`" in answer(stranger)
        assert lab.env.errors


async def test_rules_for_captions_are_typed_into_a_form_that_knows_the_last_ones(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        shown = await lab.ana.slash(lab.channel, "dataset captions", dataset="fox")
        typed = {"trigger": "ohwx", "strip": "blurry, masterpiece", "replace": "dog => fox\n\ncat =>"}
        await lab.ana.submit_modal(shown, typed)
        rules = (await lab.app.services.datasets.named(lab.channel.guild.id, "fox")).edits.rules
        assert (rules.trigger, rules.strip) == ("ohwx", ("blurry", "masterpiece"))
        assert [(each.old, each.new) for each in rules.replace] == [("dog", "fox"), ("cat", "")]

        again = await lab.ana.slash(lab.channel, "dataset captions", dataset="fox")
        known = {part["component"]["custom_id"]: part["component"].get("value") for part in again.modal["components"]}
        assert known["trigger"] == "ohwx"
        assert known["strip"] == "blurry, masterpiece"
        assert known["replace"] == "dog => fox\ncat =>"
        refused = answer(await lab.ana.submit_modal(again, {"replace": "no arrow here"}))
        assert "'no arrow here' is no replacement; write it as: old =" in refused
        stranger = await lab.ben.slash(lab.channel, "dataset captions", dataset="fox")
        assert "can change the dataset `fox`" in answer(stranger)
        assert lab.env.errors


# -- deleting ------------------------------------------------------------------------------------------------------


async def test_a_dataset_is_deleted_by_its_owner_after_a_question(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await hand_in(lab)
        question = await lab.ana.slash(lab.channel, "dataset delete", dataset="fox")
        kept = await press(lab.ana, question.response.message, "Keep it")
        assert "fox** is kept" in answer(kept)
        question = await lab.ana.slash(lab.channel, "dataset delete", dataset="fox")
        message = question.response.message
        ids = buttons(message)
        assert "is deleted; its name is free" in answer(await lab.ana.click(message, custom_id=ids["Delete"]))
        assert await names(lab) == []
        for label in ("Review 2 findings", "Download report", "▶️"):
            told = await press(lab.ana, card, label)
            assert "There is no dataset" in answer(told), label


async def test_a_stranger_deletes_nothing_and_who_manages_the_server_may(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        told = answer(await lab.ben.slash(lab.channel, "dataset delete", dataset="fox"))
        assert f"Only <@{lab.ana.id}> or somebody who may manage the server can delete the dataset `fox`" in told
        client: Any = lab.env.bot
        stray = StrayPress(lab, lab.ben)
        client.dispatch("dataset_button", stray, 1, "delete", "")
        await lab.until(lambda: bool(stray.told))
        assert f"Only <@{lab.ana.id}> or somebody who may manage the server can delete" in stray.told[0]
        assert await names(lab) == ["fox"]
        lead = lab.channel.guild.create_role("lead", permissions=discord.Permissions(manage_guild=True))
        boss = lab.channel.guild.add_member(lab.env.create_user("boss"), roles=[lead])
        question = await boss.slash(lab.channel, "dataset delete", dataset="fox")
        await press(boss, question.response.message, "Delete")
        assert await names(lab) == []
        assert lab.env.errors


async def test_a_dataset_that_a_training_needs_is_not_deleted(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        await lab.ana.slash(lab.channel, "finetune", dataset=archive(), epochs=2, confirm=False)
        question = await lab.ana.slash(lab.channel, "dataset delete", dataset="fox")
        told = await press(lab.ana, question.response.message, "Delete")
        assert "fox is needed by #1 fox, which has not ended" in answer(told)
        assert await names(lab) == ["fox"]


async def test_a_question_outlives_a_restart(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        question = await lab.ana.slash(lab.channel, "dataset delete", dataset="fox")
        await lab.env.restart_bot(lab.app.new_client())
        await press(lab.ana, question.response.message, "Delete")
        assert await names(lab) == []


async def test_a_dataset_of_another_server_is_not_there(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        other = lab.env.create_guild("Other")
        channel = other.create_text_channel("lab")
        eve = other.add_member(lab.env.create_user("eve"))
        assert "There is no dataset 'fox'" in answer(await eve.slash(channel, "dataset inspect", dataset="fox"))
        assert lab.env.errors
