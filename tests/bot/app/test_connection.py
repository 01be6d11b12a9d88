"""Connections that end: the pauses between them, and errors that leave the bot as themselves."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import aiohttp
import discord
import pytest

from bot.app import connection
from bot.app.client import ReconnectBackoff
from bot.app.compose import App, _task_group, compose
from bot.app.connection import stay_connected
from bot.db.errors import DatabaseDamaged, FolderInUse
from bot.errors import TokenRefused
from tests.bot.cogs.conftest import config_for


class EndingClient:
    """A client whose connections end by what `endings` says: (seconds it was connected, error or None)."""

    def __init__(self, endings: list[tuple[float, BaseException | None]]) -> None:
        self.connected_for_s, self._error = endings.pop(0)
        self.is_ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_ended = True

    async def start(self, token: str) -> None:
        if self._error is not None:
            raise self._error

    def is_closed(self) -> bool:
        return self.is_ended

    def is_ready(self) -> bool:
        # As discord.py's after `close`.
        return False


async def pauses_of(*endings: tuple[float, BaseException | None], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses after these connections; the next one is refused for its token."""
    left = [*endings, (0.0, discord.LoginFailure("refused"))]
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    app = cast(App, SimpleNamespace(new_client=lambda: EndingClient(left), token_refused=asyncio.Event()))
    monkeypatch.setattr(connection, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    with pytest.raises(TokenRefused):
        await stay_connected(app, "token", "DARKROOM_TOKEN")
    return pauses


ERRORS: tuple[BaseException | None, ...] = (
    KeyError("attachment_size_limit"),
    TypeError("int() argument"),
    AttributeError("sequence"),
    aiohttp.ClientError(),
    ValueError("no JSON"),
    discord.GatewayNotFound(),
    None,
)


async def test_whatever_ends_a_connection_costs_a_pause_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = await pauses_of(*[(5.0, error) for error in ERRORS], monkeypatch=monkeypatch)
    assert pauses == [1, 2, 4, 8, 16, 32, 64]
    assert max(await pauses_of(*[(5.0, None)] * 20, monkeypatch=monkeypatch)) == 120


async def test_the_pause_is_short_again_after_a_minute_of_good_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = (5.0, KeyError("name")), (61.0, KeyError("name"))
    assert await pauses_of(bad, bad, bad, good, bad, good, good, monkeypatch=monkeypatch) == [1, 2, 4, 1, 2, 1, 1]


async def test_a_gateway_that_is_away_is_tried_at_least_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 100:
            raise ZeroDivisionError

    async with compose(config_for(tmp_path / "data")) as app, app.new_client() as client:
        client.ws = cast(Any, SimpleNamespace(sequence=1, session_id="a", gateway=None, open=False))
        monkeypatch.setattr(discord.client.DiscordWebSocket, "from_client", refuse)
        monkeypatch.setattr(discord.client, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
        with pytest.raises(ZeroDivisionError):
            await client.connect()
    assert 16 < max(pauses) <= 32
    assert pauses[0] <= 2


def test_the_pauses_are_short_again_after_a_minute_of_good_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    backoff = ReconnectBackoff()
    assert max(backoff.delay() for _ in range(50)) > 16
    now[0] += 32 + 61
    assert backoff.delay() <= 2


async def fails(error: BaseException) -> None:
    raise error


async def test_an_error_of_a_service_or_of_the_body_leaves_as_itself() -> None:
    refused = TokenRefused(token_env="DARKROOM_TOKEN")
    with pytest.raises(TokenRefused):
        async with _task_group([asyncio.sleep(60)]):
            raise refused
    with pytest.raises(ZeroDivisionError):
        async with _task_group([fails(ZeroDivisionError()), asyncio.sleep(60)]):
            await asyncio.sleep(60)


async def test_of_several_errors_the_one_that_can_be_explained_leaves(caplog: pytest.LogCaptureFixture) -> None:
    nested = BaseExceptionGroup("workers", [ValueError("odd"), FolderInUse(path=Path("data"))])
    with pytest.raises(FolderInUse), caplog.at_level(logging.ERROR):
        async with _task_group([fails(nested), asyncio.sleep(60)]):
            await asyncio.sleep(60)
    assert "another error" in caplog.text
    damaged: Any = DatabaseDamaged(path=Path("data"), finding="page 7")
    with pytest.raises(DatabaseDamaged):
        async with _task_group([fails(damaged)]):
            await asyncio.sleep(60)
