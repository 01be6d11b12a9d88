"""The memory that a training needs joins the answers that were given before it was known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bot.config import Config, ModelSettings
from tests.bot.cogs import conftest
from tests.bot.cogs.conftest import World, archive, text_of, world
from tests.bot.cogs.dataset_helpers import press, shown_again

MEMORY = "needs about 9.0 GiB"


@pytest.fixture(autouse=True)
def _with_sdxl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the bots have an SDXL, by its header: the memory of the toy model is not predicted."""
    header = json.dumps({"conditioner.embedders.0.a": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "base.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    models = ModelSettings(default="SDXL", sources={"SDXL": str(tmp_path / "base.safetensors")})
    without = conftest.config_for

    def with_sdxl(folder: Path, **trainer_env: str) -> Config:
        return without(folder, **trainer_env).model_copy(update={"models": models})

    monkeypatch.setattr(conftest, "config_for", with_sdxl)


async def ask(lab: World, actor: Any, name: str) -> Any:
    """The card of a request that waits for a confirmation."""
    asked = {"dataset": archive(6 if actor is lab.ana else 7), "epochs": 1, "name": name}
    return (await actor.slash(lab.channel, "finetune", **asked)).response.message


def let_predict(data_dir: Path) -> None:
    (data_dir / "predictions").mkdir(exist_ok=True)
    (data_dir / "predictions" / "go").touch()


async def test_an_open_card_says_it_once_it_is_known(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, lab.ana, "fox")
        assert "Memory" not in text_of(card)

        let_predict(data_dir)

        await lab.until(lambda: MEMORY in text_of(shown_again(lab, card)))
        assert "Nothing is queued yet." in text_of(shown_again(lab, card))
        receipt = (await press(lab.ana, shown_again(lab, card), "Start training")).response.message
        assert MEMORY in text_of(receipt)


async def test_a_receipt_says_it_once_it_is_known(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, lab.ana, "fox")
        receipt = (await press(lab.ana, card, "Start training")).response.message
        before = text_of(receipt)
        assert "Queued #1" in before

        let_predict(data_dir)

        await lab.until(lambda: MEMORY in text_of(shown_again(lab, receipt)))
        lines = text_of(shown_again(lab, receipt)).splitlines()
        assert [line for line in lines if MEMORY not in line] == before.splitlines()


async def test_what_a_later_press_shows_in_place_of_the_card_stays(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, lab.ana, "fox")
        await press(lab.ana, card, "Advanced…")
        pages = text_of(shown_again(lab, card))
        assert "Nothing is queued yet." not in pages
        # Requests are predicted one after another: once this one is, that of the first card was.
        other = await ask(lab, lab.ben, "bear")

        let_predict(data_dir)

        await lab.until(lambda: MEMORY in text_of(_of_ben(lab, other)))
        assert text_of(shown_again(lab, card)) == pages


def _of_ben(lab: World, message: Any) -> Any:
    return next(each for each in lab.channel.history(viewer=lab.ben) if each.id == message.id)
