"""[Push to Hugging Face]: asked first, by its owner, and only where it is set up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bot.cogs.conftest import World, answer, world
from tests.bot.cogs.dataset_helpers import buttons, press_forged


def set_up(lab: World, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Configure the hub of a running bot."""
    settings = lab.app.services.config.hub
    object.__setattr__(settings, "namespace", "ana")
    monkeypatch.setenv("DARKROOM_HUB_TOKEN", token)


async def test_a_model_is_pushed_after_a_question_and_its_thread_links_to_it(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        details = await lab.ana.slash(lab.channel, "job status", id="1")
        assert "another version" in await press_forged(lab, "job:1:publish_now"), "it is not set up"
        set_up(lab, monkeypatch, "hf_secret")
        shown = await lab.ana.click(details.response.message, custom_id="job:1:details")
        assert "Push to Hugging Face" in buttons(shown.followups[-1] if shown.followups else shown.response.message)
        assert "Only" in await press_forged(lab, "job:1:publish", lab.ben)
        question = await press_forged(lab, "job:1:publish")
        assert "ana/fox-1" in question
        assert "None of your images is uploaded." in question
        assert "being uploaded" in await press_forged(lab, "job:1:publish_now")
        shown_post = await lab.until_shown("is on Hugging Face")
        assert "ana/fox-1" in shown_post
        assert "is on Hugging Face" in "\n".join(lab.thread_texts())


async def test_a_refused_push_says_why_and_offers_another_try(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        set_up(lab, monkeypatch, "hf_wrong")
        await press_forged(lab, "job:1:publish_now")
        assert "does not accept the token" in await lab.until_shown("was not uploaded")
        (message,) = [each for each in lab.messages() if "Try again" in buttons(each)]
        set_up(lab, monkeypatch, "hf_secret")
        assert "being uploaded" in answer(await lab.ana.click(message, custom_id="job:1:publish_now"))
        await lab.until_shown("is on Hugging Face")
