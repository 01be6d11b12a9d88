"""`/dataset` and the message menu: upload, look, add, caption rules, delete; and who may do it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bot.cogs import attachments
from bot.datasets import prepare_runner
from bot.queue import PauseKind, RoleLimit
from bot.ui.upload_posts import progress_words
from tests.bot.cogs.conftest import PNG, World, answer, archive, text_of, world
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged, shown_again, upload_dataset
from trainer.exchange.dataset_dir import SHARED_PAGE
from trainer.protocol.edits import Layout
from trainer.protocol.progress import PrepareProgress


async def names(lab: World) -> list[str]:
    return [each.name for each in await lab.app.services.datasets.search(lab.channel.guild.id)]


async def upload(lab: World, actor: Any, files: list[tuple[str, bytes]], **typed: str) -> Any:
    shown = await actor.slash(lab.channel, "dataset upload")
    return await actor.submit_modal(shown, {"files": files, **typed})


def loose(count: int = 6) -> list[tuple[str, bytes]]:
    return [(f"{n}.png", PNG + bytes([n])) for n in range(count)]


# -- upload --------------------------------------------------------------------------------------------------------


async def test_an_upload_is_answered_with_its_report_card(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await upload_dataset(lab)
        text = text_of(card)
        assert "🖼️ fox · 7 images" in text
        assert "**1 image needs a decision**: 1 perhaps blurred" in text
        own = {"Captions", "Report", "Who sees it…"}
        assert set(buttons(card)) == {"▶️", "Fine-tune with this", "Review 1 image", *own}
        assert card.flags.ephemeral
        assert lab.channel.history() == []


async def test_images_and_their_captions_may_be_separate_files(data_dir: Path) -> None:
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


async def test_the_folders_of_an_upload_may_be_read_plainly_also_afterwards(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload(lab, lab.ana, loose(6), name="foxes")
        shown = await lab.ana.slash(lab.channel, "dataset upload", folders="plain")
        await lab.ana.submit_modal(shown, {"files": loose(6)})
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "foxes")
        assert dataset.edits.layout is Layout.PLAIN
        assert not dataset.is_pending


async def test_the_column_of_the_captions_may_be_chosen(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload(lab, lab.ana, loose(6), name="foxes", caption_column=" deutsch ", trigger="ohwx")
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "foxes")
        assert (dataset.edits.caption_column, dataset.edits.rules.trigger) == ("deutsch", "ohwx")
        assert not dataset.is_pending


async def test_a_configured_model_writes_captions_on_request(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        shown = await lab.ana.slash(lab.channel, "dataset upload")
        assert [part["label"] for part in shown.modal["components"]] == [
            "Images, archives, captions",
            "Name",
            "Trigger word",
            "Caption column",
        ]
        captions = lab.app.services.config.captions.model_copy(update={"model": "blip"})
        object.__setattr__(lab.app.services.config, "captions", captions)
        files = [*loose(5), ("bare.png", PNG + b"bare")]
        result = await upload(lab, lab.ana, files, captions="write")
        assert "1 caption by a model" in answer(result)
        report = (await lab.app.services.datasets.search(lab.channel.guild.id))[0].counts
        assert (report.captioned, report.automatic) == (6, 1)
        await upload(lab, lab.ana, [*loose(5), ("bare-2.png", PNG + b"bare2")], name="kept", captions="keep")
        kept = await lab.app.services.datasets.named(lab.channel.guild.id, "kept")
        assert (kept.counts.captioned, kept.counts.automatic) == (5, 0)


HOSTILE: list[tuple[list[tuple[str, bytes]], str]] = [
    ([("notes.zip", b"no zip at all")], "notes.zip is not a zip archive"),
    ([("a.txt", b"?"), ("b.txt", b"?")], "no images"),
    (loose(3), "Only 3 usable images"),
    ([("../../etc/x.png", b"")], "0 bytes"),
]


@pytest.mark.parametrize(("files", "sentence"), HOSTILE, ids=[sentence for _, sentence in HOSTILE])
async def test_a_refused_upload_leaves_no_dataset(
    data_dir: Path, files: list[tuple[str, bytes]], sentence: str
) -> None:
    async with world(data_dir) as lab:
        reply = answer(await upload(lab, lab.ana, files))
        assert sentence in reply
        assert "Traceback" not in reply
        assert await names(lab) == []


async def test_known_files_are_recognized_and_not_changed_by_another_member(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload(lab, lab.ana, loose(), name="foxes")
        reply = answer(await upload(lab, lab.ben, loose(), name="mine"))
        assert "These files were uploaded before, as foxes." in reply
        refused = answer(await upload(lab, lab.ben, loose(), trigger="bens"))
        assert f"Only <@{lab.ana.id}> or a manager of the server can do this with the dataset `foxes`" in refused
        assert await names(lab) == ["foxes"]
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "foxes")
        assert dataset.edits.rules.trigger == ""


async def test_the_attachments_of_a_message_become_a_dataset_of_the_member_who_asks(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        message = await lab.ben.send(
            lab.channel, "look", attachments=[archive(), ("notes.exe", b"MZ"), ("0.txt", b"x")]
        )
        result = await lab.ana.context_menu(lab.channel, "Use attachments as dataset", message)
        assert "🖼️ fox · 6 images" in answer(result)
        assert result.response.ephemeral
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "fox")
        assert dataset.owner_id == lab.ana.id
        assert sorted(path.name for path in dataset.source.iterdir()) == ["0.txt", "fox.zip"]


async def test_a_message_without_images_is_refused(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        for files in ([], [("notes.txt", b"x")]):
            message = await lab.ben.send(lab.channel, "look", attachments=files)
            reply = answer(await lab.ana.context_menu(lab.channel, "Use attachments as dataset", message))
            assert "no images and no archives attached" in reply
        assert lab.env.errors


# -- look ----------------------------------------------------------------------------------------------------------


async def test_contact_sheets_are_turned_and_the_report_is_sent(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        result = await lab.ben.slash(lab.channel, "dataset inspect", dataset="fox")
        card = result.response.message
        assert [file.filename for file in card.attachments] == ["fox-prepared-1.png"]
        turned = await press(lab.ben, card, "▶️")
        second = turned.response.message
        assert [file.filename for file in second.attachments] == ["fox-prepared-2.png"]
        assert set(buttons(second)) == {"◀️", "Fine-tune with this", "What was found", "Report"}
        report = await press(lab.ben, second, "Report")
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
        # One page that opens on a phone too is better than an archive.
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "fox")
        (dataset.folder / SHARED_PAGE).write_text("<p>7 images</p>")
        report = await press(lab.ben, second, "Report")
        assert [file.filename for file in report.response.attachments] == ["fox-report.html"]


@pytest.mark.slow
async def test_the_list_has_pages_newest_first(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        assert "No datasets yet" in answer(await lab.ana.slash(lab.channel, "dataset list"))
        for number in range(12):
            await upload_dataset(lab, (f"set{number}.zip", archive(6 + number)[1]))
        first = await lab.ben.slash(lab.channel, "dataset list")
        text = answer(first)
        assert text.index("set11") < text.index("set2")
        assert "set1**" not in text
        assert f"17 images, 17 captioned · 1.6 KiB · <@{lab.ana.id}>" in text
        assert "page 1 of 2" in text
        second = await press(lab.ben, first.response.message, "▶️")
        assert "set1**" in answer(second)
        assert "set11" not in answer(second)


async def test_datasets_are_offered_while_a_member_types(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        for command in ("inspect", "review", "captions", "delete"):
            choices = await lab.ben.autocomplete(lab.channel, f"dataset {command}", "dataset", "fo")
            assert choices == [{"name": "fox · 7 images", "value": "fox"}]
        reply = answer(await lab.ben.slash(lab.channel, "dataset inspect", dataset="owl"))
        assert "There is no dataset" in reply
        assert lab.env.errors


# -- change --------------------------------------------------------------------------------------------------------


async def test_files_are_added_by_the_owner(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        result = await lab.ana.slash(
            lab.channel, "dataset add", dataset="fox", file=("a.png", PNG + b"a"), file2=("a.txt", b"a new fox")
        )
        assert "1 more image to train on" in answer(result)
        assert "🖼️ fox · 8 images" in answer(result)
        again = await lab.ana.slash(lab.channel, "dataset add", dataset="fox", file=("a.png", PNG + b"a"))
        assert "a.png is in this dataset already" in answer(again)
        other = await lab.ben.slash(lab.channel, "dataset add", dataset="fox", file=("b.png", PNG + b"b"))
        assert "can do this with the dataset `fox`" in answer(other)
        assert lab.env.errors


async def test_the_form_for_caption_rules_shows_the_current_ones(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
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
        assert "Write one per line as: old =" in refused
        other = await lab.ben.slash(lab.channel, "dataset captions", dataset="fox")
        assert "can do this with the dataset `fox`" in answer(other)
        assert lab.env.errors


async def test_a_model_writes_the_missing_captions_in_one_press(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(data_dir) as lab:
        files = [*loose(5), ("bare.png", PNG + b"bare")]
        card = (await upload(lab, lab.ana, files, name="fox")).response.message
        overview = (await press(lab.ana, card, "Captions")).response.message
        assert "1 of 6 images has no caption" in text_of(overview)
        # No model is set up.
        assert set(buttons(overview)) == {"One by one", "Change all at once"}
        forged = await press_forged(lab, "ds:1:write", user=lab.ben)
        assert "can do this with the dataset `fox`" in forged

        captions = lab.app.services.config.captions.model_copy(update={"model": "blip"})
        object.__setattr__(lab.app.services.config, "captions", captions)
        overview = (await press(lab.ana, card, "Captions")).response.message
        written = await press(lab.ana, overview, "Let a model write 1")

        assert "1 caption was written. Read it before you train" in answer(written)
        assert "1 caption by a model" in answer(written)


async def test_captions_are_written_image_by_image_and_those_without_one_come_first(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        files = [*loose(5), ("bare.png", PNG + b"bare")]
        card = (await upload(lab, lab.ana, files, name="fox")).response.message
        overview = (await press(lab.ana, card, "Captions")).response.message
        page = (await press(lab.ana, overview, "One by one")).response.message
        assert "Captions of fox · 6 of 6" in text_of(page)
        assert "1 image has no caption" in text_of(page)
        page = (await press(lab.ana, page, "◀️")).response.message
        assert "Captions of fox · 5 of 6" in text_of(page)
        form = await press(lab.ana, page, "Write caption")
        assert form.modal["components"][0]["component"]["value"] == "a fox"

        await lab.ana.submit_modal(form, {"caption": "a fox in snow"})

        # The next image follows, and so on to the last.
        page = shown_again(lab, page)
        assert "has its new caption" in text_of(page)
        assert "6 of 6" in text_of(page)
        form = await press(lab.ana, page, "Write caption")
        await lab.ana.submit_modal(form, {"caption": "a bare fox"})
        await press(lab.ana, shown_again(lab, page), "Done")
        report = await lab.app.services.datasets.report(
            await lab.app.services.datasets.named(lab.channel.guild.id, "fox")
        )
        assert [image.caption for image in report.images[4:]] == ["a fox in snow", "a bare fox"]


def recorded_progress(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of progress that are shown from now on."""
    shown: list[str] = []
    monkeypatch.setattr(prepare_runner, "PROGRESS_EVERY_S", 0.02)

    def recorded(title: str, progress: PrepareProgress) -> str:
        shown.append(progress_words(title, progress))
        return shown[-1]

    monkeypatch.setattr(attachments, "progress_words", recorded)
    return shown


async def test_an_upload_shows_how_far_it_has_come_and_then_its_card(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = recorded_progress(monkeypatch)
    async with world(data_dir, FAKE_PREPARE_S="1") as lab:
        card = await upload_dataset(lab)

        assert shown == ["⏳ **fox.zip** · reading the images: 2 of 6"]
        # The same message, and not one more.
        assert "🖼️ fox · 7 images" in text_of(shown_again(lab, card))
        assert len([each for each in lab.channel.history(viewer=lab.ana) if each.flags.ephemeral]) == 1


async def test_decisions_that_are_applied_show_how_far_they_have_come(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = recorded_progress(monkeypatch)
    async with world(data_dir, FAKE_PREPARE_S="0.5") as lab:
        await upload_dataset(lab)
        step = "⏳ **fox** · reading the images: 2 of 6"
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        await press(lab.ana, page, "Drop")
        shown.clear()
        await press(lab.ana, page, "Done")
        assert shown == [step]
        assert "🖼️ fox · 6 images" in text_of(shown_again(lab, page))

        # [Start training] applies what is decided; where it is refused, the card and its buttons are there again.
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        card = (await lab.finetune(from_dataset="fox", confirm=True, epochs=1)).response.message
        before = list(buttons(card))
        await press(lab.ana, page, "Keep")
        await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
        guild_id = lab.channel.guild.id
        await lab.app.services.limits.set(guild_id, RoleLimit(role_id=guild_id, max_waiting=1), by=1)
        await lab.finetune(dataset=archive(9), epochs=3)
        shown.clear()
        refused = await press(lab.ana, card, "Start training")
        assert "1 of 1" in text_of(refused.followups[-1])
        assert shown == [step]
        assert list(buttons(shown_again(lab, card))) == before


# -- delete --------------------------------------------------------------------------------------------------------


async def test_a_dataset_is_deleted_by_its_owner_after_a_confirmation(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await upload_dataset(lab)
        question = await lab.ana.slash(lab.channel, "dataset delete", dataset="fox")
        kept = await press(lab.ana, question.response.message, "Keep it")
        assert "fox** is kept" in answer(kept)
        question = await lab.ana.slash(lab.channel, "dataset delete", dataset="fox")
        message = question.response.message
        ids = buttons(message)
        assert "is deleted; its name is free" in answer(await lab.ana.click(message, custom_id=ids["Delete"]))
        assert await names(lab) == []
        for label in ("Review 1 image", "Report", "Captions", "▶️"):
            reply = await press(lab.ana, card, label)
            assert "There is no dataset" in answer(reply), label


async def test_a_manager_may_delete_a_dataset_and_another_member_may_not(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        reply = answer(await lab.ben.slash(lab.channel, "dataset delete", dataset="fox"))
        assert f"Only <@{lab.ana.id}> or a manager of the server can do this with the dataset `fox`" in reply
        reply = await press_forged(lab, "ds:1:delete", user=lab.ben)
        assert f"Only <@{lab.ana.id}> or a manager of the server can do this" in reply
        assert await names(lab) == ["fox"]
        manager = lab.add_manager()
        question = await manager.slash(lab.channel, "dataset delete", dataset="fox")
        await press(manager, question.response.message, "Delete")
        assert await names(lab) == []
        assert lab.env.errors


async def test_a_dataset_in_use_is_not_deleted(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        await lab.finetune(epochs=2)
        question = await lab.ana.slash(lab.channel, "dataset delete", dataset="fox")
        reply = await press(lab.ana, question.response.message, "Delete")
        assert "fox is needed by #1 fox, which has not ended" in answer(reply)
        assert await names(lab) == ["fox"]


async def test_a_confirmation_survives_a_restart(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        question = await lab.ana.slash(lab.channel, "dataset delete", dataset="fox")
        await lab.env.restart_bot(lab.app.new_client())
        await press(lab.ana, question.response.message, "Delete")
        assert await names(lab) == []


async def test_a_dataset_of_another_server_is_not_found(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        other = lab.env.create_guild("Other")
        channel = other.create_text_channel("lab")
        eve = other.add_member(lab.env.create_user("eve"))
        assert "There is no dataset" in answer(await eve.slash(channel, "dataset inspect", dataset="fox"))
        assert lab.env.errors
