"""The commands that Discord lists are the bot's: per application and scope, tried until they are, none twice."""

from __future__ import annotations

import pytest

from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord
from tests.wire.wire_faults import refuse, refuse_html

pytestmark = pytest.mark.slow

COMMANDS = ["admin", "dataset", "finetune", "help", "job", "notify", "preset", "queue", "study"]


def assert_listed_once(discord: WireDiscord) -> None:
    listed = discord.listed()
    assert set(COMMANDS) <= set(listed)
    assert len(set(listed)) == len(listed)


async def test_a_first_sync_that_fails_is_tried_again(discord: WireDiscord, offline_bot: WireBot) -> None:
    with discord.faults.on("PUT", "/applications/*/commands", refuse(503), times=1):
        await offline_bot.start()
        await offline_bot.until_online()
    # The bot stores what it wrote after Discord has it.
    await discord.until(lambda: offline_bot.rows("SELECT 1 FROM setting WHERE name LIKE 'commands%'"))
    assert_listed_once(discord)
    # An unchanged bot does not write them again.
    assert await offline_bot.stop() == 0
    await offline_bot.start()
    await offline_bot.until_online()
    assert len(discord.syncs) == 1
    # Commands that were deleted at Discord are noticed.
    assert await offline_bot.stop() == 0
    discord.commands.clear()
    await offline_bot.start()
    await offline_bot.until_online()
    await discord.until(lambda: len(discord.syncs) == 2)
    # Another application on the same data folder gets its own.
    assert await offline_bot.stop() == 0
    discord.reset_application()
    await offline_bot.start()
    await offline_bot.until_online()
    await discord.until(lambda: len(discord.syncs) == 3)
    assert_listed_once(discord)


async def test_a_server_that_invites_the_bot_later_gets_its_commands(
    discord: WireDiscord, offline_bot: WireBot
) -> None:
    later = discord.add_guild("later", has_bot=False)
    offline_bot.configure({"discord": {"guild_ids": [discord.guild.id, later.id]}})
    await offline_bot.start()
    await offline_bot.until_online()
    assert_listed_once(discord)
    assert discord.listed(later) == []
    await discord.invite(later)
    await discord.until(lambda: discord.listed(later))
    # Discord forgets the commands of a server that the bot leaves.
    await discord.kick(later)
    await discord.invite(later)
    await discord.until(lambda: discord.listed(later))
    assert "Traceback" not in offline_bot.log


async def test_no_command_is_listed_twice_when_the_servers_change(discord: WireDiscord, offline_bot: WireBot) -> None:
    second = discord.add_guild("second")
    for guilds in ([], [discord.guild.id], [second.id, discord.guild.id], [second.id], []):
        offline_bot.configure({"discord": {"guild_ids": guilds}})
        await offline_bot.start()
        await offline_bot.until_online()
        for guild in (discord.guild, second):
            is_served = not guilds or guild.id in guilds
            wanted = COMMANDS if is_served else []
            await discord.until(
                lambda: [name for name in discord.listed(guild) if name in COMMANDS] == wanted,  # noqa: B023
                what=f"{guilds}: {discord.listed(guild)}",
            )
        assert await offline_bot.stop() == 0


async def test_commands_that_an_unknown_data_folder_left_are_cleared(
    discord: WireDiscord, offline_bot: WireBot
) -> None:
    left = [{"id": "1", "type": 1, "name": "finetune", "description": "Old.", "version": "1"}]
    discord.commands[discord.guild.id] = left
    await offline_bot.start()
    await offline_bot.until_online()
    await discord.until(lambda: not discord.commands[discord.guild.id])
    assert_listed_once(discord)


async def test_the_sync_command_tells_the_truth(discord: WireDiscord, offline_bot: WireBot) -> None:
    status, report = await offline_bot.run("sync", "--dry-run")
    assert status == 1
    assert "all servers: changed" in report
    assert discord.syncs == []
    assert (await offline_bot.run("sync"))[0] == 0
    assert (await offline_bot.run("sync", "--dry-run"))[0] == 0
    discord.commands.clear()
    assert (await offline_bot.run("sync", "--dry-run"))[0] == 1
    assert (await offline_bot.run("sync"))[0] == 0
    assert_listed_once(discord)
    status, report = await offline_bot.run("sync", "--force")
    assert status == 0
    assert len(discord.syncs) == 3
    with discord.faults.on("GET", "/applications/*/commands", refuse(403, code=50001, message="Missing Access")):
        status, report = await offline_bot.run("sync")
        assert status == 1
        assert "Missing Access" in report
    with discord.faults.on("GET", "/users/@me", refuse_html(503)):
        status, report = await offline_bot.run("sync")
        assert status == 2
        assert "Discord cannot be reached" in report
    offline_bot.env["DARKROOM_TOKEN"] = "another"
    status, report = await offline_bot.run("sync")
    assert status == 2
    assert "Discord refuses the token" in report
    assert "Traceback" not in report
