"""Uploads by the page, from the command to the answer in the channel; over a real socket."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp
import pytest

from tests.bot.cogs.conftest import PNG, World, archive, first_bot, next_bot, text_of, world
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged, upload_dataset
from tests.bot.web.test_tus import TUS, checksum

pytestmark = pytest.mark.usefixtures("pages_are_on")
IMAGES = {f"fox pictures/{number}.png": PNG + bytes([number]) * 3000 for number in range(6)}


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def link_of(message: Any) -> str:
    return next(url for url in links(message.components) if url.startswith("http://127.0.0.1"))


def links(components: Any) -> list[str]:
    found: list[str] = []
    for part in components:
        part = part if isinstance(part, dict) else part.to_dict()
        found += [part["url"]] if part.get("url") else []
        found += links(part.get("components", []))
    return found


async def ask(lab: World, actor: Any = None, **texts: str) -> Any:
    """Submit the form of `/dataset upload` without files, and return the answer."""
    actor = actor or lab.ana
    shown = await actor.slash(lab.channel, "dataset upload")
    return (await actor.submit_modal(shown, texts)).response.message


async def send(browser: aiohttp.ClientSession, page: str, files: dict[str, bytes]) -> list[int]:
    """Send files, each in two pieces; return the statuses of what was refused."""
    refused = []
    for path, content in files.items():
        named = f"relativePath {base64.b64encode(path.encode()).decode()}"
        headers = {**TUS, "Upload-Length": str(len(content)), "Upload-Metadata": named}
        async with browser.post(f"{page}/files", headers=headers) as created:
            if created.status != 201:
                refused.append(created.status)
                continue
            url = urljoin(page, created.headers["Location"])
        for begin, end in ((0, 1000), (1000, len(content))):
            piece = content[begin:end]
            headers = {
                **TUS,
                "Content-Type": "application/offset+octet-stream",
                "Upload-Offset": str(begin),
                "Upload-Checksum": checksum(piece),
            }
            async with browser.patch(url, headers=headers, data=piece) as sent:
                assert sent.status == 204
    return refused


async def finish(browser: aiohttp.ClientSession, page: str, **fields: str) -> tuple[int, str]:
    async with browser.post(page, data={"do": "finish", **fields}, headers={"Accept": "text/html"}) as response:
        return response.status, await response.text()


async def over(browser: aiohttp.ClientSession, page: str) -> None:
    async with asyncio.timeout(60):
        while True:
            async with browser.get(f"{page}/state") as response:
                if (await response.json())["is_over"]:
                    return
            await asyncio.sleep(0.05)


async def test_a_folder_becomes_a_dataset_and_the_answer_is_in_the_channel(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    async with world(tmp_path) as lab:
        shown = await ask(lab, trigger="zkz fox")
        page = link_of(shown)
        async with browser.get(page) as response:
            text = await response.text()
            assert response.status == 200
        assert 'value="zkz fox"' in text
        await send(browser, page, IMAGES)
        await lab.until_shown("6 of them have arrived")
        status, text = await finish(browser, page, trigger="zkz fox")
        assert status == 200
        await over(browser, page)
        await lab.until_sent()
        (dataset,) = await lab.app.services.datasets.search(lab.channel.guild.id)
        assert (dataset.name, dataset.owner_id, dataset.counts.kept) == ("fox-pictures", lab.ana.id, 6)
        assert dataset.edits.rules.trigger == "zkz fox"
        # The message that followed along is gone, and Ana is mentioned once.
        (posted,) = lab.texts()
        assert "fox-pictures" in posted
        assert str(lab.ana.id) in posted
        async with browser.get(page) as response:
            assert "The answer is in Discord" in await response.text()
        assert list((tmp_path / "uploads").glob("*")) == []
        assert await finish(browser, page) == (422, await finished_words(browser, page))


async def finished_words(browser: aiohttp.ClientSession, page: str) -> str:
    return (await finish(browser, page))[1]


async def test_an_upload_goes_on_after_a_restart_and_again_after_one_while_it_is_examined(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    files = list(IMAGES.items())
    async with first_bot(tmp_path) as lab:
        page = link_of(await ask(lab, name="momo"))
        await send(browser, page, dict(files[:4]))
    async with next_bot(lab, tmp_path):
        async with browser.get(page) as response:
            assert await response.text() != ""
            assert response.status == 200
        await send(browser, page, dict(files[4:]))
        upload = (await lab.app.services.uploads.find(await interaction_of(lab))) or pytest.fail("no upload")
        assert len(await lab.app.services.resumable.files(upload.interaction_id)) == 6
        # Closed, and then the bot ends before anything of it was done.
        await lab.app.services.resumable.close(upload, request=upload.request)
        await lab.app.startup()
        await lab.app._uploads.run()
        await lab.until_sent()
        (dataset,) = await lab.app.services.datasets.search(lab.channel.guild.id)
        assert dataset.counts.kept == 6
        # What was open at the restart was left alone: this is the only answer.
        (posted,) = [text for text in lab.texts() if str(lab.ana.id) in text]
        assert dataset.name in posted


async def interaction_of(lab: World) -> int:
    row = await lab.app.db.one("SELECT interaction_id FROM upload")
    assert row is not None
    return int(row[0])


async def test_too_few_images_are_told_and_the_page_takes_the_rest(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    files = list(IMAGES.items())
    async with world(tmp_path) as lab:
        page = link_of(await ask(lab))
        await send(browser, page, dict(files[:2]))
        await finish(browser, page)
        await lab.until_shown("a training needs 5")
        assert any("still has your files" in text for text in lab.texts())
        await send(browser, page, dict(files[2:]))
        await finish(browser, page)
        await over(browser, page)
        await lab.until_sent()
        (dataset,) = await lab.app.services.datasets.search(lab.channel.guild.id)
        assert dataset.counts.kept == 6


async def test_what_is_not_complete_cannot_be_finished(tmp_path: Path, browser: aiohttp.ClientSession) -> None:
    async with world(tmp_path) as lab:
        page = link_of(await ask(lab))
        assert (await finish(browser, page))[0] == 422
        headers = {**TUS, "Upload-Length": "10"}
        async with browser.post(f"{page}/files", headers=headers) as created:
            assert created.status == 201
        status, text = await finish(browser, page)
        assert status == 422
        assert "has not arrived completely" in text


async def test_an_upload_is_cancelled_in_discord_and_on_the_page(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    async with world(tmp_path) as lab:
        shown = await ask(lab)
        page = link_of(shown)
        await send(browser, page, IMAGES)
        await press(lab.ana, shown, "Cancel upload")
        async with browser.get(page) as response:
            assert response.status == 410
        assert await send(browser, page, {"a.png": b"a"}) == [410]
        other = link_of(await ask(lab))
        await send(browser, other, IMAGES)
        async with browser.post(other, data={"do": "cancel"}) as response:
            assert response.status == 200
        async with browser.get(other) as response:
            assert response.status == 410
        await lab.until_sent()
        assert lab.texts() == []
        assert list((tmp_path / "uploads").glob("*")) == []
        assert await lab.app.db.all("SELECT * FROM upload_file") == []


async def test_a_new_link_ends_the_one_before_and_only_its_member_gets_it(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    async with world(tmp_path) as lab:
        shown = await ask(lab)
        first = link_of(shown)
        renewed = await press(lab.ana, shown, "New link")
        second = link_of(renewed.followups[-1] if renewed.followups else renewed.response.message)
        async with browser.get(first) as response:
            assert response.status == 410
        async with browser.get(second) as response:
            assert response.status == 200
        for label in ("New link", "Cancel upload"):
            assert "takes no more files" in await press_forged(lab, buttons(shown)[label], lab.ben)
        async with browser.get(second) as response:
            assert response.status == 200


async def test_attachments_that_are_too_large_get_a_link_and_their_request_stays(
    tmp_path: Path, browser: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as lab:
        limits = lab.app.services.limits._configured
        monkeypatch.setattr(type(limits), "max_dataset_bytes", 100)
        monkeypatch.setattr("bot.queue.store.limits.Allowance.max_dataset_bytes", 100)
        result = await lab.finetune(preset="lora", trigger="zkz")
        shown = result.followups[-1] if result.followups else result.response
        assert "larger than" in text_of(shown)
        page = link_of(shown)
        await send(browser, page, IMAGES)
        await finish(browser, page)
        await over(browser, page)
        await lab.until_sent()
        (posted,) = [text for text in lab.texts() if str(lab.ana.id) in text]
        assert "your request waits" in posted
        (draft,) = await lab.app.db.all("SELECT request FROM draft")
        assert '"zkz"' in draft["request"]


async def test_files_are_added_to_a_dataset(tmp_path: Path, browser: aiohttp.ClientSession) -> None:
    async with world(tmp_path) as lab:
        await upload_dataset(lab, archive())
        result = await lab.ana.slash(lab.channel, "dataset add", dataset="fox")
        page = link_of(result.followups[-1] if result.followups else result.response)
        async with browser.get(page) as response:
            assert "Add images to fox" in await response.text()
        new = {name: content + b"new" for name, content in IMAGES.items()}
        await send(browser, page, new)
        await finish(browser, page)
        await over(browser, page)
        await lab.until_sent()
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "fox")
        assert dataset.counts.kept == 12


async def test_limits_of_files_and_bytes_are_told_before_anything_is_sent(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    async with world(tmp_path) as lab:
        page = link_of(await ask(lab))
        too_large = {"Upload-Length": str(11 * 2**20)}
        async with browser.post(f"{page}/files", headers={**TUS, **too_large}) as created:
            assert created.status == 422
            assert "larger than the 10.2 MiB" in await created.text()
        for number in range(60):
            async with browser.post(f"{page}/files", headers={**TUS, "Upload-Length": "1"}) as created:
                assert created.status == 201, number
        async with browser.post(f"{page}/files", headers={**TUS, "Upload-Length": "1"}) as created:
            assert created.status == 422


async def test_a_member_who_left_or_lost_their_role_opens_nothing(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    async with world(tmp_path) as lab:
        page = link_of(await ask(lab, lab.ben))
        rules = lab.app.services.access.rules_of(lab.channel.guild.id)
        role = lab.channel.guild.create_role("artists")
        await lab.app.services.access.set_rules(
            lab.channel.guild.id, rules.model_copy(update={"datasets": (role.id,)}), by=1
        )
        async with browser.get(page) as response:
            assert response.status == 403


async def test_without_files_and_pages_the_form_asks_for_files(tmp_path: Path) -> None:
    async with world(tmp_path) as lab:
        shown = await lab.ana.slash(lab.channel, "dataset upload")
        assert re.search(r"you get a page for them", str(shown.modal))
        assert buttons(await ask(lab)).keys() == {"New link", "Cancel upload"}
