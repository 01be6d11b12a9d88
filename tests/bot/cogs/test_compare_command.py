"""`/compare`: several trainings beside each other."""

from __future__ import annotations

from pathlib import Path

from bot.queue import PauseKind
from tests.bot.cogs.conftest import answer, world
from tests.bot.cogs.dataset_helpers import buttons


async def test_trainings_are_laid_beside_each_other(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(prompts="a red fox")
        await lab.finetune(from_dataset="fox", name="wolf", lr=0.002, prompts="a red fox")
        await lab.until(lambda: len(lab.posts("is done")) == 2)
        shown = await lab.ben.slash(lab.channel, "compare", jobs="1, #2")
        assert shown.response.ephemeral
        text = answer(shown)
        for part in ("#1 and #2 beside each other", "#1 fox: 4.0 % better", "lr: 0.001 (#1), 0.002 (#2)"):
            assert part in text
        assert [file.filename for file in shown.response.message.attachments] == ["curves.png", "samples.png"]
        assert "Run #1 again with changes" in buttons(shown.response.message)
        # By name too; the same one twice is one.
        assert "Name two to 5" in answer(await lab.ben.slash(lab.channel, "compare", jobs="fox 1"))
        assert "no job “cat”" in answer(await lab.ben.slash(lab.channel, "compare", jobs="1 cat"))
        choices = await lab.ben.autocomplete(lab.channel, "compare", "jobs", "1 2")
        assert [choice["value"] for choice in choices] == ["1 2 "]
        assert lab.env.errors


async def test_what_has_not_started_has_nothing_to_compare(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        await lab.jobs.control.pause(PauseKind.PAUSE, by=1, why="")
        await lab.finetune(from_dataset="fox", name="wolf", epochs=3)
        assert "#2 has no curve of its own" in answer(await lab.ben.slash(lab.channel, "compare", jobs="1 2"))
        assert lab.env.errors
