"""`/sample`, [Try prompts] and [Compare epochs]: who may draw, what is drawn, votes, restarts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import discord

from bot.queue import Job, State
from bot.queue.domain.verbs import PrivateTraining
from tests.bot.cogs.conftest import World, answer, first_bot, next_bot, text_of, world
from tests.bot.cogs.dataset_helpers import menus, press, press_forged
from trainer.exchange.process import read_process_file
from trainer.protocol.events import Finished


async def trained(lab: World, **options: Any) -> Job:
    """Run a training of Ana's to its end."""
    await lab.train(epochs=3, **options)
    return await lab.jobs.get(1)


async def drawn(lab: World, job_id: int) -> discord.Message:
    """Wait until a sampling is drawn; return its card."""
    await until_state(lab, job_id, State.SUCCEEDED)
    await lab.until_sent()
    return card_of(lab, job_id)


async def until_state(lab: World, job_id: int, state: State) -> Job:
    jobs: dict[int, Job] = {}

    async def read() -> State:
        jobs[0] = await lab.jobs.get(job_id)
        return jobs[0].state

    async with asyncio.timeout(60):
        while await read() is not state:
            assert not jobs[0].state.is_end, jobs[0]
            await asyncio.sleep(0.02)
    return jobs[0]


def card_of(lab: World, job_id: int) -> discord.Message:
    [card] = [each for each in lab.messages() if re.match(rf"### \S+ #{job_id} ", text_of(each))]
    return card


async def until_card(lab: World, job_id: int, part: str) -> discord.Message:
    """Wait until the card of a sampling contains `part`; return it."""
    await lab.until(lambda: any(f"#{job_id} " in text and part in text for text in lab.posts("### ")))
    return card_of(lab, job_id)


def images_of(message: discord.Message) -> list[str]:
    return [file.filename for file in message.attachments]


async def test_a_grid_of_epochs_is_drawn_in_the_thread_of_its_training(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await trained(lab)
        asked = await lab.ben.slash(
            lab.channel, "sample", prompts="a fox | a red fox", job="fox", epochs="base, 1-3", strengths="0.5, 1"
        )
        assert "#2: 14 images of “fox”" in answer(asked)
        assert asked.response.ephemeral
        card = await drawn(lab, 2)
        thread = lab.channel.threads[0]
        assert card.channel.id == thread.id, "the channel stays quiet"
        assert images_of(card) == ["2-grid-1.png"]
        assert "14 images" in text_of(card)
        assert "base model, epoch 1, epoch 2 and epoch 3" in text_of(card)
        job = await lab.jobs.get(2)
        assert (job.source_id, job.owner_id, job.dataset_id) == (1, lab.ben.id, 1)
        assert [cell.seed for cell in job.sampling.cells] == [1234] * 14, "each model draws with the same seed"
        # The name still means the training.
        assert "### ✅ #1 fox" in answer(await lab.ben.slash(lab.channel, "job status", id="fox"))
        # The person who asked is mentioned once, where the images are.
        called = [text for text in lab.thread_texts() if "14 images are drawn" in text]
        assert len(called) == 1
        assert f"<@{lab.ben.id}>" in called[0]
        assert not [text for text in lab.texts() if "#2" in text]


#: Options that cannot be drawn, and a part of the sentence that says why.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"job": "fox", "epochs": "9"}, "Epoch 9 of #1 is not saved. Saved are: 1, 2 and 3."),
    ({"job": "fox", "epochs": "9-7"}, "Epoch 7 of #1 is not saved."),
    ({"job": "fox", "epochs": "newest"}, "Epochs: I do not understand “newest”."),
    ({"job": "fox", "strengths": "strong"}, "Strength: I do not understand “strong”."),
    ({"job": "fox", "strengths": "3"}, "1.5"),
    ({"job": "fox", "seeds": "lucky"}, "Seeds: I do not understand “lucky”."),
    ({"job": "fox", "size": "huge"}, "Size: I do not understand “huge”."),
    ({"job": "fox", "size": "1024"}, "not 1024×1024. Sizes that fit:"),
    ({"job": "fox", "seeds": " ".join(map(str, range(1, 16))), "epochs": "all", "strengths": "0 0.5 1"}, "135 images"),
    ({"job": "fox", "base": "tiny"}, "Give one of these"),
    ({}, "Say what to draw with"),
    ({"base": "tiny", "epochs": "2"}, "Only a training has epochs"),
    ({"base": "huge"}, "There is no base model “huge” here."),
    ({"file": ("fox.ckpt", b"pickle")}, "fox.ckpt is not a .safetensors file."),
    ({"file": ("fox.safetensors", b"other")}, "I cannot draw with fox.safetensors: it is no LoRA."),
]


async def test_what_cannot_be_drawn_is_refused_in_a_sentence(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await trained(lab)
        for options, sentence in REFUSED:
            refused = answer(await lab.ana.slash(lab.channel, "sample", prompts="a fox", **options))
            assert sentence.replace("_", "\\_") in refused, refused
            assert "Something broke" not in refused
        assert len(lab.refusals()) == len(REFUSED)
        assert await lab.jobs.queued_ids() == []
        assert not list(lab.jobs.folder("").glob("file-*")), "what was downloaded is removed"


async def test_prompts_are_typed_into_a_form_and_come_back_if_they_are_wrong(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await trained(lab, prompts="a fox in the snow")
        done = next(each for each in lab.channel.history() if "is done" in text_of(each))
        opened = await lab.ben.click(done, custom_id="job:1:try_prompts")
        typed = {part["component"]["custom_id"]: part["component"].get("value") for part in opened.modal["components"]}
        assert typed["prompts"] == "a fox in the snow"
        sent = await lab.ben.submit_modal(opened, {"prompts": "a fox", "strengths": "x", "seeds": "1"})
        assert "Strength: I do not understand “x”." in answer(sent)
        again = await press(lab.ben, sent.followups[-1] if sent.followups else sent.response.message, "Fix in form")
        sent = await lab.ben.submit_modal(again, {"prompts": "a fox", "strengths": "0.8", "seeds": "1"})
        assert "#2: 1 image of “fox”" in answer(sent)
        job = (await lab.jobs.get(2)).sampling
        assert (job.prompts[0].prompt, job.seeds, job.strengths) == ("a fox", (1,), (0.8,))


async def test_votes_are_one_for_each_person_and_stay_on_the_card(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        await trained(lab)
        await lab.ana.slash(lab.channel, "sample", prompts="a fox", job="1", epochs="1, 2, 3")
        card = await drawn(lab, 2)
        for member, choice in ((lab.ana, "1"), (lab.ben, "1"), (lab.ben, "2")):
            await member.select(card, [choice], custom_id="sample:2:vote")
        await lab.until_sent()
        assert "Most liked: **epoch 2** and **epoch 3**, with 1 vote." in text_of(card_of(lab, 2))
    async with next_bot(lab, data_dir):
        await lab.ana.select(card_of(lab, 2), ["2"], custom_id="sample:2:vote")
        await lab.until(lambda: "Most liked: **epoch 3**, with 2 votes." in text_of(card_of(lab, 2)))
        taken = await lab.ana.select(card_of(lab, 2), ["2"], custom_id="sample:2:vote")
        assert "is taken back" in answer(taken)
        await lab.until(lambda: "with 1 vote." in text_of(card_of(lab, 2)))


async def test_images_have_votes_of_their_own(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        await trained(lab)
        await lab.ana.slash(lab.channel, "sample", prompts="a|b|c|d|e|f", job="1", epochs="1, 2")
        card = await drawn(lab, 2)
        assert "sample:2:image" not in menus(card), "it asks for the best epoch"
        shown = await press(lab.ben, card, "All images")
        first, second = shown.response.message, shown.followups[-1]
        assert (menus(first), menus(second)) == (["sample:2:image"], ["sample:2:image"])
        await lab.ben.select(first, ["3"], custom_id="sample:2:image")
        await lab.ben.select(card, ["1"], custom_id="sample:2:vote")
        # One for all images: the other one is taken back.
        await lab.ben.select(second, ["11"], custom_id="sample:2:image")
        await lab.until(lambda: "Most liked: **image 12**, with 1 vote." in text_of(card_of(lab, 2)))
        assert "Most liked: **epoch 2**, with 1 vote." in text_of(card_of(lab, 2))
    async with next_bot(lab, data_dir):
        shown = await press(lab.ana, card_of(lab, 2), "All images")
        voted = await lab.ana.select(shown.followups[-1], ["11"], custom_id="sample:2:image")
        assert "Your vote for image 12 counts" in answer(voted)
        await lab.until(lambda: "Most liked: **image 12**, with 2 votes." in text_of(card_of(lab, 2)))
        # Few images of one model: the menu is on the card.
        await lab.ana.slash(lab.channel, "sample", prompts="a|b", job="1")
        assert menus(await drawn(lab, 3)) == ["sample:3:image"]


async def test_a_sampling_goes_on_after_the_bot_and_its_process_were_killed(data_dir: Path) -> None:
    async with first_bot(data_dir, FAKE_DRAW_S="0.3") as lab:
        await trained(lab)
        await lab.ana.slash(lab.channel, "sample", prompts="a|b|c|d|e|f|g|h", job="1")
        await until_card(lab, 2, "Drawing, 2 of 8")
        folder = lab.jobs.job_dir(await lab.jobs.get(2))
        process = read_process_file(folder)
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
    async with next_bot(lab, data_dir):
        card = await drawn(lab, 2)
        job = await lab.jobs.get(2)
        assert job.attempt == 2
        assert job.progress.drawn == 8
        assert "8 images" in text_of(card)
        assert not lab.posts("lost"), "a sampling that goes on is no news"


async def test_others_may_look_and_only_the_owner_or_a_manager_stops(data_dir: Path) -> None:
    async with world(data_dir, FAKE_DRAW_S="0.3") as lab:
        await trained(lab)
        await lab.ana.slash(lab.channel, "sample", prompts="a|b|c|d|e|f|g|h", job="1")
        await until_card(lab, 2, "Drawing, 1 of 8")
        refused = await lab.ben.click(card_of(lab, 2), custom_id="job:2:cancel")
        assert f"Only <@{lab.ana.id}> or a manager of the server can" in answer(refused)
        shown = await lab.ben.slash(lab.channel, "job files", id="2")
        assert "2-1.png" in [file.filename for file in shown.response.attachments]
        stopped = await lab.add_manager().click(card_of(lab, 2), custom_id="job:2:cancel")
        assert "stops after this image" in answer(stopped)
        await until_state(lab, 2, State.CANCELLED)
        await lab.until(lambda: "they are kept" in text_of(card_of(lab, 2)) or "it is kept" in text_of(card_of(lab, 2)))
        again = await lab.ana.click(card_of(lab, 2), custom_id="job:2:draw_again")
        assert "continues with the images that are missing" in answer(again)
        await drawn(lab, 2)


async def test_a_role_may_be_needed_to_draw(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await trained(lab)
        artists = lab.channel.guild.create_role("artists")
        boss = lab.add_manager()
        opened = await boss.slash(lab.channel, "admin settings", drawing=True)
        saved = await boss.submit_modal(opened, {"sample": [artists]})
        assert f"**Draw with models:** <@&{artists.id}>" in answer(saved)
        for asked in (
            answer(await lab.ben.slash(lab.channel, "sample", prompts="a", job="1")),
            await press_forged(lab, "job:1:try_prompts", lab.ben),
            await press_forged(lab, "job:1:compare_epochs", lab.ben),
        ):
            assert f"<@&{artists.id}>" in asked
        artist = lab.channel.guild.add_member(lab.env.create_user("artist"), roles=[artists])
        assert "#2: 1 image" in answer(await artist.slash(lab.channel, "sample", prompts="a", job="1"))


async def test_buttons_of_trainings_do_nothing_to_samplings(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await trained(lab)
        await lab.ana.slash(lab.channel, "sample", prompts="a", job="1")
        await drawn(lab, 2)
        before = await lab.jobs.get(2)
        for verb in ("continue", "retry_rate", "retry_px", "try_prompts", "compare_epochs", "details", "keep_best"):
            reply = await press_forged(lab, f"job:2:{verb}", lab.ana)
            assert "Something broke" not in reply, verb
        for verb in ("other_seeds", "all_images", "draw_again", "share_images"):
            reply = await press_forged(lab, f"job:1:{verb}", lab.ana)
            assert "Something broke" not in reply, verb
        after = await lab.jobs.get(2)
        assert (after.state, after.round) == (before.state, before.round)
        assert len(await lab.recent()) <= 2


async def test_a_file_of_another_place_is_drawn_with_and_its_seeds_changed(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        asked = await lab.ana.slash(
            lab.channel, "sample", prompts="a fox", base="tiny", with_base=True, file=("ink.safetensors", b"lora" * 50)
        )
        assert "#1: 2 images of “ink”" in answer(asked)
        card = await drawn(lab, 1)
        assert card.channel.id == lab.channel.id, "there is no training whose thread it could be in"
        job = await lab.jobs.get(1)
        assert (lab.jobs.job_dir(job) / "adapter.safetensors").read_bytes() == b"lora" * 50
        more = await lab.ana.click(card, custom_id="job:1:other_seeds")
        assert "#2: 2 images of “ink”" in answer(more)
        await drawn(lab, 2)
        assert (await lab.jobs.get(2)).sampling.seeds == (1235,)


async def test_a_failed_sampling_says_why_and_what_to_do(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="no_drawing") as lab:
        await lab.ana.slash(lab.channel, "sample", prompts="a fox", base="tiny")
        failed = await lab.until_shown("could not be drawn")
        assert "The base model is gone." in failed
        assert "Add it again." in failed
        await until_state(lab, 1, State.FAILED)


def best_of(job: Job) -> int:
    assert isinstance(job.terminal_event, Finished)
    return job.terminal_event.best_epoch


async def test_a_chosen_epoch_becomes_the_result(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        job = await trained(lab)
        assert best_of(job) == 3
        await lab.ben.slash(lab.channel, "sample", prompts="a fox", job="1", epochs="1, 2")
        card = await drawn(lab, 2)
        refused = await lab.ben.select(card, ["2"], custom_id="sample:2:use")
        assert f"Only <@{lab.ana.id}> or a manager" in answer(refused)
        chosen = await lab.ana.select(card, ["2"], custom_id="sample:2:use")
        assert "Epoch 2 becomes the result of #1." in answer(chosen)
    # The bot is gone before it is done.
    async with next_bot(lab, data_dir):
        await until_state(lab, 1, State.SUCCEEDED)
        job = await lab.jobs.get(1)
        assert best_of(job) == 2
        await lab.until(lambda: len([text for text in lab.texts() if "is done" in text]) == 2)
        again = await lab.ana.select(card_of(lab, 2), ["2"], custom_id="sample:2:use")
        assert "Epoch 2 is the result of #1 already." in answer(again)


async def test_what_a_guest_draws_from_a_private_dataset_is_for_those_who_may_see_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await trained(lab)
        form = await lab.ana.slash(lab.channel, "dataset privacy", dataset="fox")
        await lab.ana.submit_modal(form, {"who": "private", "guests": [lab.ben]})
        stranger = lab.channel.guild.add_member(lab.env.create_user("mallory"))
        refused = answer(await stranger.slash(lab.channel, "sample", prompts="a fox", job="1"))
        assert "private dataset" in refused
        assert "private dataset" in await press_forged(lab, "job:1:try_prompts", stranger)

        await lab.ben.slash(lab.channel, "sample", prompts="a fox", job="1")
        card = await drawn(lab, 2)
        assert images_of(card) == []
        assert "private dataset" in text_of(card)
        shown = await lab.ana.slash(lab.channel, "job files", id="2")
        assert [file.filename for file in shown.response.attachments] == ["2-1.png"]
        assert "private dataset" in answer(await stranger.slash(lab.channel, "job files", id="2"))
        assert "private dataset" in await press_forged(lab, "job:2:all_images", stranger)
        assert lab.refusals() == [PrivateTraining, PrivateTraining]
