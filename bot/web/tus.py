"""The tus protocol 1.0.0 for resumable uploads (https://tus.io/protocols/resumable-upload): core, creation, expiration,
checksum and termination, over the files of an upload link.

Own code: aiohttp-tus, the one implementation for aiohttp, has had no release since 2022, and has neither checksums,
expiration nor termination.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial

from aiohttp import web

from bot.datasets import ArrivingFile, PendingUpload
from bot.datasets.partial_file import BeyondItsEnd, Checksum
from bot.datasets.resumable_uploads import ChecksumMismatch, FileBusy, WrongOffset
from bot.errors import DiskAlmostFull, UploadClosed
from bot.web.links import LinkKind
from bot.web.site import Handler, Visit, page_of, upload_of
from trainer.protocol.text import N_, _, translate

VERSION = "1.0.0"
_EXTENSIONS = "creation,expiration,checksum,termination"
_CHUNK_TYPE = "application/offset+octet-stream"
#: What comes between an upload and its end, and passes: the status (460 is the checksum extension's), and why.
_FAILURES: dict[type[Exception], tuple[int, str]] = {
    WrongOffset: (409, N_("The file continues at another place. Ask how much has arrived.")),
    ChecksumMismatch: (460, N_("What arrived is not what was sent. Send it again.")),
    BeyondItsEnd: (413, N_("More bytes came than the file was to have.")),
    FileBusy: (423, N_("Another connection still sends this file. Try again in a moment.")),
    TimeoutError: (408, N_("Nothing arrived for a while. What had arrived is kept.")),
    DiskAlmostFull: (507, N_("The machine's disk is full. What has arrived is kept; try again when there is space.")),
}
#: The protocol demands SHA-1; our page sends SHA-256.
_DIGEST_BYTES = {"sha1": 20, "sha256": 32}
_MAX_METADATA = 4096
#: The names that clients give to a file's path, the best first: our page's, Uppy's, tus-js-client's and tuspy's.
_PATH_KEYS = ("relativePath", "filename", "name")


@dataclass(frozen=True, kw_only=True)
class TusVisit:
    """A visit to the files of an open upload."""

    visit: Visit
    upload: PendingUpload

    @property
    def request(self) -> web.Request:
        return self.visit.request

    def expires(self) -> dict[str, str]:
        """The header that says when an incomplete file is deleted."""
        at: datetime = self.visit.link.expires_at.astimezone(UTC)
        return {"Upload-Expires": format_datetime(at, usegmt=True)}


def tus_routes() -> list[web.RouteDef]:
    """Return the routes of the protocol; some clients can send POST only, and name the method in a header."""
    files, file = "/u/{token}/files", "/u/{token}/files/{file}"
    return [
        web.options(files, _options),
        web.options(file, _options),
        web.post(files, _of_upload(_create_file)),
        web.post(file, _by_header),
        *(web.route(method, file, handler) for method, handler in _METHODS.items()),
    ]


async def _options(request: web.Request) -> web.Response:
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": _EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(_DIGEST_BYTES),
    }
    return _answer(204, headers)


def _of_upload(handle: Callable[[TusVisit], Awaitable[web.StreamResponse]]) -> Handler:
    """Make a handler of a request of the version that is known, to an upload that is open."""
    return page_of(LinkKind.UPLOAD)(partial(_with_upload, handle))


async def _with_upload(handle: Callable[[TusVisit], Awaitable[web.StreamResponse]], visit: Visit) -> web.StreamResponse:
    if visit.request.headers.get("Tus-Resumable") != VERSION:
        return _refusal(412, _("This client speaks another version of the upload protocol (tus)."))
    try:
        upload = await upload_of(visit)
        if upload is None or not upload.is_open:
            raise UploadClosed
        return await handle(TusVisit(visit=visit, upload=upload))
    except UploadClosed as error:
        return _refusal(410, str(error))
    except tuple(_FAILURES) as error:
        status, sentence = next(known for kind, known in _FAILURES.items() if isinstance(error, kind))
        return _refusal(status, translate(sentence))


async def _create_file(at: TusVisit) -> web.StreamResponse:
    headers = at.request.headers
    size = _number(headers.get("Upload-Length"))
    if size is None:
        return _refusal(400, _("The upload does not say how large the file is (Upload-Length)."))
    text = headers.get("Upload-Metadata", "")
    metadata = _metadata(text)
    if metadata is None:
        return _refusal(400, _("The description of the file cannot be read (Upload-Metadata)."))
    path = next((metadata[key] for key in _PATH_KEYS if metadata.get(key)), "file")
    site = at.visit.site
    file = await site.resumable.add(
        at.upload,
        path,
        size,
        max_bytes=await site.max_upload_bytes(at.visit.visitor),
        client_key=metadata.get("key", ""),
        metadata=text,
    )
    location = at.visit.path("files", file.id)
    return _answer(201, {"Location": location, "Upload-Offset": str(file.offset), **at.expires()})


async def _state_of(at: TusVisit) -> web.StreamResponse:
    file = await _file(at)
    if file is None:
        return _refusal(404)
    headers = {"Upload-Offset": str(file.offset), "Upload-Length": str(file.bytes), **at.expires()}
    if file.metadata:
        headers["Upload-Metadata"] = file.metadata
    return _answer(200, headers)


async def _append_to(at: TusVisit) -> web.StreamResponse:
    headers = at.request.headers
    if headers.get("Content-Type") != _CHUNK_TYPE:
        return _refusal(415, _("The bytes of a file come as {type}.", type=_CHUNK_TYPE))
    offset = _number(headers.get("Upload-Offset"))
    if offset is None:
        return _refusal(400, _("The upload does not say where it continues (Upload-Offset)."))
    text = headers.get("Upload-Checksum")
    checksum = None if text is None else _checksum(text)
    if text is not None and checksum is None:
        return _refusal(400, _("The checksum cannot be read (Upload-Checksum)."))
    file = await _file(at)
    if file is None:
        return _refusal(404)
    end = await at.visit.site.resumable.append(file, offset, _pieces(at.request), checksum=checksum)
    if end == file.bytes:
        await at.visit.site.resumable.show(at.upload)
        await at.visit.site.links.extend(at.visit.link)
    return _answer(204, {"Upload-Offset": str(end), **at.expires()})


async def _remove(at: TusVisit) -> web.StreamResponse:
    file = await _file(at)
    if file is None:
        return _refusal(404)
    await at.visit.site.resumable.remove(file)
    await at.visit.site.resumable.show(at.upload)
    return _answer(204, {})


async def _file(at: TusVisit) -> ArrivingFile | None:
    return await at.visit.site.resumable.find(at.upload.interaction_id, at.request.match_info["file"])


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    while piece := await request.content.readany():
        yield piece


def _answer(status: int, headers: dict[str, str]) -> web.Response:
    return web.Response(status=status, headers={"Tus-Resumable": VERSION, **headers})


def _refusal(status: int, sentence: str = "") -> web.Response:
    """Refuse a request; what the client has sent with it is not read."""
    response = web.Response(status=status, text=f"{sentence}\n" if sentence else None)
    response.headers["Tus-Resumable"] = VERSION
    if status == 412:
        response.headers["Tus-Version"] = VERSION
    return response


def _number(text: str | None) -> int | None:
    """A count of bytes as it may stand in a header; None if it is none."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 15 else None


def _metadata(text: str) -> dict[str, str] | None:
    """Read `key base64,key base64,key`; None if it cannot be read."""
    if len(text) > _MAX_METADATA:
        return None
    found = {}
    for pair in text.split(",") if text.strip() else ():
        key, _space, value = pair.strip().partition(" ")
        try:
            found[key] = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return None
        if not key:
            return None
    return found


def _checksum(text: str) -> Checksum | None:
    """Read `sha256 base64`; None if it cannot be read, or is of an algorithm that is not known."""
    algorithm, _space, value = text.partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error:
        return None
    is_known = len(digest) == _DIGEST_BYTES.get(algorithm)
    return Checksum(algorithm=algorithm, digest=digest) if is_known else None


_METHODS = {"HEAD": _of_upload(_state_of), "PATCH": _of_upload(_append_to), "DELETE": _of_upload(_remove)}


async def _by_header(request: web.Request) -> web.StreamResponse:
    handler = _METHODS.get(request.headers.get("X-HTTP-Method-Override", "").upper())
    if handler is None:
        raise web.HTTPMethodNotAllowed("POST", list(_METHODS))
    return await handler(request)
