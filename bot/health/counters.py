"""What the connection to Discord went through since the bot started, counted where it happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import aiohttp

_TOO_MANY_REQUESTS = 429


class Counters:
    """Plain numbers of one process; made by the composition root and handed to whoever bumps or reads them."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.is_connected = False
        #: New sessions at the gateway, and old ones that went on without a loss.
        self.connects = 0
        self.resumes = 0
        self.disconnects = 0
        #: Seconds since the epoch; None while it never happened.
        self.disconnected_at: float | None = None
        #: Requests that Discord refused with 429; discord.py waits and sends them again.
        self.rate_limits = 0
        self.rate_limited_at: float | None = None
        #: 429 that came not from Discord but from what stands before it: this address is shut out for a while.
        self.blocks = 0

    def __repr__(self) -> str:
        connected = "connected" if self.is_connected else "not connected"
        return f"Counters({connected}, {self.resumes} resumes, {self.rate_limits} rate limits)"

    def connected(self) -> None:
        self.connects += 1
        self.is_connected = True

    def resumed(self) -> None:
        self.resumes += 1
        self.is_connected = True

    def disconnected(self) -> None:
        """discord.py says it again with each try to come back; only the first of them is a loss."""
        if self.is_connected:
            self.disconnects += 1
            self.disconnected_at = self._now()
        self.is_connected = False

    def rate_limited(self, *, is_block: bool) -> None:
        self.rate_limits += 1
        self.blocks += is_block
        self.rate_limited_at = self._now()

    def http_trace(self) -> aiohttp.TraceConfig:
        """For `discord.Client(http_trace=…)`: sees each answer of Discord's to the client, and to its interactions."""
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._ended)
        return trace

    async def _ended(self, _: aiohttp.ClientSession, __: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
        if end.response.status == _TOO_MANY_REQUESTS:
            # Discord's own answers come through a proxy and say so; discord.py tells the two apart in the same way.
            self.rate_limited(is_block="Via" not in end.response.headers)
