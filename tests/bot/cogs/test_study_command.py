"""`/study`: one request, one card, a run for each fold, one result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.cogs.job_request import JobRequest
from bot.cogs.study_command import compare_request
from bot.errors import JobRefused
from bot.queue import PauseKind, RoleLimit, State
from bot.queue.store.limits import OverBudget, UnknownHours, hours_words
from tests.bot.cogs.conftest import World, answer, text_of, world
from tests.bot.cogs.dataset_helpers import DEFECTIVE, buttons, press, press_forged, shown_again
from tests.bot.cogs.test_job_buttons import state

#: A study that is queued without a question.
KFOLD: dict[str, Any] = {"from_dataset": "fox", "epochs": 1, "confirm": False}


async def test_a_study_says_how_many_trainings_it_makes_and_waits(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
        asked = {"from_dataset": "fox", "epochs": 1, "rank": 8, "lr": 1e-5}
        card = (await lab.ana.slash(lab.channel, "study kfold", **asked, folds=3)).response.message
        # Three folds, and the run on all images.
        assert "**Runs**: 4 trainings" in text_of(card)
        assert len(await lab.recent()) == 1

        await press(lab.ana, card, "Start training")

        (study, _) = await lab.recent()
        assert study.study is not None
        assert (study.spec.method.rank, study.spec.training.learning_rate) == (8, 1e-5)


async def test_a_study_that_cannot_be_made_leaves_no_request_behind(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        reply = answer(await lab.ana.slash(lab.channel, "study compare", from_dataset="fox", vary="method.rank=8,32"))
        assert "Nothing was queued." in reply
        assert await lab.app.services.drafts.waiting(lab.ana.id, 1) is None
        assert lab.env.errors


@pytest.mark.slow
async def test_a_cross_validation_is_one_card_and_one_result(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        reply = answer(await lab.ana.slash(lab.channel, "study kfold", **KFOLD, folds=2))
        assert "Queued #2 “fox”" in reply
        done = await lab.until_shown("#2 fox is done")
        assert "Your 2-fold cross-validation is finished.\nAll folds agree." in done
        assert "**fold 1**" in done
        assert "Each row has the same prompt." in done
        (post,) = (message for message in lab.messages() if "#2 fox is done" in text_of(message))
        assert "samples.png" in [file.filename for file in post.attachments]
        assert await state(lab, 2) is State.SUCCEEDED
        assert lab.posts("#3") == []
        assert "3-fold" not in done
        assert "2-fold cross-validation" in answer(await lab.ben.slash(lab.channel, "job status", id="2"))
        # The settings of its best run, with the samples and the test that a run of a study does without.
        assert "Start training" not in done
        assert "fox" in await press_forged(lab, "job:2:train_winner")
        draft = await lab.app.services.drafts.waiting(lab.ana.id, 1)
        assert draft is not None
        request = JobRequest.model_validate_json(draft.request)
        assert (request.preset, request.name, request.study) == ("job-3", "fox", None)
        listed = answer(await lab.ben.slash(lab.channel, "job list"))
        assert "#2 fox" in listed
        assert "#3" not in listed


async def test_a_study_that_the_trainer_refuses_is_not_queued(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        reply = answer(await lab.ana.slash(lab.channel, "study compare", from_dataset="fox", vary="method.rank=8,32"))
        assert "is no setting of this stand-in. Nothing was queued." in reply
        assert len(await lab.recent()) == 1
        assert lab.env.errors


@pytest.mark.slow
async def test_a_duplicate_study_is_queued_only_after_a_confirmation(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        asked = {**KFOLD, "folds": 2}
        await lab.ana.slash(lab.channel, "study kfold", **asked)
        # Its own runs are no duplicates of it.
        result = await lab.ben.slash(lab.channel, "study kfold", **asked, name="another")
        assert "**#2** has the same images and settings" in answer(result)
        assert list(buttons(result.response)) == ["Open #2", "Queue anyway"]
        assert "2-fold cross-validation" in answer(await press(lab.ben, result.response.message, "Open #2"))
        await lab.until_shown("#2 fox is done")
        assert [await state(lab, child) for child in await runs_of(lab, 2)] == [State.SUCCEEDED] * 2
        assert "has the same images and settings" in answer(await lab.ana.slash(lab.channel, "study kfold", **asked))

        again = await press(lab.ben, result.response.message, "Queue anyway")

        assert "✅ **Queued #" in answer(again)
        twin = (await lab.recent())[0]
        assert (twin.name, twin.owner_id, twin.gpus, twin.study is not None) == ("another", lab.ben.id, 0, True)
        await lab.until_shown(f"#{twin.id} another is done")
        assert len(await runs_of(lab, twin.id)) == 2


async def runs_of(lab: World, study_id: int) -> list[int]:
    return [child.id for child in await lab.jobs.studies.children(study_id)]


async def test_the_request_of_a_study_is_part_of_its_fingerprint(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
        # The training with the same settings has succeeded, as #1.
        for folds in (2, 3):
            reply = answer(await lab.ana.slash(lab.channel, "study kfold", **KFOLD, folds=folds))
            assert "Queued" in reply
        reply = answer(await lab.ana.slash(lab.channel, "study kfold", **KFOLD, folds=3))
        assert "has the same images and settings" in reply
        seeded = answer(await lab.ana.slash(lab.channel, "study kfold", **KFOLD, folds=3, seed=7))
        assert "Queued" in seeded


async def test_all_runs_of_a_study_count_in_the_gpu_hours_of_the_week(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
        measured = await lab.app.db.one("SELECT seconds FROM measure")
        assert measured is not None
        guild_id = lab.channel.guild.id
        kfold = {**KFOLD, "folds": 2}

        async def allow(trainings: float) -> None:
            # The role of everyone. A training took as long as it is estimated to take, and is in the used hours.
            hours = trainings * measured["seconds"] / 3600
            limit = RoleLimit(role_id=guild_id, gpu_hours_per_week=hours)
            await lab.app.services.limits.set(guild_id, limit, by=1)

        # Two folds and the run on all images: three more, where there is room for two.
        await allow(3.2)
        await lab.ana.slash(lab.channel, "study kfold", **kfold)
        await allow(4.5)
        asked = answer(await lab.ana.slash(lab.channel, "study kfold", **{**kfold, "confirm": True}))
        assert f"**GPU hours**: about {hours_words(3 * measured['seconds'] / 3600)}; you have" in asked
        assert "Queued" in answer(await lab.ana.slash(lab.channel, "study kfold", **kfold))
        # What they will need is reserved.
        await lab.finetune(from_dataset="fox", epochs=1, name="another", seed=7)
        # Nothing like it was trained before.
        await allow(1000)
        await lab.ana.slash(lab.channel, "study kfold", **kfold, preset="full")

        assert lab.refusals() == [OverBudget, OverBudget, UnknownHours]
        assert [job.id for job in await lab.recent()] == [2, 1]


async def test_the_draft_of_a_study_is_shown_as_a_study(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(dataset=DEFECTIVE)
        for _ in range(2):
            await lab.ana.slash(lab.channel, "study kfold", **KFOLD, folds=2)
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        await press(lab.ana, page, "Done")
        card = shown_again(lab, page)
        assert "2-fold cross-validation" in text_of(card)
        await press(lab.ana, card, "Start training")
        assert len(await lab.recent()) == 2, "it is a duplicate still"


async def test_datasets_presets_and_bases_are_offered(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        choices = await lab.ben.autocomplete(lab.channel, "study kfold", "from_dataset", "fo")
        assert [choice["value"] for choice in choices] == ["fox"]
        assert await lab.ben.autocomplete(lab.channel, "study compare", "preset", "")
        assert await lab.ben.autocomplete(lab.channel, "study compare", "base", "tiny")


def test_varied_settings_are_separated_by_semicolons() -> None:
    request = compare_request(" lr=1e-4,3e-4; method.rank=8,32; ", finishes=False)
    assert request.vary == ("lr=1e-4,3e-4", "method.rank=8,32")
    assert not request.finishes


def test_too_many_or_no_varied_settings_are_refused() -> None:
    for vary in (" ; ", "; ".join(f"method.rank={n}" for n in range(9))):
        with pytest.raises(JobRefused):
            compare_request(vary, finishes=True)
