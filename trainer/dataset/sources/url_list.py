"""A text file of addresses: one http(s) URL a line, its caption behind a tab or space, `#` before a comment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from threading import Lock
from typing import Self
from urllib.parse import unquote, urlsplit

from trainer.dataset.archives import RefusedError
from trainer.dataset.captions.caption_sources import CaptionError, clean, decode_text
from trainer.dataset.entry import Entry, Told
from trainer.dataset.limits import Limits
from trainer.dataset.names import printable
from trainer.dataset.sources.download import download
from trainer.protocol.report import RefusalKind

EXTENSIONS = (".txt", ".urls", ".url", ".list", ".csv", ".tsv", "")

_LINE = re.compile(r"(https?://[^\s,;]\S*?)(?:\s*[\t,;]\s*|\s+|$)(.*)", re.IGNORECASE)
#: Downloads under way at once: servers mind more, and one waits for another's latency.
_AT_ONCE = 6


@dataclass(frozen=True, kw_only=True)
class Address:
    """One line of a list."""

    line: int
    url: str
    caption: str


def parse_list(data: bytes) -> tuple[Address, ...]:
    """The addresses of a list; empty where any line that is no comment is something else."""
    try:
        lines = decode_text(data).splitlines()
    except CaptionError:
        return ()
    found: list[Address] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip().strip("\ufeff")
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            return ()
        found.append(Address(line=number, url=match[1], caption=clean(match[2].strip('"'))))
    return tuple(found)


class UrlList:
    """Downloads of one list: a few at once, ahead of the reader, each kept until it is read."""

    def __init__(self, addresses: tuple[Address, ...], limits: Limits) -> None:
        self._addresses = addresses
        self._limits = limits
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="download")
        self._under_way: dict[int, Future[bytes]] = {}
        self._taken: set[int] = set()
        self._received_bytes = 0
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def entries(self, label: str, scope: int) -> Iterator[Entry]:
        """An entry for each address, named by its line and what the address ends in."""
        for place, address in enumerate(self._addresses):
            name = PurePosixPath(unquote(urlsplit(address.url).path)).name or "download"
            path = f"{address.line} {printable(name)[:100]}"
            told = Told(caption=address.caption)
            read = partial(self._read, place)
            yield Entry(source=f"{label}!{path}", path=path, scope=scope, read=read, told=told)

    def _read(self, place: int) -> bytes:
        for ahead in range(place, min(place + _AT_ONCE, len(self._addresses))):
            if ahead not in self._taken:
                self._taken.add(ahead)
                self._under_way[ahead] = self._pool.submit(self._fetch, self._addresses[ahead].url)
        future = self._under_way.pop(place, None)
        # Whoever reads a second time waits for a second download.
        return future.result() if future is not None else self._fetch(self._addresses[place].url)

    def _fetch(self, url: str) -> bytes:
        with self._lock:
            left = self._limits.max_downloaded_bytes - self._received_bytes
        if left <= 0:
            most = self._limits.max_downloaded_bytes / 2**30
            raise RefusedError(RefusalKind.TOO_LARGE, f"the list was downloaded up to {most:.1f} GiB, and no further")
        data = download(url, self._limits)
        with self._lock:
            self._received_bytes += len(data)
        return data


def list_refusal(addresses: tuple[Address, ...], limits: Limits) -> RefusedError | None:
    """Why a list is not downloaded, if so."""
    if not limits.allow_downloads:
        reason = "it is a list of addresses, and downloading is switched off here"
        return RefusedError(RefusalKind.UNSUPPORTED, reason)
    if len(addresses) > limits.max_downloads:
        reason = f"it lists {len(addresses):,} addresses; at most {limits.max_downloads:,} are downloaded"
        return RefusedError(RefusalKind.TOO_MANY, reason)
    return None
