"""The process on a real wire: refused tokens, odd events, sessions that end, signals at any time."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.wire.conftest import archive
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord
from tests.wire.wire_faults import refuse_html
from tests.wire.wire_people import Person
from tests.wire.wire_state import JSON

pytestmark = pytest.mark.slow

SENTENCE = "Discord refuses the token in DARKROOM_TOKEN."


async def test_a_refused_token_is_one_sentence_and_status_2(discord: WireDiscord, offline_bot: WireBot) -> None:
    offline_bot.env["DARKROOM_TOKEN"] = "another"
    await offline_bot.start()
    assert await offline_bot.ended() == 2
    assert SENTENCE in offline_bot.log
    assert "Traceback" not in offline_bot.log


async def test_a_token_that_is_reset_later_ends_the_bot_likewise(
    discord: WireDiscord, bot: WireBot, ana: Person
) -> None:
    discord.token = "another"
    await discord.gateway.close(4004, is_resumable=False)
    assert await bot.ended() == 2
    assert SENTENCE in bot.log
    assert "ExceptionGroup" not in bot.log


async def test_a_message_that_is_refused_for_the_token_ends_the_bot(discord: WireDiscord, bot: WireBot) -> None:
    # The gateway does not notice that a token was reset.
    asked = await Person(discord, discord.add_member("ana")).slash(
        "finetune", dataset=archive(), confirm=False, epochs=1
    )
    await discord.until(lambda: asked.callbacks)
    discord.token = "another"
    assert await bot.ended(60) == 2
    assert SENTENCE in bot.log


async def test_the_page_of_a_proxy_says_nothing_about_the_token(discord: WireDiscord, offline_bot: WireBot) -> None:
    with discord.faults.on("GET", "/users/@me", refuse_html(401), times=1):
        await offline_bot.start()
        await offline_bot.until_online()


def without(*keys: str) -> Callable[[JSON], JSON]:
    return lambda data: {key: value for key, value in data.items() if key not in keys}


async def test_an_event_that_cannot_be_read_costs_that_event(discord: WireDiscord, bot: WireBot, ana: Person) -> None:
    asked = await ana.slash("queue")
    await discord.until(lambda: asked.is_settled)
    thread = discord.add_thread("job")
    strange: list[tuple[str, Any]] = [
        ("INTERACTION_CREATE", without("attachment_size_limit")(ana.payload(asked))),
        ("INTERACTION_CREATE", without("token")(ana.payload(asked))),
        ("THREAD_CREATE", thread.to_json() | {"parent_id": None}),
        ("CHANNEL_UPDATE", without("name")(discord.channel.to_json())),
        ("CHANNEL_CREATE", []),
        ("GUILD_ROLE_UPDATE", {"guild_id": str(discord.guild.id)}),
        ("GUILD_CREATE", {"id": "no number"}),
        ("SOMETHING_NEW", {"a": 1}),
    ]
    for event, data in strange:
        await discord.gateway.dispatch(event, data)
    asked = await ana.slash("queue")
    await discord.until(lambda: asked.is_settled)
    assert len(discord.gateway.identified_at) == 1
    assert bot.log.count("event was skipped") == len(strange) - 1


async def test_a_session_that_cannot_begin_is_begun_again(discord: WireDiscord, offline_bot: WireBot) -> None:
    ready = discord._ready
    broken = iter([True])

    def ready_once_broken() -> tuple[JSON, list[JSON]]:
        payload, guilds = ready()
        return (without("user")(payload), guilds) if next(broken, False) else (payload, guilds)

    discord.gateway._ready = ready_once_broken
    await offline_bot.start()
    await offline_bot.until_online()
    assert len(discord.gateway.identified_at) == 2


async def test_a_first_connection_that_fails_is_tried_again(discord: WireDiscord, offline_bot: WireBot) -> None:
    discord.gateway.refuse_status = 503
    await offline_bot.start()
    await discord.until(lambda: "no connection to Discord" in offline_bot.log)
    discord.gateway.refuse_status = 0
    await offline_bot.until_online()


async def test_sessions_that_end_at_once_begin_again_with_growing_pauses(discord: WireDiscord, bot: WireBot) -> None:
    for number in range(3):
        await discord.gateway.close(4011, is_resumable=False)
        await discord.until(lambda: len(discord.gateway.identified_at) == number + 2, 30)  # noqa: B023
    times = discord.gateway.identified_at
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[2] > 1.5 * pauses[1] > 2.5


async def test_a_dropped_connection_is_resumed_and_nothing_is_missed(
    discord: WireDiscord, bot: WireBot, ana: Person
) -> None:
    discord.gateway.cut()
    asked = await ana.slash("queue")
    await discord.until(lambda: discord.gateway.resumed_at)
    await discord.until(lambda: asked.callbacks)
    await discord.gateway.ask_reconnect()
    await discord.until(lambda: len(discord.gateway.resumed_at) == 2)
    await discord.gateway.invalidate()
    await discord.until(lambda: len(discord.gateway.identified_at) == 2)
    asked = await ana.slash("queue")
    await discord.until(lambda: asked.is_settled)


@pytest.mark.parametrize(
    ("number", "waits_s"), [(signal.SIGTERM, (0.0, 0.2, 0.5, 1.0, 2.0)), (signal.SIGINT, (0.2, 2.0))]
)
async def test_a_signal_at_any_time_of_the_start_ends_with_status_0(
    discord: WireDiscord, tmp_path: Path, number: signal.Signals, waits_s: Sequence[float]
) -> None:
    # A fresh process, whose imports take a second.
    bot = WireBot(discord, tmp_path)
    try:
        for wait_s in waits_s:
            await bot.start()
            assert bot.process is not None
            process = psutil.Process(bot.process.pid)
            await discord.until(lambda: catches(process.pid, signal.SIGTERM))  # noqa: B023
            # Of the interpreter and little else; the bot's imports take a second.
            assert sum(process.cpu_times()[:2]) < 0.3
            await asyncio.sleep(wait_s)
            assert await bot.stop(number) == 0, f"after {wait_s} s\n{bot.log[-2000:]}"
    finally:
        await bot.close()
    assert "Traceback" not in bot.log


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)
