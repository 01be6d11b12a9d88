"""`/study`: one order, one card, a run for each fold, one end."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.cogs.study import compare_order
from bot.errors import JobRefused
from bot.queue import State
from tests.bot.cogs.conftest import World, answer, archive, world
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
