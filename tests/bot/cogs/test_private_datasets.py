"""A private dataset: found, shown, trained on and opened only by its owner, people they name, and managers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bot.errors import DatasetRefused, NoSuchDataset, NotFound, NotYourDataset
from bot.queue import PauseKind
from bot.queue.domain.verbs import PrivateTraining
from tests.bot.cogs.conftest import World, answer, text_of, world
from tests.bot.cogs.dataset_helpers import DEFECTIVE, buttons, press, press_forged, upload_dataset


async def hide(lab: World, *guests: Any, who: str = "private", actor: Any = None) -> str:
    """Say through the form who sees the dataset `fox`."""
    actor = actor or lab.ana
    form = await actor.slash(lab.channel, "dataset privacy", dataset="fox")
    return answer(await actor.submit_modal(form, {"who": who, "guests": list(guests)}))


async def names_offered(lab: World, actor: Any) -> list[str]:
    offered: list[str] = []
    for command, option in (
        ("dataset inspect", "dataset"),
        ("dataset review", "dataset"),
        ("dataset delete", "dataset"),
        ("finetune", "from_dataset"),
    ):
        offered += [each["value"] for each in await actor.autocomplete(lab.channel, command, option, "")]
    return offered


async def said(lab: World, actor: Any, command: str, **options: Any) -> str:
    return answer(await actor.slash(lab.channel, command, **options))


async def test_others_do_not_find_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await upload_dataset(lab)
        assert await names_offered(lab, lab.ben) == ["fox"] * 4
        review = (await lab.ben.slash(lab.channel, "dataset review", dataset="fox")).response.message
        assert "🔒 Private: only" in await hide(lab)

        boss = lab.add_manager()
        assert await names_offered(lab, lab.ben) == []
        assert await names_offered(lab, lab.ana) == await names_offered(lab, boss) == ["fox"] * 4
        unknown = await said(lab, lab.ben, "dataset inspect", dataset="wolf")
        for command in ("dataset inspect", "dataset review", "dataset captions", "dataset privacy", "dataset delete"):
            assert await said(lab, lab.ben, command, dataset="fox") == unknown.replace("wolf", "fox"), command
        assert "no dataset" in await said(lab, lab.ben, "finetune", from_dataset="fox")
        assert "no dataset" in await said(lab, lab.ben, "study compare", from_dataset="fox", vary="epochs=1,2")
        assert "fox" not in await said(lab, lab.ben, "dataset list")
        assert "fox** 🔒" in await said(lab, lab.ana, "dataset list")
        # Cards and pages that were open before.
        for message in (card, review):
            for custom_id in buttons(message).values():
                assert "no dataset" in await press_forged(lab, custom_id, lab.ben), custom_id
        assert await lab.recent() == []
        assert set(lab.refusals()) == {NoSuchDataset}


async def test_whom_its_owner_names_sees_it_and_trains_with_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        assert f"<@{lab.ben.id}>" in await hide(lab, lab.ben)
        assert "Private: only" in await said(lab, lab.ben, "dataset inspect", dataset="fox")
        assert "or a manager of the server can" in await said(lab, lab.ben, "dataset privacy", dataset="fox")

        # What others see of it are posts without pictures.
        asked = await lab.ben.slash(lab.channel, "finetune", from_dataset="fox", epochs=1, confirm=True)
        assert "shows no pictures in the channel" in answer(asked)
        await press(lab.ben, asked.response.message, "Start training")
        await lab.until_shown("is done")
        await lab.until_sent()
        assert [message.attachments for message in lab.messages() if message.attachments] == []
        assert lab.posts("made from a private dataset")
        shown = await lab.ben.slash(lab.channel, "job files", id="1")
        assert shown.response.message.attachments

        # Its pictures are shown to everyone only by the owner of the dataset.
        assert "made from a private dataset" in await said(lab, lab.ben, "job share", id="1")

        # It ends when its owner takes the name back, for a request that waits too.
        asked = await lab.ben.slash(lab.channel, "finetune", from_dataset="fox", epochs=2, confirm=True)
        await hide(lab)
        started = await press(lab.ben, asked.response.message, "Start training")
        assert "no dataset" in text_of(started.followups[-1])
        assert len(await lab.recent()) == 1
        assert lab.refusals() == [NotYourDataset, PrivateTraining]


async def test_its_owners_training_shows_pictures_and_opens_for_those_who_may(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        await hide(lab)
        await lab.train(from_dataset="fox", epochs=1)
        assert any(message.attachments for message in lab.messages())
        assert lab.posts("🔒 from a private dataset")

        refusal = "made from a private dataset"
        card = next(message for message in lab.messages() if buttons(message))
        for command in ("job status", "job files", "job logs", "job history"):
            assert refusal in await said(lab, lab.ben, command, id="1"), command
            assert refusal not in await said(lab, lab.ana, command, id="1"), command
            assert await lab.ben.autocomplete(lab.channel, command, "id", "") == []
        for custom_id in buttons(card).values():
            assert refusal in await press_forged(lab, custom_id, lab.ben), custom_id
        assert refusal in await said(lab, lab.ben, "finetune", from_dataset="fox", preset="#1")

        assert "Everyone here" in await hide(lab, who="everyone")
        assert refusal not in await said(lab, lab.ben, "job status", id="1")
        assert set(lab.refusals()) == {PrivateTraining}


async def test_a_private_dataset_goes_into_no_mix_that_more_people_see(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        await lab.ana.slash(lab.channel, "finetune", dataset=("wolf.zip", DEFECTIVE[1] + b"\0"), confirm=True)
        await hide(lab)
        mixed = ("settings.toml", b'[[mix]]\ndataset = "fox"\n')
        wolf = {"from_dataset": "wolf", "settings": mixed}
        assert "fox is private" in await said(lab, lab.ana, "finetune", **wolf)
        assert "no dataset fox here to mix in" in await said(lab, lab.ben, "finetune", **wolf)


async def test_the_same_files_do_not_open_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        form = await lab.ana.slash(lab.channel, "dataset upload", private=True)
        card = (await lab.ana.submit_modal(form, {"files": [DEFECTIVE]})).response.message
        assert "Private: only" in text_of(card)
        form = await lab.ben.slash(lab.channel, "dataset upload")
        refused = answer(await lab.ben.submit_modal(form, {"files": [DEFECTIVE]}))
        assert "exactly these files as a private dataset" in refused
        assert "exactly these files" in await said(lab, lab.ben, "finetune", dataset=DEFECTIVE, epochs=1)


async def test_lists_say_that_a_training_is_there_and_not_what_it_is_called(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        await hide(lab)
        await lab.train(from_dataset="fox", name="secret", epochs=1)
        await lab.app.services.jobs.control.pause(PauseKind.PAUSE, by=1)
        for number, name in enumerate(("secret-two", "secret-three"), start=2):
            asked = await lab.ana.slash(lab.channel, "finetune", from_dataset="fox", name=name, epochs=number)
            await press(lab.ana, asked.response.message, "Start training")
        for command, shown in (("queue", "🔒 private"), ("job list", "🔒 private")):
            of_ben = await said(lab, lab.ben, command)
            assert "secret" not in of_ben, command
            assert shown in of_ben, command
            assert "#2" in of_ben, command
            assert "secret-two" in await said(lab, lab.ana, command), command
        board = (await lab.ben.slash(lab.channel, "queue")).response.message
        assert "secret" not in await press_forged(lab, "job:0:queue_page", lab.ben)
        assert "secret" not in text_of(board)
        # A name that is typed is no way to learn that it is right.
        unknown = await said(lab, lab.ben, "job status", id="nothing")
        assert await said(lab, lab.ben, "job status", id="secret") == unknown.replace("nothing", "secret")
        assert "secret" in await said(lab, lab.ana, "job status", id="secret")
        assert await lab.ben.autocomplete(lab.channel, "sample", "job", "") == []
        assert lab.refusals() == [NotFound, NotFound]


async def test_who_sees_a_dataset_is_in_the_audit(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        await hide(lab, lab.ben)
        await hide(lab, who="everyone")
        boss = lab.add_manager()
        audit = await said(lab, boss, "admin audit")
        assert "let everyone see the dataset fox" in audit
        assert "made the dataset fox private" in audit


async def test_images_that_come_with_finetune_may_be_private_from_the_start(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        asked = await lab.ana.slash(lab.channel, "finetune", dataset=DEFECTIVE, private=True, confirm=True)
        assert "Your dataset is private" in answer(asked)
        assert await names_offered(lab, lab.ben) == []
        # Also after others could see it; and no one hides another's.
        assert "Everyone here" in await hide(lab, who="everyone")
        refused = await said(lab, lab.ben, "finetune", dataset=DEFECTIVE, private=True, confirm=True)
        assert "or a manager of the server can" in refused
        assert "fox" in await names_offered(lab, lab.ben)
        await lab.ana.slash(lab.channel, "finetune", dataset=DEFECTIVE, private=True, confirm=True)
        assert await names_offered(lab, lab.ben) == []
        assert "dataset privacy" in await said(lab, lab.ana, "finetune", from_dataset="fox", private=True)
        assert lab.refusals() == [DatasetRefused]
