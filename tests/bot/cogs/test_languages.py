"""Each person is answered in their language, and each server reads posts in its own."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import discord
import pytest
import simcord.interactions

from bot.app.compose import compose
from bot.db import open_db
from bot.errors import NotYourDataset, NotYourJob
from bot.languages import LOCALES, Languages
from tests.bot.cogs.conftest import answer, config_for, world
from tests.bot.cogs.dataset_helpers import press
from tests.bot.cogs.test_job_buttons import SLOW


def interaction(user: int = 1, locale: str = "en-US", guild_locale: str = "en-US") -> Any:
    return SimpleNamespace(
        user=SimpleNamespace(id=user),
        guild_id=7,
        locale=discord.Locale(locale),
        guild_locale=discord.Locale(guild_locale),
    )


async def test_the_locale_of_discord_is_remembered_until_a_language_is_chosen(tmp_path: Path) -> None:
    async with open_db(tmp_path / "darkroom.db") as db:
        languages = Languages(db)
        await languages.load()
        assert languages.of(interaction(locale="zh-CN")) == "zh_CN"
        assert (languages.of_person(1), languages.of_server(7)) == ("en", "en")
        await languages.remember(interaction(locale="zh-CN", guild_locale="zh-CN"))
        assert (languages.of_person(1), languages.of_server(7)) == ("zh_CN", "zh_CN")

        await languages.choose("en", person=1)
        await languages.choose("en", server=7)
        assert languages.of(interaction(locale="zh-CN")) == "en"
        await languages.remember(interaction(locale="zh-CN", guild_locale="zh-CN"))

        restarted = Languages(db)
        await restarted.load()
        assert (restarted.of_person(1), restarted.of_server(7)) == ("en", "en")
        await restarted.choose("", person=1)
        assert restarted.of(interaction(locale="zh-CN")) == "zh_CN"


async def test_every_description_is_translated_and_within_the_limits_of_discord(data_dir: Path) -> None:
    async with compose(config_for(data_dir)) as app, app.new_client() as client:
        await client.add_commands()
        commands = (await client.command_sync(1)).commands
        untranslated: list[str] = []
        long: list[str] = []

        def look(part: dict[str, Any], path: str) -> None:
            for locale in LOCALES:
                shown = part.get("description_localizations", {}).get(locale.value)
                if part.get("description") and shown is None:
                    untranslated.append(f"{path}: {part['description']}")
                names = part.get("name_localizations", {})
                long.extend(text for text in (shown, names.get(locale.value)) if text is not None and len(text) > 100)
            for each in part.get("options", []):
                look(each, f"{path} {each['name']}")
            for choice in part.get("choices", []):
                long.extend(text for text in choice.get("name_localizations", {}).values() if len(text) > 100)

        for command in commands:
            look(command, command["name"])
    assert untranslated == []
    assert long == []


@pytest.fixture
def in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every member and server have Chinese as their language."""
    build = simcord.interactions.base_payload

    def chinese(*arguments: Any, **options: Any) -> Any:
        record, payload = build(*arguments, **options)
        return record, payload | {"locale": "zh-CN", "guild_locale": "zh-CN"}

    monkeypatch.setattr(simcord.interactions, "base_payload", chinese)


def english(text: str) -> list[str]:
    """Three or more English words in a row, outside of code, names of files and addresses."""
    plain = re.sub(r"`[^`]*`|“[^”]*”|<[^>]*>|\\S*[./_]\\S*|\\(\\S+\\)", " 、", text)
    return re.findall(r"[A-Za-z]+(?: [A-Za-z]+){2,}", plain)


@pytest.mark.usefixtures("in_chinese")
async def test_a_whole_training_is_told_in_chinese(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        asked = await lab.finetune(confirm=True)
        shown = [answer(asked)]
        await press(lab.ana, asked.response.message, "开始训练")
        await lab.until_shown("完成了")
        for command, options in (
            ("queue", {}),
            ("job status", {"id": "1"}),
            ("job history", {"id": "1"}),
            ("job list", {}),
            ("dataset list", {}),
            ("preset list", {}),
            ("help", {}),
            ("notify", {}),
        ):
            shown.append(answer(await lab.ana.slash(lab.channel, command, **options)))
        shown += lab.texts()
    assert [found for text in shown for found in english(text)] == []


@pytest.mark.usefixtures("in_chinese")
async def test_refusals_are_in_chinese(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        shown = [
            answer(await lab.ana.slash(lab.channel, "finetune")),
            answer(await lab.ana.slash(lab.channel, "job cancel", id="7")),
            answer(await lab.ana.slash(lab.channel, "dataset inspect", dataset="none")),
        ]
        assert lab.refusals()
    assert [found for text in shown for found in english(text)] == []
    assert all(re.search("[\u4e00-\u9fff]", text) for text in shown)


#: English that Chinese sentences keep: names of settings, presets and programs.
_NAMES = frozenset({"adamw", "constant", "fox", "lora", "px", "zip", "zkz"})


def english_words(text: str) -> set[str]:
    """Words in small letters that no Chinese sentence has: values which were put into it untranslated."""
    plain = re.sub(r"`[^`]*`|“[^”]*”|<[^>]*>|https?:\S+|/\w+(?: \w+)*(?: \w+:\S*)*|\w*[._]\w+", " ", text)
    return set(re.findall(r"(?<![A-Za-z])[a-z]{3,}(?![A-Za-z])", plain)) - _NAMES


@pytest.mark.usefixtures("in_chinese")
async def test_values_within_sentences_are_in_chinese(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await lab.finetune(epochs=2)
        await lab.finetune(from_dataset="fox", epochs=3)
        manager = lab.add_manager()
        shown = [
            answer(await lab.ben.slash(lab.channel, "job cancel", id="2")),
            answer(await lab.ben.slash(lab.channel, "dataset captions", dataset="fox")),
            answer(await lab.ben.slash(lab.channel, "dataset delete", dataset="fox")),
            answer(await manager.slash(lab.channel, "admin bump", id="2")),
            answer(await manager.slash(lab.channel, "admin health")),
        ]
        assert lab.refusals() == [NotYourJob, NotYourDataset, NotYourDataset]
    assert [found for text in shown if (found := english_words(text))] == []
