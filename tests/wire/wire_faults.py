"""Scripted faults: what happens to the next requests of a route, before or after their effect."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

CLOUDFLARE_PAGE = "<!DOCTYPE html><html><head><title>Access denied | Cloudflare</title></head><body>1020</body></html>"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to one request; make it by one of the functions below."""

    status: int = 0
    body: str = ""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    #: Wait before anything else; None: for ever.
    delay_s: float | None = 0.0
    #: The request is carried out.
    has_effect: bool = False
    #: The connection is cut instead of an answer.
    is_cut: bool = False

    async def apply(self, request: web.Request, handle: Callable[[web.Request], Any]) -> web.StreamResponse:
        """Answer a request, or raise."""
        if self.has_effect and self.is_cut:
            await handle(request)
        await wait(self.delay_s)
        if self.is_cut:
            transport = request.transport
            if transport is not None:
                transport.abort()
            raise ConnectionResetError("cut by the test")
        if self.has_effect:
            response: web.StreamResponse = await handle(request)
            return response
        return web.Response(
            status=self.status, body=self.body.encode(), content_type=self.content_type, headers=self.headers
        )


async def wait(delay_s: float | None) -> None:
    if delay_s is None:
        await asyncio.Event().wait()
    elif delay_s:
        await asyncio.sleep(delay_s)


def refuse(status: int, *, code: int = 0, message: str = "", via: bool = True, **fields: Any) -> Fault:
    """Refuse as Discord's API does: JSON with a code, behind its proxy (`Via`)."""
    body = {"message": message or f"{status}: refused", "code": code, **fields}
    return Fault(status=status, body=json.dumps(body), headers={"Via": "1.1 google"} if via else {})


def refuse_html(status: int, *, via: bool = False, body: str = CLOUDFLARE_PAGE) -> Fault:
    """Refuse as Cloudflare does, in front of Discord's API."""
    return Fault(status=status, body=body, content_type="text/html", headers={"Via": "1.1 google"} if via else {})


def rate_limit(retry_after: float, *, is_global: bool = False, code: int = 0, via: bool = True) -> Fault:
    """429 with `retry_after`; `via=False` is Cloudflare's ban. Code 30046: edits of a message older than an hour."""
    fault = refuse(
        429, code=code, message="You are being rate limited.", via=via, retry_after=retry_after,
        **{"global": is_global},
    )  # fmt: skip
    scope = "global" if is_global else "user"
    headers = fault.headers | {"Retry-After": str(int(retry_after) + 1), "X-RateLimit-Scope": scope}
    return Fault(status=429, body=fault.body, headers=headers | ({"X-RateLimit-Global": "true"} if is_global else {}))


def hang(seconds: float | None = None) -> Fault:
    """Take the request, do nothing, and never answer (or answer 504 after some seconds)."""
    return Fault(status=504, body="", content_type="text/html", delay_s=seconds)


def slow(seconds: float) -> Fault:
    """Carry the request out after some seconds."""
    return Fault(delay_s=seconds, has_effect=True)


def cut() -> Fault:
    """Close the connection without doing anything."""
    return Fault(is_cut=True)


def lose_answer(*, after_s: float | None = 0.0) -> Fault:
    """Carry the request out, then close the connection instead of answering (None: never close it either)."""
    return Fault(is_cut=True, has_effect=True, delay_s=after_s)


@dataclass
class Rule:
    """Which requests a fault meets; the first rule that matches wins."""

    method: str
    #: With `*`: "/channels/*/messages".
    path: str
    fault: Fault
    channel_id: int | None = None
    #: Only requests that carry files.
    with_files: bool = False
    #: How many requests it still meets; None: any number.
    left: int | None = None
    #: `time.monotonic` at which it ends.
    until: float = float("inf")
    chance: float = 1.0
    #: The times at which it met a request.
    hits: list[float] = field(default_factory=list)
    is_on: bool = True

    def stop(self) -> None:
        """Let requests through again."""
        self.is_on = False

    def __enter__(self) -> Rule:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def meets(self, method: str, path: str, *, has_files: bool = False) -> bool:
        """True if it takes this request; that counts."""
        if not self.is_on or self.left == 0 or time.monotonic() > self.until:
            return False
        if self.method not in {"*", method} or not fnmatch.fnmatchcase(path, self.path):
            return False
        if self.channel_id is not None and not path.startswith(f"/channels/{self.channel_id}/"):
            return False
        if self.with_files and not has_files:
            return False
        if random.random() > self.chance:
            return False
        self.left = None if self.left is None else self.left - 1
        self.hits.append(time.time())
        return True


class Faults:
    """The rules that are in force."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def on(
        self,
        method: str,
        path: str,
        fault: Fault,
        *,
        channel: int | None = None,
        with_files: bool = False,
        times: int | None = None,
        for_s: float | None = None,
        chance: float = 1.0,
    ) -> Rule:
        """Meet requests with a fault until `times` of them, `for_s` seconds, or `Rule.stop`; a rule is a context too.

        `path` is without `/api/v10` and may have `*`. Example: `on("POST", "/channels/*/messages", hang())`.
        """
        until = float("inf") if for_s is None else time.monotonic() + for_s
        rule = Rule(
            method, path, fault, channel_id=channel, with_files=with_files, left=times, until=until, chance=chance
        )
        self._rules.append(rule)
        return rule

    def of(self, method: str, path: str, *, has_files: bool = False) -> Fault | None:
        """The fault that a request meets."""
        self._rules = [rule for rule in self._rules if rule.is_on and rule.left != 0]
        return next((rule.fault for rule in self._rules if rule.meets(method, path, has_files=has_files)), None)

    def clear(self) -> None:
        """Let everything through."""
        for rule in self._rules:
            rule.stop()
        self._rules.clear()
