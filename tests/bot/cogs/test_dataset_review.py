"""A review, by kind of finding: decisions are stored at once, survive a restart, and are applied at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bot.datasets import Dataset
from tests.bot.cogs.conftest import (
    PNG,
    World,
    answer,
    archive,
    first_bot,
    next_bot,
    text_of,
    world,
)
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged, shown_again, upload_dataset


async def dataset_of(lab: World) -> Dataset:
    return await lab.app.services.datasets.named(lab.channel.guild.id, "fox")


async def review(lab: World, actor: Any = None) -> Any:
    actor = actor or lab.ana
    return (await actor.slash(lab.channel, "dataset review", dataset="fox")).response.message


async def test_a_page_shows_an_image_and_its_findings(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        page = await review(lab)
        text = text_of(page)
        assert "**Image 7** · blur.png" in text
        assert "**Perhaps blurred**: the edges are wide" in text
        assert [file.filename for file in page.attachments] == ["image-7.png"]
        assert set(buttons(page)) == {"Keep", "Drop", "Edit caption", "▶️", "Done"}
        second = (await press(lab.ana, page, "▶️")).response.message
        assert "Dropped: Near duplicates" in text_of(second)
        assert [file.filename for file in second.attachments] == ["image-8.png"]
        assert "◀️" in buttons(second)
        assert "1 of 2 · Perhaps blurred" in text_of((await press(lab.ana, second, "◀️")).response.message)


async def test_done_applies_the_decisions(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        page = await review(lab)
        page = (await press(lab.ana, page, "Drop")).response.message
        assert "Image 7 is dropped" in text_of(page)
        page = (await press(lab.ana, page, "Keep")).response.message
        assert "All decided" in text_of(page)
        pending = await dataset_of(lab)
        assert (pending.is_pending, pending.counts.kept) == (True, 7)

        card = (await press(lab.ana, page, "Done")).response.message

        assert "🖼️ fox · 7 images" in text_of(card)
        done = await dataset_of(lab)
        report = await lab.app.services.datasets.report(done)
        assert [image.status for image in report.images[6:]] == ["dropped", "kept"]
        assert "What was found" in buttons(card)


#: Three blurred images, and two that are dropped for another reason.
SEVERAL = archive(6, **{f"{name}__png": PNG + name.encode() for name in ("blur1", "blur2", "blur3", "twin1", "twin2")})


async def test_several_of_a_kind_are_decided_together_but_for_exceptions(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab, SEVERAL)
        page = await review(lab)
        assert [file.filename for file in page.attachments] == ["image-7.png", "image-8.png", "image-9.png"]
        assert "3 images: no. 7, 8 and 9" in text_of(page)
        single = (await press(lab.ana, page, "One by one")).response.message
        single = (await press(lab.ana, single, "▶️")).response.message
        single = (await press(lab.ana, single, "Drop")).response.message
        assert "Image 8 is dropped" in text_of(single)
        page = (await press(lab.ana, single, "All together")).response.message
        keep_others = buttons(page)["Keep the other 2"]

        page = (await lab.ana.click(page, custom_id=keep_others)).response.message

        assert "Images 7 and 9 are kept" in text_of(page)
        assert "Dropped: Near duplicates" in text_of(page)
        # Pressed again on an old page: the exception stays.
        await press_forged(lab, keep_others)
        page = (await press(lab.ana, page, "Keep all 2")).response.message
        await press(lab.ana, page, "Done")
        report = await lab.app.services.datasets.report(await dataset_of(lab))
        assert [image.status for image in report.images[6:]] == ["kept", "dropped", "kept", "kept", "kept"]


async def test_a_decision_about_all_can_be_changed_for_all(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab, SEVERAL)
        await press(lab.ana, await review(lab), "Drop all 3")
        page = await review(lab)
        assert "Dropped: no. 7, 8 and 9" in text_of(page)
        await press(lab.ana, page, "Keep all 3")
        assert sorted((await dataset_of(lab)).edits.decisions.values()) == ["keep"] * 3


async def test_a_press_on_an_old_page_twice_is_one_decision(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        page = await review(lab)
        drop = buttons(page)["Drop"]
        keep = buttons(page)["Keep"]
        await lab.ana.click(page, custom_id=drop)
        await lab.app.services.datasets.apply(1)
        twice = await lab.ana.click(await review(lab), custom_id=buttons(await review(lab))["Done"])
        assert twice.response is not None
        decisions = (await dataset_of(lab)).edits.decisions
        assert list(decisions.values()) == ["drop"]
        assert keep == f"ds:1:keep:{next(iter(decisions))[:20]}-blur"


async def test_a_caption_is_edited_in_a_form_and_applied_by_done(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        page = await review(lab)
        form = await press(lab.ana, page, "Edit caption")
        assert "7" in form.modal["title"]
        assert form.modal["components"][0]["component"]["value"] == "a fox"
        await lab.ana.submit_modal(form, {"caption": "a very\n blurred fox"})
        page = shown_again(lab, page)
        assert "Caption: a very blurred fox" in text_of(page)
        assert "by hand" in text_of(page)
        again = await press(lab.ana, page, "Edit caption")
        assert again.modal["components"][0]["component"]["value"] == "a very blurred fox"
        await press(lab.ana, shown_again(lab, page), "Done")
        report = await lab.app.services.datasets.report(await dataset_of(lab))
        assert report.images[6].caption == "a very blurred fox"


async def test_an_automatic_caption_is_marked_as_right(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab, archive(6, bare__png=PNG + b"bare"))
        captions = lab.app.services.config.captions.model_copy(update={"model": "blip"})
        await lab.app.services.datasets.write_captions(1, captions)
        page = await review(lab)
        assert "Caption: an animal" in text_of(page)
        page = (await press(lab.ana, page, "Looks right")).response.message
        assert "The caption of Image 7 is right" in text_of(page)
        card = (await press(lab.ana, page, "Done")).response.message
        assert "by a model" not in text_of(card)
        assert (await dataset_of(lab)).counts.automatic == 0


async def test_another_member_may_look_and_only_a_manager_may_decide(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        page = await review(lab, lab.ben)
        # Shown are the buttons that he may press; an older page of hers may still have the others.
        assert set(buttons(page)) == {"▶️", "Done"}
        assert f"Only <@{lab.ana.id}> or a manager of the server can decide" in text_of(page)
        for custom_id in set(buttons(await review(lab)).values()) - set(buttons(page).values()):
            reply = await press_forged(lab, custom_id, user=lab.ben)
            assert f"Only <@{lab.ana.id}> or a manager of the server can do this" in reply
        assert "2 of 2" in text_of((await press(lab.ben, page, "▶️")).response.message)
        assert (await dataset_of(lab)).edits.decisions == {}
        manager = lab.add_manager()
        await press(manager, await review(lab, manager), "Drop")
        assert len((await dataset_of(lab)).edits.decisions) == 1


async def test_two_reviews_at_the_same_time_lose_no_decision(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        manager = lab.add_manager()
        first = await review(lab)
        second = (await press(manager, await review(lab, manager), "▶️")).response.message
        await press(lab.ana, first, "Drop")
        await press(manager, second, "Keep")
        assert sorted((await dataset_of(lab)).edits.decisions.values()) == ["drop", "keep"]


async def test_a_restart_loses_no_decision_and_its_buttons_still_work(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        await upload_dataset(lab)
        page = (await press(lab.ana, await review(lab), "Drop")).response.message
    async with next_bot(lab, data_dir):
        page = (await press(lab.ana, page, "Keep")).response.message
        await press(lab.ana, page, "Done")
        report = await lab.app.services.datasets.report(await dataset_of(lab))
        assert [image.status for image in report.images[6:]] == ["dropped", "kept"]


async def test_pending_decisions_are_shown_and_can_be_applied(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        await press(lab.ana, await review(lab), "Drop")
        card = (await lab.ben.slash(lab.channel, "dataset inspect", dataset="fox")).response.message
        assert "Your decisions are saved but not applied yet" in text_of(card)
        assert "Apply decisions" not in buttons(card)
        await press_forged(lab, "ds:1:done", user=lab.ben)
        assert (await dataset_of(lab)).is_pending
        card = (await lab.ana.slash(lab.channel, "dataset inspect", dataset="fox")).response.message
        card = (await press(lab.ana, card, "Apply decisions")).response.message
        assert "🖼️ fox · 6 images" in text_of(card)
        assert "not applied yet" not in text_of(card)


async def test_a_review_continues_after_too_few_images_were_left(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab, archive(4, blur__png=PNG + b"blur"))
        page = (await press(lab.ana, await review(lab), "Drop")).response.message
        reply = await press(lab.ana, page, "Done")
        assert "Only 4 usable images" in text_of(reply.followups[-1])
        page = (await press(lab.ana, shown_again(lab, page), "Keep")).response.message
        assert "🖼️ fox · 5 images" in text_of((await press(lab.ana, page, "Done")).response.message)


async def test_a_dataset_without_findings_needs_no_review(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab, archive())
        reply = answer(await lab.ana.slash(lab.channel, "dataset review", dataset="fox"))
        assert "Nothing in fox needs a look" in reply


async def test_buttons_of_a_deleted_dataset_and_of_a_missing_image_are_answered(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        page = await review(lab)
        missing = await press_forged(lab, f"ds:1:keep:{'0' * 20}-blur")
        assert missing.startswith("This image no longer needs a review")
        unknown = await press_forged(lab, "ds:1:dance")
        assert unknown.startswith("This button belongs to another version of me")
        await lab.app.services.datasets.delete(1)
        for label in ("Keep", "Edit caption", "▶️", "Done"):
            assert "There is no dataset" in answer(await press(lab.ana, page, label)), label
