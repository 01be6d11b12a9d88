"""The upload protocol, request by request, on a real socket."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import io
import os
import shutil
import socket
import subprocess
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from tusclient.client import TusClient

from bot.datasets import ArrivingFile, ImportRequest, PendingUpload, UploadKind, partial_file
from bot.datasets.partial_file import PartialFile
from bot.queue.store.limits import RoleLimit
from bot.web import LinkKind
from tests.bot.conftest import CHANNEL, GUILD
from tests.bot.web.conftest import ANA, KnownVisitors, Pages

UPLOAD = 77
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}
CONTENT = bytes(range(256)) * 40


class Desk:
    """An open upload, and what a client sends to it."""

    def __init__(self, pages: Pages, page: str) -> None:
        self.pages = pages
        self.page = page

    async def send(self, method: str, url: str, headers: dict[str, str], data: Any = None) -> aiohttp.ClientResponse:
        async with self.pages.browser.request(method, url, headers=headers, data=data) as answer:
            await answer.read()
            return answer

    async def create(self, size: int, path: str = "a.png", **metadata: str) -> aiohttp.ClientResponse:
        named = {"relativePath": path, **metadata}
        text = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in named.items())
        headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": text}
        return await self.send("POST", f"{self.page}/files", headers)

    async def created(self, size: int, path: str = "a.png", **metadata: str) -> str:
        answer = await self.create(size, path, **metadata)
        assert answer.status == 201, await answer.text()
        return str(answer.url.with_path(urlsplit(answer.headers["Location"]).path))

    async def patch(self, url: str, offset: int, data: Any, **headers: str) -> aiohttp.ClientResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        # aiohttp warns of large bodies that are no files.
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        return await self.send("PATCH", url, {**BYTES, "Upload-Offset": str(offset), **named}, body)

    async def offset(self, url: str) -> int:
        answer = await self.send("HEAD", url, TUS)
        assert answer.status == 200
        return int(answer.headers["Upload-Offset"])

    async def files(self) -> list[ArrivingFile]:
        return await self.pages.site.resumable.files(UPLOAD)

    async def upload(self) -> PendingUpload:
        found = await self.pages.site.uploads.find(UPLOAD)
        assert found is not None
        return found


def checksum(data: bytes) -> str:
    return f"sha256 {base64.b64encode(hashlib.sha256(data).digest()).decode()}"


@pytest.fixture
async def desk(pages: Pages) -> Desk:
    upload = PendingUpload(
        interaction_id=UPLOAD,
        guild_id=GUILD,
        channel_id=CHANNEL,
        owner_id=ANA,
        kind=UploadKind.IMPORT,
        request=ImportRequest().model_dump_json(),
        title="",
        is_by_page=True,
        is_open=True,
    )
    await pages.site.uploads.add(upload)
    return Desk(pages, await pages.link(LinkKind.UPLOAD, UPLOAD))


# -- the protocol ---------------------------------------------------------------------------------------------------


async def test_options_say_what_the_server_can(desk: Desk) -> None:
    answer = await desk.send("OPTIONS", f"{desk.page}/files", {})
    assert answer.status == 204
    assert answer.headers["Tus-Version"] == answer.headers["Tus-Resumable"] == "1.0.0"
    assert answer.headers["Tus-Extension"].split(",") == ["creation", "expiration", "checksum", "termination"]
    assert answer.headers["Tus-Checksum-Algorithm"] == "sha1,sha256"


@pytest.mark.parametrize("version", ["", "0.2.2"])
async def test_another_version_is_refused_and_nothing_is_done(desk: Desk, version: str) -> None:
    answer = await desk.send("POST", f"{desk.page}/files", {"Tus-Resumable": version, "Upload-Length": "3"})
    assert answer.status == 412
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert await desk.files() == []


async def test_a_file_is_created_sent_in_pieces_and_asked_for(desk: Desk) -> None:
    answer = await desk.create(len(CONTENT), "momo/a.png")
    assert answer.status == 201
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    url = str(answer.url.with_path(urlsplit(answer.headers["Location"]).path))
    assert parsedate_to_datetime(answer.headers["Upload-Expires"]).timestamp() == desk.pages.clock.at + 7 * 86_400

    answer = await desk.patch(url, 0, CONTENT[:1000])
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "1000")
    assert "Upload-Expires" in answer.headers
    answer = await desk.send("HEAD", url, TUS)
    assert answer.status == 200
    assert (answer.headers["Upload-Offset"], answer.headers["Upload-Length"]) == ("1000", str(len(CONTENT)))
    assert base64.b64encode(b"momo/a.png").decode() in answer.headers["Upload-Metadata"]
    assert answer.headers["Cache-Control"] == "no-store"

    answer = await desk.patch(url, 1000, CONTENT[1000:])
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(len(CONTENT)))
    (file,) = await desk.files()
    assert (file.path, file.is_complete) == ("momo/a.png", True)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"Upload-Length": "-3"}, 400),
        ({"Upload-Length": "1e3"}, 400),
        ({"Upload-Length": "٣"}, 400),
        ({"Upload-Length": "9" * 40}, 400),
        ({"Upload-Length": "3", "Upload-Metadata": "name no*base64"}, 400),
        ({"Upload-Length": "3", "Upload-Metadata": "name /w=="}, 400),
        ({"Upload-Length": "3", "Upload-Metadata": ",YQ=="}, 400),
        ({"Upload-Length": "3", "Upload-Metadata": "is_confidential"}, 201),
    ],
)
async def test_a_creation_that_cannot_be_read_is_refused(desk: Desk, headers: dict[str, str], status: int) -> None:
    answer = await desk.send("POST", f"{desk.page}/files", {**TUS, **headers})
    assert answer.status == status
    assert len(await desk.files()) == (status == 201)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Content-Type": "application/octet-stream"}, 415),
        ({"Upload-Offset": ""}, 400),
        ({"Upload-Offset": "5"}, 409),
        ({"Upload-Offset": "99999999"}, 409),
        ({"Upload-Checksum": "md5 YQ=="}, 400),
        ({"Upload-Checksum": "sha256 YQ=="}, 400),
        ({"Upload-Checksum": "sha256"}, 400),
        ({"Upload-Checksum": checksum(b"something else")}, 460),
    ],
)
async def test_a_piece_that_does_not_fit_is_refused_and_leaves_nothing(
    desk: Desk, changed: dict[str, str], status: int
) -> None:
    url = await desk.created(len(CONTENT))
    answer = await desk.send("PATCH", url, {**BYTES, "Upload-Offset": "0", **changed}, CONTENT)
    assert answer.status == status
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert await desk.offset(url) == 0
    answer = await desk.patch(url, 0, CONTENT, Upload_Checksum=checksum(CONTENT))
    assert answer.status == 204


async def test_more_bytes_than_announced_are_refused(desk: Desk) -> None:
    url = await desk.created(100)
    assert (await desk.patch(url, 0, b"x" * 60)).status == 204
    assert (await desk.patch(url, 60, b"y" * 41)).status == 413
    assert await desk.offset(url) == 60


async def test_a_file_is_deleted_and_then_unknown(desk: Desk) -> None:
    url = await desk.created(100)
    assert (await desk.send("DELETE", url, TUS)).status == 204
    assert await desk.files() == []
    for method in ("HEAD", "DELETE"):
        answer = await desk.send(method, url, TUS)
        assert answer.status == 404
        assert "Upload-Offset" not in answer.headers
    assert (await desk.patch(url, 0, b"x")).status == 404


async def test_a_client_that_can_only_post_names_the_method_in_a_header(desk: Desk) -> None:
    url = await desk.created(4)
    answer = await desk.send("POST", url, {**BYTES, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}, b"abcd")
    assert answer.status == 204
    assert await desk.offset(url) == 4
    assert (await desk.send("POST", url, TUS)).status == 405


async def test_the_same_file_announced_again_is_not_there_twice(desk: Desk) -> None:
    url = await desk.created(10, key="k1")
    await desk.patch(url, 0, b"12345")
    again = await desk.create(10, key="k1")
    assert (again.status, again.headers["Upload-Offset"]) == (201, "5")
    assert url.endswith(urlsplit(again.headers["Location"]).path)
    # Changed since, or another file of that name.
    await desk.created(11, key="k1")
    await desk.created(10, key="k2")
    assert [file.path for file in await desk.files()] == ["a.png", "a-2.png", "a-3.png"]


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("..\\..\\a.png", "a.png"),
        ("a/./../b.png", "a/b.png"),
        (".ssh/authorized_keys", "ssh/authorized_keys"),
        ("10_zkz girl/ü 1.png", "10_zkz girl/ü 1.png"),
        ("a\x00b\n.png", "ab.png"),
        ("\u202egnp.exe", "gnp.exe"),
        ("", "file"),
        ("...", "file"),
        ("x" * 300 + ".png", "x" * 96 + ".png"),
    ],
)
async def test_a_hostile_path_stays_in_its_folder(desk: Desk, path: str, stored: str) -> None:
    await desk.created(1, path)
    (file,) = await desk.files()
    assert file.path == stored


# -- connections that break -----------------------------------------------------------------------------------------


async def raw(url: str, offset: int, length: int, data: bytes, more: str = "") -> socket.socket:
    """Send the begin of a piece, and return the open connection."""
    parts = urlsplit(url)
    request = (
        f"PATCH {parts.path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n{more}"
        f"Content-Type: application/offset+octet-stream\r\nContent-Length: {length}\r\n\r\n"
    )
    connection = await asyncio.to_thread(socket.create_connection, (parts.hostname, parts.port))
    await asyncio.to_thread(connection.sendall, request.encode() + data)
    return connection


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await is_so():  # noqa: ASYNC110 - no event is set.
            await asyncio.sleep(0.02)


async def test_what_came_before_a_lost_connection_counts(desk: Desk) -> None:
    content = os.urandom(3 * 2**20)
    url = await desk.created(len(content))
    connection = await raw(url, 0, len(content), content[: 5 * 2**19])

    async def two_blocks() -> bool:
        return (await desk.files())[0].offset >= 2 * 2**20

    await until(two_blocks)
    connection.close()
    offset = await desk.offset(url)
    while (answer := await desk.patch(url, offset, content[offset:])).status == 409:
        # The server has not noticed before the first question, and stored more since.
        offset = await desk.offset(url)
    assert answer.status == 204
    (file,) = await desk.files()
    assert stored(desk, file) == content


async def test_half_of_a_piece_with_a_checksum_does_not_count(desk: Desk) -> None:
    content = os.urandom(3 * 2**20)
    url = await desk.created(len(content))
    await desk.patch(url, 0, content[:100])
    more = f"Upload-Checksum: {checksum(content[100:])}\r\n"
    connection = await raw(url, 100, len(content) - 100, content[100 : 5 * 2**19], more)

    async def two_blocks() -> bool:
        return (await desk.files())[0].offset >= 2 * 2**20

    await until(two_blocks)
    connection.close()

    async def is_left() -> bool:
        return not desk.pages.site.resumable._writers

    await until(is_left)
    assert await desk.offset(url) == 100
    answer = await desk.patch(url, 100, content[100:], Upload_Checksum=checksum(content[100:]))
    assert answer.status == 204
    (file,) = await desk.files()
    assert stored(desk, file) == content


async def test_a_new_connection_replaces_one_that_fell_silent(desk: Desk) -> None:
    url = await desk.created(len(CONTENT))
    silent = await raw(url, 0, len(CONTENT), CONTENT[:2000])

    async def is_writing() -> bool:
        return bool(desk.pages.site.resumable._writers)

    await until(is_writing)
    answer = await desk.patch(url, 2000, b"")
    offset = await desk.offset(url)
    assert (answer.status, offset) in {(204, 2000), (409, offset)}
    assert (await desk.patch(url, offset, CONTENT[offset:])).status == 204
    (file,) = await desk.files()
    assert stored(desk, file) == CONTENT
    silent.close()


async def test_a_sender_that_falls_silent_is_told_and_its_bytes_count(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_file, "SILENCE_S", 0.2)
    url = await desk.created(len(CONTENT))
    connection = await raw(url, 0, len(CONTENT), CONTENT[:2000])
    assert (await asyncio.to_thread(connection.recv, 100)).startswith(b"HTTP/1.1 408")
    assert await desk.offset(url) == 2000
    connection.close()


async def test_pieces_of_many_clients_at_once_make_one_file_each(desk: Desk) -> None:
    contents = [os.urandom(20_000) for _number in range(12)]

    async def send(number: int) -> None:
        url = await desk.created(20_000, f"{number}.png")
        for begin in range(0, 20_000, 7000):
            piece = contents[number][begin : begin + 7000]
            assert (await desk.patch(url, begin, piece, Upload_Checksum=checksum(piece))).status == 204

    await asyncio.gather(*(send(number) for number in range(12)))
    files = {file.path: stored(desk, file) for file in await desk.files()}
    assert files == {f"{number}.png": content for number, content in enumerate(contents)}


async def test_a_full_disk_is_told_and_the_upload_goes_on_when_there_is_room(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await desk.created(len(CONTENT))
    write = PartialFile.write

    def write_a_part(writer: PartialFile, block: bytes) -> None:
        write(writer, block[:4096])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PartialFile, "write", write_a_part)
    answer = await desk.patch(url, 0, CONTENT)
    assert answer.status == 507
    assert await desk.offset(url) == 4096
    monkeypatch.setattr(PartialFile, "write", write)
    assert (await desk.patch(url, 4096, CONTENT[4096:])).status == 204
    (file,) = await desk.files()
    assert stored(desk, file) == CONTENT


def stored(desk: Desk, file: ArrivingFile) -> bytes:
    folder = Path(desk.pages.site.resumable._folder)
    return (folder / str(UPLOAD) / file.id).read_bytes()


# -- a client of another project --------------------------------------------------------------------------------------


async def test_tuspy_uploads_with_checksums_and_resumes(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(os.urandom(200_000))

    def upload() -> str:
        client = TusClient(f"{desk.page}/files")
        with file.open("rb") as stream:
            how = {"file_stream": stream, "chunk_size": 65_536, "upload_checksum": True}
            uploader = client.uploader(**how, metadata={"filename": "photo.png"})
            uploader.upload(stop_at=100_000)
            half_url = str(uploader.url)
            # Another process goes on: it asks for the offset.
            client.uploader(**how, url=half_url).upload()
        return half_url

    url = await asyncio.to_thread(upload)
    (found,) = await desk.files()
    assert (found.path, found.bytes, found.is_complete) == ("photo.png", 200_000, True)
    assert url.endswith(found.id)
    assert stored(desk, found) == file.read_bytes()


TUS_JS = """
const tus = require("tus-js-client");
const [, , endpoint, name] = process.argv;
const content = require("fs").readFileSync(name);
const options = {
  endpoint, chunkSize: 60000, retryDelays: [0, 100], metadata: { filename: "photo.png" },
  onError: (error) => { console.error(String(error)); process.exit(1); },
  onSuccess: () => console.log(upload.url),
};
let upload = new tus.Upload(content, {
  ...options,
  onChunkComplete: (size, sent) => {
    if (sent < 100000) return;
    // The program ends, and another one goes on where the server is.
    upload.abort().then(() => {
      upload = new tus.Upload(content, { ...options, uploadUrl: upload.url });
      upload.start();
    });
  },
});
upload.start();
"""


@pytest.fixture(scope="session")
def tus_js(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tus-js-client, which is not a part of this repository."""
    folder = tmp_path_factory.mktemp("tus-js")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm on this machine")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), "tus-js-client@4.3.1"]
    if subprocess.run(command, capture_output=True, check=False, timeout=240).returncode:
        pytest.skip("npm cannot install tus-js-client")
    return folder


@pytest.mark.slow
async def test_tus_js_client_uploads_and_resumes(desk: Desk, tmp_path: Path, tus_js: Path) -> None:
    file, program = tmp_path / "photo.png", tus_js / "upload.js"
    file.write_bytes(os.urandom(300_000))
    program.write_text(TUS_JS)
    process = await asyncio.create_subprocess_exec(
        "node", str(program), f"{desk.page}/files", str(file), stdout=PIPE, stderr=PIPE, cwd=tus_js
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors
    (found,) = await desk.files()
    assert (found.path, found.is_complete) == ("photo.png", True)
    assert output.decode().strip().endswith(found.id)
    assert stored(desk, found) == file.read_bytes()


# -- what ends and what limits an upload ------------------------------------------------------------------------------


async def test_a_role_with_a_limit_of_its_own_keeps_it(desk: Desk) -> None:
    limits, visitors = desk.pages.site.limits, desk.pages.site.visitors
    await limits.set(GUILD, RoleLimit(role_id=5, max_dataset_mib=1), by=1)
    await limits.set(GUILD, RoleLimit(role_id=6, max_epochs=9), by=1)
    assert isinstance(visitors, KnownVisitors)
    assert (await desk.create(2 * 2**20)).status == 201
    visitors.members[ANA] = replace(visitors.members[ANA], role_ids=frozenset({5, 6}))
    answer = await desk.create(2**20, "b.png")
    assert answer.status == 422
    assert [file.path for file in await desk.files()] == ["a.png"]


async def test_what_one_person_may_store_counts_open_uploads_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = desk.pages.site.datasets._limits.settings
    monkeypatch.setattr(type(limits), "max_stored_bytes_per_user", 1000)
    assert (await desk.create(600)).status == 201
    assert (await desk.create(401, "b.png")).status == 422
    assert (await desk.create(400, "b.png")).status == 201


async def test_an_upload_that_nobody_goes_on_with_is_deleted_and_one_in_use_is_not(desk: Desk) -> None:
    site, clock = desk.pages.site, desk.pages.clock
    url = await desk.created(100)
    await desk.patch(url, 0, b"x" * 10)
    folder = site.resumable._folder / str(UPLOAD)
    (folder.parent / "12345").mkdir()
    # Files carry the time of the machine, and the clock of the test stands elsewhere.
    async with site.uploads._db.transaction() as connection:
        await connection.execute_fetchall("UPDATE upload SET created_at = ?", (clock.at - 8 * 86_400,))
    for name in folder.iterdir():
        os.utime(name, (clock.at - 6 * 86_400, clock.at - 6 * 86_400))
    assert await site.resumable.sweep() == 0
    assert not (folder.parent / "12345").exists()
    assert await desk.offset(url) == 10
    for name in folder.iterdir():
        os.utime(name, (clock.at - 8 * 86_400, clock.at - 8 * 86_400))
    assert await site.resumable.sweep() == 1
    assert not folder.exists()
    assert await site.uploads.find(UPLOAD) is None
    assert (await desk.send("HEAD", url, TUS)).status == 410


async def test_addresses_are_right_below_a_path_of_a_proxy(pages: Pages) -> None:
    config = pages.site.config
    web = config.web.model_copy(update={"public_url": "https://example.org/darkroom/"})
    site = replace(pages.site, config=config.model_copy(update={"web": web}))
    assert (site.base_path, site.origin) == ("/darkroom", "https://example.org")
