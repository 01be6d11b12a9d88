"""A dataset of the Hugging Face hub: asked about first, then downloaded by the real trainer from a hub of ours."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import discord
import pyarrow
import pyarrow.parquet
import pytest

from bot.config import Config, DatasetSettings, WebSettings
from bot.errors import DatasetRefused
from tests.bot.cogs import conftest
from tests.bot.cogs.conftest import PNG, World, answer, first_bot, next_bot, world
from tests.bot.cogs.dataset_helpers import buttons, press_forged
from tests.bot.cogs.test_interrupted_upload_answers import is_tracked, until_async
from tests.trainer.dataset.local_hub import hub_answers
from tests.trainer.dataset.local_server import Answer, serving

NAME = "lambda/pets"
FILES = {f"cats/{number}.png": PNG + bytes([number]) for number in range(6)} | {"cats/0.txt": b"a cat"}


@contextmanager
def hub(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Answer], *, is_on: bool = True, **web: Any
) -> Iterator[dict[str, str]]:
    """Let the bots of a test use a local hub; yields the environment of their trainers."""
    without = conftest.config_for

    def with_hub(folder: Path, **trainer_env: str) -> Config:
        changes = {"datasets": DatasetSettings(hub=is_on), "web": WebSettings(**web)}
        return without(folder, **trainer_env).model_copy(update=changes)

    monkeypatch.setattr(conftest, "config_for", with_hub)
    with serving(answers) as (address, _asked):
        yield {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}


async def ask(lab: World, actor: Any, name: str = NAME, **options: Any) -> Any:
    return await actor.slash(lab.channel, "dataset upload", from_hub=name, **options)


def shown(result: Any) -> Any:
    return result.followups[-1] if result.followups else result.response


async def press_download(actor: Any, question: Any) -> Any:
    return await actor.click(question, custom_id=buttons(question)["Download"])


async def test_a_manager_sees_size_license_and_version_and_then_has_it_downloaded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = hub_answers(NAME, FILES, cardData={"license": "cc-by-4.0"})
    with hub(monkeypatch, answers) as env:
        async with world(data_dir, **env) as lab:
            boss = lab.add_manager()
            asked = await ask(lab, boss, f"https://huggingface.co/datasets/{NAME}", private=True)
            assert "7 files" in answer(asked)
            assert "cc-by-4.0" in answer(asked)
            assert "c0ffee00" in answer(asked)
            assert await lab.app.services.datasets.search(lab.channel.guild.id, viewer_id=boss.id) == []

            card = answer(await press_download(boss, shown(asked)))

            assert "pets" in card
            (dataset,) = await lab.app.services.datasets.search(lab.channel.guild.id, viewer_id=boss.id)
            assert (dataset.name, dataset.counts.kept, dataset.owner_id) == ("pets", 6, boss.id)
            assert dataset.is_private
            stored = {path.relative_to(dataset.source).as_posix() for path in dataset.source.rglob("*.*")}
            assert stored == {f"pets/{name}" for name in FILES}
            assert list((data_dir / "incoming").glob("*")) == []
            assert await lab.app.db.all("SELECT * FROM upload") == []
            again = answer(await press_download(boss, shown(asked)))
            assert "This upload is finished" in again


async def test_images_in_tables_are_taken_out_by_a_process_of_their_own(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [{"bytes": PNG + bytes([number]), "path": None} for number in range(6)]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "text": ["a cat"] * 6}), file)
    with hub(monkeypatch, hub_answers(NAME, {"data/train.parquet": file.getvalue()})) as env:
        async with world(data_dir, **env) as lab:
            boss = lab.add_manager()
            asked = await ask(lab, boss)
            assert "names no license" in answer(asked)
            await press_download(boss, shown(asked))
            (dataset,) = await lab.app.services.datasets.search(lab.channel.guild.id)
            assert dataset.counts.kept == 6
            assert list(dataset.source.rglob("*.parquet")) == []


async def test_what_cannot_be_taken_is_refused_with_the_reason(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = hub_answers(NAME, FILES) | hub_answers("lambda/many", {f"{n}.png": PNG for n in range(9)})
    answers |= hub_answers("lambda/gated", FILES, gated="manual") | hub_answers("lambda/words", {"a.csv": b"a"})
    refusals = {
        NAME + "@v9": "There is no dataset",
        "lambda/none": "There is no dataset",
        "lambda/many": "at most 8 are downloaded",
        "lambda/gated": "gated",
        "lambda/words": "has no images",
        "--out=/etc": "is not the name of a dataset",
    }
    with hub(monkeypatch, answers, max_upload_files=8) as env:
        async with world(data_dir, **env) as lab:
            boss = lab.add_manager()
            for name, reason in refusals.items():
                assert reason in answer(await ask(lab, boss, name)), name
            assert "Only managers" in answer(await ask(lab, lab.ana))
            await ask(lab, boss)
            (question,) = await lab.app.db.all("SELECT interaction_id FROM upload")
            pressed = await press_forged(lab, f"ds:0:hub_download:{question[0]}", lab.ana)
            assert "Only managers" in pressed
            role = lab.channel.guild.create_role("deputy", permissions=discord.Permissions(manage_guild=True))
            other = lab.channel.guild.add_member(lab.env.create_user("cho"), roles=[role])
            assert "This upload is finished" in await press_forged(lab, f"ds:0:hub_download:{question[0]}", other)
            assert await lab.app.services.datasets.search(lab.channel.guild.id) == []
            assert list((data_dir / "incoming").glob("*")) == []
            assert set(lab.refusals()) == {DatasetRefused}


async def test_nothing_is_downloaded_where_the_configuration_does_not_allow_it(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, hub_answers(NAME, FILES), is_on=False) as env:
        async with world(data_dir, **env) as lab:
            assert "hub = true" in answer(await ask(lab, lab.add_manager()))
            assert lab.refusals() == [DatasetRefused]


async def test_a_download_that_a_restart_interrupts_is_made_by_the_next_bot(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, is_free = hub_answers(NAME, FILES), threading.Event()

    def slow(answer: Answer) -> Answer:
        def send(request: BaseHTTPRequestHandler) -> None:
            is_free.wait(60)
            answer(request)

        return send

    slowly = {path: slow(each) if "/resolve/" in path else each for path, each in answers.items()}
    with hub(monkeypatch, slowly) as env:
        async with first_bot(data_dir, **env) as lab:
            boss = lab.add_manager()
            question = shown(await ask(lab, boss))
            pressed = asyncio.create_task(press_download(boss, question))
            await until_async(lambda: is_tracked(lab))
            handlers = [task for task in asyncio.all_tasks() if "on_press" in task.get_name()]
            for task in (*handlers, pressed):
                task.cancel()
            await asyncio.wait([*handlers, pressed])
            assert len(handlers) == 1
            assert await lab.app.services.datasets.search(lab.channel.guild.id) == []
        is_free.set()
        async with next_bot(lab, data_dir, **env):
            assert "6 images kept" in await lab.until_shown("It is ready now")
            (dataset,) = await lab.app.services.datasets.search(lab.channel.guild.id)
            assert (dataset.name, dataset.owner_id) == ("pets", boss.id)
