"""`/study`: one order, one card, a run for each fold, one end."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.cogs.study import compare_order
from bot.errors import JobRefused
from bot.queue import HaltKind, State
from tests.bot.cogs.conftest import World, answer, archive, texts, world
from tests.bot.cogs.room import DEFECTIVE, buttons, press, shown_again
from tests.bot.cogs.test_buttons import state


async def hand_in(lab: World) -> None:
    await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1)
    await lab.until_shown("is done")


async def test_a_cross_validation_is_one_card_and_one_result(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        told = answer(await lab.ana.slash(lab.channel, "study kfold", from_dataset="fox", epochs=1, folds=2))
        assert "Queued #2 “fox”" in told
        done = await lab.until_shown("#2 fox is done")
        assert "your 2-fold cross-validation is over.\n→ All folds agree." in done
        assert "**fold 1**" in done
        assert await state(lab, 2) is State.SUCCEEDED
        assert lab.posts("#3") == []
        assert "3-fold" not in done
        assert "2-fold cross-validation" in answer(await lab.ben.slash(lab.channel, "job status", id="2"))
        listed = answer(await lab.ben.slash(lab.channel, "job list"))
        assert "#2 fox" in listed
        assert "#3" not in listed


async def test_a_study_that_the_trainer_refuses_queues_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        told = answer(await lab.ana.slash(lab.channel, "study compare", from_dataset="fox", vary="method.rank=8,32"))
        assert "is no setting of this stand-in. Nothing was queued." in told
        assert len(await lab.app.services.jobs.recent(lab.channel.guild.id)) == 1
        assert lab.env.errors


async def test_the_same_study_again_is_named_and_queued_only_if_that_is_meant(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        asked = {"from_dataset": "fox", "epochs": 1, "folds": 2}
        await lab.ana.slash(lab.channel, "study kfold", **asked)
        # While it runs, none of its own runs is taken for a duplicate; nor are the trainings that it consists of.
        result = await lab.ben.slash(lab.channel, "study kfold", **asked, name="another")
        assert "Same data and settings as **#2**" in answer(result)
        assert list(buttons(result.response)) == ["Open #2", "Queue anyway"]
        assert "2-fold cross-validation" in answer(await press(lab.ben, result.response.message, "Open #2"))
        await lab.until_shown("#2 fox is done")
        assert [await state(lab, child) for child in await runs_of(lab, 2)] == [State.SUCCEEDED] * 2
        assert "Same data" in answer(await lab.ana.slash(lab.channel, "study kfold", **asked))

        again = await press(lab.ben, result.response.message, "Queue anyway")

        assert "✅ **Queued #" in answer(again)
        twin = (await lab.app.services.jobs.recent(lab.channel.guild.id))[0]
        assert (twin.name, twin.owner_id, twin.gpus, twin.study is not None) == ("another", lab.ben.id, 0, True)
        await lab.until_shown(f"#{twin.id} another is done")
        assert len(await runs_of(lab, twin.id)) == 2


async def runs_of(lab: World, study_id: int) -> list[int]:
    return [child.id for child in await lab.app.services.jobs.children(study_id)]


async def test_other_folds_are_another_study_and_a_training_of_the_settings_is_none(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        await lab.app.services.jobs.switch.halt(HaltKind.PAUSE, by=1)
        # The training of these very settings has succeeded, as #1.
        for folds in (2, 3):
            told = answer(await lab.ana.slash(lab.channel, "study kfold", from_dataset="fox", epochs=1, folds=folds))
            assert "Queued" in told
        told = answer(await lab.ana.slash(lab.channel, "study kfold", from_dataset="fox", epochs=1, folds=3))
        assert "Same data" in told
        seeded = answer(await lab.ana.slash(lab.channel, "study kfold", from_dataset="fox", epochs=1, folds=3, seed=7))
        assert "Queued" in seeded


async def test_a_study_that_waits_for_its_dataset_is_called_one(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=DEFECTIVE, epochs=1)
        await lab.until_shown("is done")
        for _ in range(2):
            await lab.ana.slash(lab.channel, "study kfold", from_dataset="fox", epochs=1, folds=2)
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        await press(lab.ana, page, "Done")
        card = shown_again(lab, page)
        words = "\n".join(texts(card.components))
        assert "2-fold cross-validation of **fox** · 1 epoch" in words
        assert "runs about" not in words
        await press(lab.ana, card, "Go on")
        assert len(await lab.app.services.jobs.recent(lab.channel.guild.id)) == 2, "it is a duplicate still"


async def test_datasets_presets_and_bases_are_offered(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        choices = await lab.ben.autocomplete(lab.channel, "study kfold", "from_dataset", "fo")
        assert [choice["value"] for choice in choices] == ["fox"]
        assert await lab.ben.autocomplete(lab.channel, "study compare", "preset", "")
        assert await lab.ben.autocomplete(lab.channel, "study compare", "base", "tiny")


def test_what_is_varied_is_written_with_semicolons() -> None:
    order = compare_order(" training.learning_rate=1e-4,3e-4; method.rank=8,32; ", finishes=False)
    assert order.vary == ("training.learning_rate=1e-4,3e-4", "method.rank=8,32")
    assert not order.finishes


def test_too_much_or_nothing_to_vary_is_refused_in_words() -> None:
    for vary in (" ; ", "; ".join(f"method.rank={n}" for n in range(9))):
        with pytest.raises(JobRefused, match="Nothing was queued"):
            compare_order(vary, finishes=True)
