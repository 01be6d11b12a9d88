"""Sends files of a job or dataset folder: whole, in ranges, or several as one zip that is written while it is sent.

Pages decide which files there are; nothing else in a folder has an address. A file's type is chosen by a list and never
by its content, so that no browser runs what a trainer or a member made.
"""

from __future__ import annotations

import asyncio
import io
import os
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import quote

from aiohttp import web

from trainer.exchange.files import FileInFolder

_PIECE_BYTES = 256 * 1024
#: A client that takes no piece for so long is gone, or wants to hold the connection.
_PIECE_S = 60.0
#: Types that browsers show and never run; all else is only offered as a download.
_SHOWN_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".toml": "text/plain; charset=utf-8",
    ".json": "text/plain; charset=utf-8",
}
_ANY_TYPE = "application/octet-stream"
#: What a page of a report may do on its own: show itself, with the images that are in it. It has no origin, so that
#: nothing in it reaches the pages or their links.
REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"


@dataclass(frozen=True, kw_only=True)
class ServedFile(FileInFolder):
    """A file that a page offers."""

    #: What a download is called; empty: it is only shown.
    name: str = ""

    @property
    def bytes(self) -> int | None:
        """Its size; None if it is gone."""
        try:
            return self.locate().stat().st_size
        except OSError:
            return None


async def send_file(
    request: web.Request, file: ServedFile, *, is_download: bool = False, is_versioned: bool = False
) -> web.StreamResponse:
    """Answer GET or HEAD with a file, or the range of it that was asked for.

    Its address changes with its content if it `is_versioned`, and a browser need not ask again.

    aiohttp's `FileResponse` is not used: it gives a range of a file that has changed to who asks for the rest of the
    old one (`If-Range` with a tag), and waits for ever for a client that reads nothing.

    Raises:
        HTTPNotFound: It is gone.
    """
    kind = _SHOWN_TYPES.get(PurePosixPath(file.path).suffix.lower(), _ANY_TYPE)
    caching = "private, max-age=86400" if is_versioned else "private, no-cache"
    headers = {"Content-Type": kind, "Cache-Control": caching}
    if is_download or kind == _ANY_TYPE:
        headers["Content-Disposition"] = _attachment(file.name or PurePosixPath(file.path).name)
    return await _send(request, file, headers)


async def send_report(request: web.Request, file: ServedFile) -> web.StreamResponse:
    """Answer with a report that is one page with its images in it; it may load and run nothing.

    Raises:
        HTTPNotFound: It is gone.
    """
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": REPORT_POLICY}
    return await _send(request, file, {**headers, "Cache-Control": "private, no-cache"})


async def send_zip(request: web.Request, name: str, files: Sequence[ServedFile]) -> web.StreamResponse:
    """Answer with a zip of files under their names; it is written while it is sent, and never lies on the disk."""
    headers = {"Content-Type": "application/zip", "Content-Disposition": _attachment(name)}
    response = web.StreamResponse(headers=headers)
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    pieces = _zip_pieces(files)
    try:
        await response.prepare(request)
        while piece := await _next(pieces):
            await _write(response, piece)
        await response.write_eof()
    finally:
        pieces.close()
    return response


async def _next(pieces: Generator[bytes]) -> bytes:
    """The next piece, empty at the end; a thread that makes it is waited for, so that the files can be closed."""
    task = asyncio.create_task(asyncio.to_thread(next, pieces, b""))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _send(request: web.Request, file: ServedFile, headers: dict[str, str]) -> web.StreamResponse:
    try:
        opened = await asyncio.to_thread(_open, file)
    except OSError as error:
        raise web.HTTPNotFound from error
    try:
        stat = os.fstat(opened.fileno())
        response = web.StreamResponse(headers=headers)
        tag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
        response.etag = tag
        changed_at = datetime.fromtimestamp(int(stat.st_mtime), UTC)
        response.last_modified = changed_at
        response.headers["Accept-Ranges"] = "bytes"
        if _is_known(request, tag, changed_at):
            response.set_status(304)
            await response.prepare(request)
            return response
        start, end = _range(request, response, tag, stat.st_size, changed_at)
        response.content_length = end - start
        await response.prepare(request)
        if request.method != "HEAD":
            opened.seek(start)
            await _copy(opened, response, end - start)
            await response.write_eof()
        return response
    finally:
        opened.close()


def _open(file: ServedFile) -> BinaryIO:
    # What `locate` has found is no link; one that takes its place meanwhile is not followed.
    return os.fdopen(os.open(file.locate(), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def _is_known(request: web.Request, tag: str, changed_at: datetime) -> bool:
    """True if the client has this version (RFC 9110, 13.1.2 and 13.1.3)."""
    if request.if_none_match is not None:
        return any(each.value in ("*", tag) for each in request.if_none_match)
    return request.if_modified_since is not None and changed_at <= request.if_modified_since


def _range(
    request: web.Request, response: web.StreamResponse, tag: str, size: int, changed_at: datetime
) -> tuple[int, int]:
    """The bytes that are sent, from and to, with the status and header of such an answer.

    A range that is malformed, of several parts, or of another version is ignored (RFC 9110, 13.1.5 and 14.2).
    """
    if wanted := request.headers.get("If-Range"):
        is_tag = wanted.startswith(('"', "W/"))
        if not (wanted == f'"{tag}"' if is_tag else request.if_range == changed_at):
            return 0, size
    try:
        asked = request.http_range
    except ValueError:
        return 0, size
    if asked.start is None:
        return 0, size
    start = max(size + asked.start, 0) if asked.start < 0 else asked.start
    if start >= size:
        response.set_status(416)
        response.headers["Content-Range"] = f"bytes */{size}"
        return 0, 0
    end = size if asked.stop is None else min(asked.stop, size)
    response.set_status(206)
    response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return start, end


async def _copy(opened: BinaryIO, response: web.StreamResponse, count: int) -> None:
    while count and (piece := await asyncio.to_thread(opened.read, min(_PIECE_BYTES, count))):
        await _write(response, piece)
        count -= len(piece)


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    try:
        async with asyncio.timeout(_PIECE_S):
            await response.write(piece)
    except TimeoutError as error:
        raise ConnectionResetError("the client takes nothing any more") from error


def _attachment(name: str) -> str:
    """`Content-Disposition` of a download (RFC 6266), whatever its name is."""
    plain = "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "-_." else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


class _Sink(io.RawIOBase):
    """Takes what is written, and cannot go back: the zip gets its sizes and checksums after each file."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _zip_pieces(files: Sequence[ServedFile]) -> Generator[bytes]:
    """The bytes of a zip, not compressed: weights and images are so already."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            # Gone since the page was shown: the zip has the others.
            with suppress(FileNotFoundError):
                yield from _member_pieces(archive, sink, file)
    yield sink.take()


def _member_pieces(archive: zipfile.ZipFile, sink: _Sink, file: ServedFile) -> Iterator[bytes]:
    with _open(file) as opened:
        stat = os.fstat(opened.fileno())
        changed_at = max(datetime.fromtimestamp(stat.st_mtime, UTC), datetime(1980, 1, 1, tzinfo=UTC))
        member = zipfile.ZipInfo(file.name or file.path, changed_at.timetuple()[:6])
        # It decides whether sizes of 64 bits are needed.
        member.file_size = stat.st_size
        member.external_attr = 0o644 << 16
        with archive.open(member, "w") as target:
            while piece := opened.read(_PIECE_BYTES):
                target.write(piece)
                yield sink.take()
