"""The upload page in a real browser, at a desk and on a phone: a folder is chosen, lost connections cost nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bot.cogs.conftest import World, pages_are_on, world  # noqa: F401 - a fixture.
from tests.bot.cogs.test_page_uploads import ask, link_of
from tests.bot.web.conftest import small_png
from tests.e2e.conftest import contrast_problems

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("pages_are_on"),
]

DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@asynccontextmanager
async def opened(browser: Any, lab: World, viewport: dict[str, int], **context: Any) -> AsyncIterator[Any]:
    """The upload page of Ana in a browser window; any error of a script or of the policy fails the test."""
    url = link_of(await ask(lab))
    async with await browser.new_context(viewport=viewport, **context) as window:
        page = await window.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
        await page.goto(url)
        yield page
        assert problems == []


def write_folder(folder: Path, count: int) -> Path:
    for number in range(count):
        (folder / "fox pictures").mkdir(parents=True, exist_ok=True)
        (folder / "fox pictures" / f"{number}.png").write_bytes(small_png(37 * number % 256, side=64))
    (folder / "fox pictures" / ".DS_Store").write_bytes(b"clutter")
    return folder / "fox pictures"


async def arrived(lab: World, kept: int) -> None:
    """Wait for the dataset that the upload becomes."""
    async with asyncio.timeout(120):
        while True:
            found = await lab.app.services.datasets.search(lab.channel.guild.id)
            if found:
                assert found[0].counts.kept == kept
                assert found[0].name == "fox-pictures"
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
async def test_a_folder_is_uploaded_and_becomes_a_dataset(
    tmp_path: Path, browser: Any, viewport: dict[str, int]
) -> None:
    folder = write_folder(tmp_path / "chosen", 8)
    async with world(tmp_path / "data") as lab, opened(browser, lab, viewport) as page:
        assert await page.locator("#finish").is_disabled()
        await page.locator("#pick-folder").set_input_files(folder)
        await page.wait_for_selector("#files li[data-state=done] >> nth=7", timeout=60_000)
        assert "1 file was left out" in await page.locator("#note").inner_text()
        # On a phone, only those that are seen.
        await page.wait_for_selector("#files li.drawn >> nth=3", timeout=60_000)
        # Nothing is wider than the window.
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.locator("#finish").focus()
        await page.keyboard.press("Enter")
        await page.wait_for_selector("text=The answer is in Discord", timeout=60_000)
        await arrived(lab, 8)


async def test_dropped_files_are_sent_after_the_connection_was_lost_and_the_page_reloaded(
    tmp_path: Path, browser: Any
) -> None:
    async with world(tmp_path / "data") as lab, opened(browser, lab, DESK) as page:
        window = page.context
        folder = write_folder(tmp_path / "chosen", 6)
        large = folder / "large.png"
        large.write_bytes(small_png(7) + os.urandom(3 * 2**20))
        await window.set_offline(True)
        await page.locator("#pick-folder").set_input_files(folder)
        await page.wait_for_selector("#files li[data-state=retry]", timeout=60_000)
        await window.set_offline(False)
        line = await window.new_cdp_session(page)
        # The large file takes half a minute, unless the upload is paused.
        slow = {"offline": False, "latency": 1, "downloadThroughput": -1, "uploadThroughput": 100_000}
        await line.send("Network.emulateNetworkConditions", slow)
        await page.wait_for_selector("#files li[data-state=done] >> nth=1", timeout=60_000)
        await page.locator("#pause").click()
        await line.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
        await page.reload()
        known = await page.locator("#files li").count()
        assert known >= 2
        await page.locator("#pick-folder").set_input_files(folder)
        await page.wait_for_selector("#files li[data-state=done] >> nth=6", timeout=60_000)
        assert await page.locator("#files li").count() == 7
        upload = await lab.app.db.one("SELECT interaction_id FROM upload")
        assert upload is not None
        files = await lab.app.services.resumable.files(upload[0])
        assert sorted(file.path for file in files) == [
            *(f"fox pictures/{number}.png" for number in range(6)),
            "fox pictures/large.png",
        ]
        stored = lab.app.services.resumable._path(upload[0], next(f.id for f in files if "large" in f.path))
        assert stored.read_bytes() == large.read_bytes()


async def test_a_folder_is_dropped_with_what_is_in_its_folders(tmp_path: Path, browser: Any) -> None:
    async with world(tmp_path / "data") as lab, opened(browser, lab, DESK) as page:
        folder = write_folder(tmp_path / "chosen", 10)
        (folder / "more").mkdir()
        for number in range(3):
            (folder / f"{number}.png").rename(folder / "more" / f"{number}.png")
        line = await page.context.new_cdp_session(page)
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await line.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
        await page.wait_for_selector("#files li[data-state=done] >> nth=9", timeout=60_000)
        paths = await page.locator("#files .path").all_inner_texts()
        assert sorted(paths) == [
            *(f"fox pictures/{number}.png" for number in range(3, 10)),
            *(f"fox pictures/more/{number}.png" for number in range(3)),
        ]


async def test_too_many_files_are_told_before_any_is_sent(tmp_path: Path, browser: Any) -> None:
    async with world(tmp_path / "data") as lab, opened(browser, lab, PHONE) as page:
        await page.locator("#pick-folder").set_input_files(write_folder(tmp_path / "chosen", 61))
        assert "61 files, and one upload may have 60" in await page.locator("#note").inner_text()
        assert await page.locator("#files li").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_speaks_chinese_and_can_be_read_in_both_schemes(
    tmp_path: Path, browser: Any, scheme: str
) -> None:
    async with world(tmp_path / "data") as lab:
        await lab.app.services.languages.choose("zh_CN", person=lab.ana.id)
        async with opened(browser, lab, PHONE, color_scheme=scheme) as page:
            assert await page.get_attribute("html", "lang") == "zh-CN"
            await page.locator("#pick-folder").set_input_files(write_folder(tmp_path / "chosen", 3))
            await page.wait_for_selector("#files li[data-state=done] >> nth=2", timeout=60_000)
            assert await contrast_problems(page) == []
