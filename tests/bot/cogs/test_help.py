"""`/help`, its buttons, and the message with which the bot introduces itself."""

from __future__ import annotations

import re
from pathlib import Path

import discord

from bot.ui.help_pages import PAGE_LABELS, HelpPage, help_page, welcome_post
from bot.ui.layout import weight
from tests.bot.cogs.conftest import World, answer, text_of, world
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged, shown_again
from trainer.protocol.text import translate

#: A command in a text, with what follows it: `/job extend`, `/finetune dataset:`.
COMMAND = re.compile(r"`/([a-z ]+)")


async def test_every_page_is_reached_by_its_button_in_one_message(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        shown = (await lab.ana.slash(lab.channel, "help")).response
        assert shown.ephemeral
        for page in HelpPage:
            if translate(PAGE_LABELS[page]) in buttons(shown):
                await press(lab.ana, shown.message, translate(PAGE_LABELS[page]))
            assert f"### {translate(PAGE_LABELS[page])}" in text_of(shown_again(lab, shown.message))
            # All but the one that is open.
            assert len(buttons(shown_again(lab, shown.message))) == len(HelpPage) - 1
        assert lab.channel.history() == []


async def test_the_commands_that_it_names_exist(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        known = {each.qualified_name for each in lab.env.bot.tree.walk_commands()}
        named = {name.strip() for page in HelpPage for text in texts_of(page) for name in COMMAND.findall(text)}
        assert len(named) > 15
        # An option may follow.
        assert {name for name in named if name not in known and name.rpartition(" ")[0] not in known} == set()


def texts_of(page: HelpPage) -> list[str]:
    return [item.content for item in help_page(page).layout.walk_children() if isinstance(item, discord.ui.TextDisplay)]


async def test_an_unknown_page_is_answered(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        assert "another version" in await press_forged(lab, "help:dance")
        assert "another version" in await press_forged(lab, "help:")


async def test_the_bot_introduces_itself_once_to_a_server_that_invites_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        client, guild = lab.env.bot, lab.env.bot.get_guild(lab.channel.guild.id)
        for _ in range(2):
            await client.on_guild_join(guild)
        await lab.until_shown("Hello!")
        assert len(await lab.app.db.all("SELECT 1 FROM outbox WHERE dedupe_key LIKE 'welcome:%'")) == 1
        (welcome,) = [each for each in lab.channel.history() if "Hello!" in text_of(each)]
        assert lab.mentions() == [[]]
        # A page is for the person who presses: the message stays as it is.
        result = await press(lab.ben, welcome, translate(PAGE_LABELS[HelpPage.MANAGE]))
        assert result.response.ephemeral
        assert "`/admin models`" in answer(result)
        assert "Hello!" in text_of(lab.channel.history()[0])


async def test_it_says_nothing_where_it_may_not_write(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await mute(lab)
        client, guild = lab.env.bot, lab.env.bot.get_guild(lab.channel.guild.id)
        await client.on_guild_join(guild)
        rows = await lab.app.db.all("SELECT 1 FROM outbox")
        assert list(rows) == []


async def mute(lab: World) -> None:
    guild = lab.env.backend.get_guild(lab.channel.guild.id)
    for role in guild.roles.values():
        role.permissions = discord.Permissions.none()
    client_guild = lab.env.bot.get_guild(lab.channel.guild.id)
    for role in client_guild.roles:
        role._permissions = 0


def test_all_pages_are_within_the_limits_of_discord() -> None:
    for content in (welcome_post(), *(help_page(page) for page in HelpPage)):
        parts, characters, size = weight(content.layout)
        assert parts <= 40
        assert characters <= 2500
        assert size <= 9000
