"""`python -m bot doctor` finds what is missing, against a Discord API on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.config import Config, ModelSettings, StorageSettings, TrainerSettings, WebSettings
from bot.db import DATABASE_FILE, open_db
from bot.doctor import (
    Mark,
    check_confinement,
    check_data_folder,
    check_database,
    check_discord,
    check_models,
    check_operators,
    check_pages,
    check_python,
    check_self_test,
    check_trainer,
)
from bot.operations.queue_command import queue_text, read_queue
from bot.queue import JobStore, State
from bot.ui.discord_text import NEEDED_PERMISSIONS
from bot.ui.job_card import state_name
from tests.bot.conftest import Submit
from tests.bot.fakes import serve
from trainer.protocol.devices import Outcome, SelfTestReport, SelfTestResult
from trainer.protocol.text import speaking

TOKEN = {"DARKROOM_TOKEN": "good"}


class FakeDiscord:
    """The responses that the doctor requests."""

    def __init__(self) -> None:
        self.guilds: list[dict[str, Any]] = [{"id": "7", "name": "Lab", "permissions": str(NEEDED_PERMISSIONS.value)}]
        self.url = ""

    async def me(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"] != "Bot good":
            return web.json_response({"message": "401: Unauthorized"}, status=401)
        return web.json_response({"id": "1", "username": "darkroom"})

    async def my_guilds(self, _: web.Request) -> web.Response:
        return web.json_response(self.guilds)


@pytest.fixture
async def discord_api() -> AsyncIterator[FakeDiscord]:
    fake = FakeDiscord()
    async with serve(web.get("/users/@me", fake.me), web.get("/users/@me/guilds", fake.my_guilds)) as fake.url:
        yield fake


async def results(environ: dict[str, str], api: str, config: Config | None = None) -> list[str]:
    return [str(finding) async for finding in check_discord(config or Config(), environ, api)]


async def test_a_good_token_and_all_permissions_are_fine(discord_api: FakeDiscord) -> None:
    lines = await results(TOKEN, discord_api.url)
    assert "✓ Discord accepts the token: the bot is darkroom" in lines
    assert "✓ server “Lab”: all permissions" in lines
    assert not any(line.startswith(Mark.WRONG) for line in lines)


async def test_a_missing_permission_is_named_with_a_link_that_grants_it(discord_api: FakeDiscord) -> None:
    discord_api.guilds[0]["permissions"] = str(NEEDED_PERMISSIONS.value & ~(1 << 15))
    line = (await results(TOKEN, discord_api.url))[-1]
    assert line.startswith("✗ server “Lab”: missing Attach Files")
    assert "client_id=1" in line


async def test_a_refused_token_is_found(discord_api: FakeDiscord) -> None:
    assert (await results({"DARKROOM_TOKEN": "bad"}, discord_api.url))[0].startswith("✗ Discord refuses the token")


async def test_a_missing_token_is_found_without_a_request() -> None:
    assert (await results({}, "http://127.0.0.1:1"))[0].startswith("✗ Discord token: DARKROOM_TOKEN")


async def test_being_offline_is_found() -> None:
    assert (await results(TOKEN, "http://127.0.0.1:1"))[0].startswith("✗ Discord cannot be reached")


async def test_a_server_without_the_bot_is_found(discord_api: FakeDiscord) -> None:
    config = Config(discord=Config().discord.model_copy(update={"guild_ids": (7, 8)}))
    assert any("not in the server 8" in line for line in await results(TOKEN, discord_api.url, config))
    discord_api.guilds = []
    assert any("the bot is in no server" in line for line in await results(TOKEN, discord_api.url))


async def test_several_servers_without_operators_are_noted(discord_api: FakeDiscord) -> None:
    several = Config(discord=Config().discord.model_copy(update={"guild_ids": (7, 8)}))
    listed = Config(discord=several.discord.model_copy(update={"operator_ids": (5,)}))
    (found,) = check_operators(several, several.discord.guild_ids)
    assert str(found).startswith("! the bot serves several servers and discord.operator_ids is empty")
    assert not list(check_operators(listed, listed.discord.guild_ids))
    assert not list(check_operators(Config(), ()))
    assert not list(check_operators(Config(), (7, 7)))
    # Without servers in the config: those that invited it.
    assert not any("operator_ids" in line for line in await results(TOKEN, discord_api.url))
    discord_api.guilds.append(discord_api.guilds[0] | {"id": "8"})
    assert any("operator_ids" in line for line in await results(TOKEN, discord_api.url))
    named = Config(discord=Config().discord.model_copy(update={"guild_ids": (7,)}))
    assert not any("operator_ids" in line for line in await results(TOKEN, discord_api.url, named))


@pytest.mark.parametrize(
    ("url", "marks"),
    [("", []), ("https://darkroom.example.org", [Mark.FINE]), ("http://192.0.2.7:8742", [Mark.NOTE])],
)
def test_pages_without_encryption_are_noted(url: str, marks: list[Mark]) -> None:
    config = Config(web=WebSettings(port=8742 if url else 0, public_url=url))
    assert [result.mark for result in check_pages(config)] == marks


def test_each_model_is_searched_where_it_would_come_from(tmp_path: Path) -> None:
    folder, cache = tmp_path / "sd15", tmp_path / "hub"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    for name, tensor in (("xl", "conditioner.embedders.0.a"), ("lora", "lora_unet_a.lora_up.weight")):
        header = json.dumps({tensor: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "hollow").mkdir()
    (cache / "models--owner--cached").mkdir(parents=True)
    sources = {
        "tiny": "tiny",
        "folder": str(folder),
        "file": str(tmp_path / "xl.safetensors"),
        "lora": str(tmp_path / "lora.safetensors"),
        "hollow": str(tmp_path / "hollow"),
        "gone": str(tmp_path / "gone.safetensors"),
        "cached": "owner/cached",
        "hub": "owner/other",
    }
    config = Config(models=ModelSettings(sources=sources), storage=StorageSettings(data_dir=tmp_path / "data"))
    found = list(check_models(config, {"HF_HUB_CACHE": str(cache)}))
    wrong = [Mark.WRONG] * 3
    assert [finding.mark for finding in found] == [*[Mark.FINE] * 3, *wrong, Mark.FINE, Mark.NOTE]
    assert "SDXL, 1024 px" in found[2].text


def test_a_vae_that_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "vae.safetensors").touch()
    sources = dict.fromkeys(["own", "lost", "hub", "tiny"], "tiny")
    vaes = {"own": str(tmp_path / "vae.safetensors"), "lost": str(tmp_path / "gone.safetensors"), "hub": "owner/vae"}
    found = [
        each
        for each in check_models(Config(models=ModelSettings(sources=sources, vaes=vaes)), {})
        if "VAE" in each.text
    ]
    assert [(each.mark, "lost" in each.text) for each in found] == [(Mark.WRONG, True)]


def test_an_unwritable_data_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [finding.mark for finding in check_data_folder(tmp_path / "file" / "data")] == [Mark.WRONG]


def test_an_old_python_is_found() -> None:
    assert check_python((3, 10)).mark is Mark.WRONG
    assert check_python((3, 11)).mark is Mark.FINE


@pytest.mark.parametrize(
    ("barriers", "mark"), [("network processes", Mark.FINE), ("network", Mark.NOTE), ("", Mark.NOTE)]
)
@pytest.mark.skipif(sys.platform != "linux", reason="Linux confines processes")
async def test_what_this_kernel_cannot_confine_is_noted(
    monkeypatch: pytest.MonkeyPatch, barriers: str, mark: Mark
) -> None:
    monkeypatch.setattr("bot.doctor.confined", lambda argv: [sys.executable, "-c", f"print({barriers!r})", *argv])

    assert (await check_confinement()).mark is mark


async def test_an_existing_database_is_checked(tmp_path: Path) -> None:
    config = Config(storage=StorageSettings(data_dir=tmp_path))
    database = tmp_path / DATABASE_FILE
    assert ["no database yet" in str(finding) for finding in [one async for one in check_database(config)]] == [True]
    async with open_db(database):
        (finding,) = [one async for one in check_database(config)]
    assert finding.mark is Mark.FINE
    assert "no jobs yet; intact" in finding.text
    database.write_bytes(b"garbage" * 5000)
    (finding,) = [one async for one in check_database(config)]
    assert finding.mark is Mark.WRONG
    assert "is damaged" in finding.text


async def test_the_states_of_jobs_are_in_the_language_of_the_setup(
    store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bot.doctor.DATABASE_FILE", "darkroom.sqlite")
    monkeypatch.setattr("bot.operations.queue_command.DATABASE_FILE", "darkroom.sqlite")
    await submit()
    config = Config(storage=StorageSettings(data_dir=tmp_path / "data"))
    with speaking("zh_CN"):
        (finding,) = [one async for one in check_database(config)]
        lines = (finding.text, queue_text(await read_queue(config)))
        name = state_name(State.QUEUED)
    assert not name.isascii()
    for text in lines:
        assert name in text
        assert "queued" not in text


@pytest.mark.parametrize(
    ("answer", "mark", "text"),
    [
        (
            '{"gpus": [{"id": "GPU-1", "name": "RTX 4090", "memory_bytes": 25769803776}]}',
            Mark.FINE,
            "RTX 4090, 24.0 GiB",
        ),
        ('{"problem": "The driver is too old."}', Mark.NOTE, "no GPU that torch can use: The driver is too old."),
    ],
)
async def test_the_trainer_is_queried_for_gpus(tmp_path: Path, answer: str, mark: Mark, text: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n[ \"$3\" = devices ] && echo '{answer}'\nexit 0\n")
    python.chmod(0o755)
    config = Config(trainer=TrainerSettings(python=str(python)))
    *_, last = [one async for one in check_trainer(config, {"PATH": "/bin"})]
    assert last.mark is mark
    assert text in last.text


@pytest.mark.parametrize(
    ("script", "mark", "text"),
    [
        ('echo "$REPORT" > "$6"', Mark.FINE, "self-test: 1 kinds of training are right on RTX 4090"),
        ('echo "$REPORT" | sed s/passed/failed/ > "$6"; exit 4', Mark.WRONG, "trained on RTX 4090, wrong: bf16 (off)"),
        ("echo no torch >&2; exit 1", Mark.WRONG, "the trainer's self-test failed: no torch"),
    ],
)
async def test_the_trainer_tests_itself(tmp_path: Path, script: str, mark: Mark, text: str) -> None:
    results = (
        SelfTestResult(name="bf16", outcome=Outcome.PASSED, note="off"),
        SelfTestResult(name="fp16", outcome=Outcome.UNAVAILABLE, note="needs a GPU"),
    )
    report = SelfTestReport(device="RTX 4090", torch="2.13.0", free_bytes=0, results=results)
    python = tmp_path / "python"
    # The arguments: -m trainer selftest --quick --json FILE.
    python.write_text(f"#!/bin/sh\nREPORT='{report.model_dump_json()}'\n{script}\n")
    python.chmod(0o755)
    config = Config(trainer=TrainerSettings(python=str(python)))
    found = await check_self_test(config, {"PATH": "/bin:/usr/bin"})
    assert found.mark is mark
    assert text in found.text


def test_a_bot_with_only_the_toy_model_is_told_to_add_a_real_one() -> None:
    *_, note = check_models(Config(), {})
    assert (note.mark, "models add" in str(note)) == (Mark.NOTE, True)
    named = Config(models=ModelSettings(default="tiny"))
    assert [result.mark for result in check_models(named, {})] == [Mark.FINE]
