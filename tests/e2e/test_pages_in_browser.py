"""The pages of a job, a dataset and the gallery in a real browser: desk, phone, keyboard, and without scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import unused_port

from bot.datasets import Dataset
from bot.datasets.decisions import with_caption
from bot.db import open_db
from bot.outbox import Outbox
from bot.web import LinkKind
from tests.bot.conftest import GUILD, add_dataset, make_store, set_slots
from tests.bot.fake_events import epoch_ended
from tests.bot.fakes import FakeClock, uploads
from tests.bot.web.conftest import ANA, Pages, running_pages, small_png
from tests.bot.web.test_job_results import FILES, WHOLE, exported, sampled
from tests.bot.web.test_shared_gallery import share
from tests.e2e.conftest import contrast_problems
from trainer.protocol.edits import Crop

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
#: The layout depends on the window alone, and the colors on the scheme alone.
LOOKS = [(DESK, "light"), (PHONE, "dark")]


@asynccontextmanager
async def browsed(folder: Path) -> AsyncIterator[Pages]:
    """The pages at the address that a browser sees."""
    clock = FakeClock()
    async with open_db(folder / "data" / "darkroom.sqlite") as db:
        await add_dataset(db)
        outbox = Outbox(db, clock=clock)
        store = make_store(db, outbox, clock, folder)
        await set_slots(store, 1)
        async with running_pages(db, store, outbox, clock, folder / "data", unused_port()) as pages:
            yield pages


@asynccontextmanager
async def window(browser: Any, url: str, viewport: dict[str, int] = DESK, **context: Any) -> AsyncIterator[Any]:
    """A page in a browser; any error of a script or of the policy fails the test."""
    async with await browser.new_context(viewport=viewport, **context) as opened:
        page = await opened.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.on("requestfailed", lambda request: problems.append(f"{request.url} {request.failure}"))
        await page.goto(url, wait_until="networkidle")
        yield page
        # A conflict is answered with 409, which a browser notes.
        assert [each for each in problems if "409" not in each] == []


async def made_dataset(pages: Pages) -> Dataset:
    images = {**{f"{n}.png": b"good %d" % n for n in range(5)}, "blur.png": b"blurred", "twin.png": b"twin"}
    received = await pages.site.datasets.receive(uploads(images))
    return await pages.site.datasets.prepare(received, guild_id=GUILD, owner_id=ANA, name="fox")


async def until(page: Any, condition: str) -> None:
    """Wait for a condition in the page; the policy of the pages forbids Playwright's own way."""
    async with asyncio.timeout(60):
        while not await page.evaluate(condition):  # noqa: ASYNC110 - no event is set.
            await asyncio.sleep(0.05)


async def require_readable(page: Any) -> None:
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the window"
    assert await contrast_problems(page) == []
    pictures = "[...document.querySelectorAll('img[src]')]"
    assert await page.evaluate(f"{pictures}.every(each => !each.complete || each.naturalWidth > 0)")


async def test_every_page_can_be_read(tmp_path: Path, browser: Any) -> None:
    async with browsed(tmp_path) as pages:
        job = await pages.job(WHOLE, FILES)
        await share(pages, job, "samples/shared.png", ("red",))
        dataset = await made_dataset(pages)
        job_url = await pages.link(LinkKind.JOB, job.id)
        urls = (job_url, await pages.link(LinkKind.DATASET, dataset.id), await pages.link(LinkKind.GALLERY))
        for viewport, scheme in LOOKS:
            async with window(browser, job_url, viewport, color_scheme=scheme) as page:
                for url in urls:
                    answer = await page.goto(url, wait_until="networkidle")
                    assert answer.status == 200
                    await require_readable(page)


async def test_the_kept_epoch_is_seen_beside_the_base(tmp_path: Path, browser: Any) -> None:
    epochs = range(1, 21)
    drawn = [event for epoch in epochs for event in (sampled(epoch), epoch_ended(1, epoch))]
    pictures = {f"samples/e{epoch}-{n}.png": small_png() for epoch in (0, *epochs) for n in range(2)}
    async with browsed(tmp_path) as pages:
        job = await pages.job([WHOLE[0], sampled(0), *drawn, exported(), WHOLE[-1]], {**FILES, **pictures})
        for viewport in (DESK, PHONE):
            async with window(browser, await pages.link(LinkKind.JOB, job.id), viewport) as page:
                for frame in (".frames figure:first-child", ".frames .best"):
                    box = await page.locator(frame).first.bounding_box()
                    assert box["x"] >= 0, frame
                    assert box["x"] + box["width"] <= viewport["width"], frame


async def test_pictures_are_looked_at_by_keyboard(tmp_path: Path, browser: Any) -> None:
    async with browsed(tmp_path) as pages:
        job = await pages.job(WHOLE, FILES)
        async with window(browser, await pages.link(LinkKind.JOB, job.id)) as page:
            first = page.locator("a[data-lightbox]").first
            await first.focus()
            await page.keyboard.press("Enter")
            words = page.locator("#lightbox p")
            assert "the base model" in await words.inner_text()
            await page.keyboard.press("ArrowRight")
            assert "epoch 1" in await words.inner_text()
            await page.keyboard.press("ArrowLeft")
            await page.keyboard.press("ArrowLeft")
            assert "epoch 2" in await words.inner_text(), "around the end"
            await page.keyboard.press("Escape")
            assert not await page.locator("#lightbox").is_visible()
            assert await page.evaluate("document.activeElement.dataset.words") == "epoch 2: a fox"


async def test_the_page_of_a_running_job_becomes_new_without_moving(tmp_path: Path, browser: Any) -> None:
    async with browsed(tmp_path) as pages:
        job = await pages.job(WHOLE[:6], FILES)
        async with window(browser, await pages.link(LinkKind.JOB, job.id)) as page:
            await page.locator("details summary").first.click()
            assert await page.locator("tbody tr").count() == 2
            later = [each.model_copy(update={"seq": 20 + n}) for n, each in enumerate((sampled(3), epoch_ended(1, 3)))]
            await pages.site.jobs.attempts.ingest(job.id, 1, later, 99)
            await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            await until(page, "document.querySelectorAll('tbody tr').length === 3")
            assert await page.locator("details").first.evaluate("each => each.open"), "what was open stays open"


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
async def test_images_are_decided_captioned_and_cropped_in_place(
    tmp_path: Path, browser: Any, viewport: dict[str, int]
) -> None:
    async with browsed(tmp_path) as pages:
        dataset = await made_dataset(pages)
        async with window(browser, await pages.link(LinkKind.DATASET, dataset.id), viewport) as page:
            await page.evaluate("window.isTheSame = true")
            tile = page.locator("#no-1")
            await tile.get_by_role("button", name="Drop").click()
            await page.wait_for_selector("#no-1.dropped")
            assert await tile.get_by_role("button", name="Drop").get_attribute("aria-pressed") == "true"
            caption = page.locator("#caption-2")
            await caption.fill("a red fox")
            await caption.press("Control+Enter")
            await until(page, "document.querySelector('#status').textContent.includes('2')")
            await page.locator("#no-3 summary").click()
            frame = page.locator("#no-3 .crop")
            await until(page, "document.querySelector('#no-3 .crop img')?.naturalWidth > 0")
            await frame.scroll_into_view_if_needed()
            box = await frame.bounding_box()
            # Shares of the frame are shares of the image.
            assert box["width"] / box["height"] == pytest.approx(2, rel=0.05), "the image is 256 by 128"
            await page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.1)
            await page.mouse.down()
            await page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.9, steps=4)
            await page.mouse.up()
            await page.locator("#no-3").get_by_role("button", name="Save crop").click()
            await page.wait_for_selector("#no-3 .badge >> text=cropped by hand", timeout=60_000)
            assert await page.evaluate("window.isTheSame"), "the page was not loaded again"
            async with page.expect_navigation(timeout=60_000):
                await page.locator("#bar").get_by_role("button", name="Apply").click()
        edits = (await pages.site.datasets.get(dataset.id)).edits
        assert list(edits.decisions.values()) == ["drop"]
        assert list(edits.captions.values()) == ["a red fox"]
        (crop,) = edits.crops.values()
        assert [crop.left, crop.top, crop.right, crop.bottom] == pytest.approx([0.25, 0.1, 0.75, 0.9], abs=0.02)
        assert not (await pages.site.datasets.get(dataset.id)).is_pending


async def test_what_another_person_wrote_is_told_and_one_s_own_words_stay(tmp_path: Path, browser: Any) -> None:
    async with browsed(tmp_path) as pages:
        dataset = await made_dataset(pages)
        report = await pages.site.datasets.report(dataset)
        key = str(report.images[0].pixels_sha256)
        async with window(browser, await pages.link(LinkKind.DATASET, dataset.id)) as page:
            await pages.site.datasets.decide(dataset.id, lambda edits: with_caption(edits, key, "by Lea"))
            await page.locator("#caption-1").fill("by Ana")
            await page.locator("#no-1").get_by_role("button", name="Save caption").click()
            await page.wait_for_selector("#no-1 [role=alert] >> text=by Lea", timeout=60_000)
            assert await page.locator("#caption-1").input_value() == "by Ana"
            # Now knowingly.
            await page.locator("#no-1").get_by_role("button", name="Save caption").click()
            await until(page, "!document.querySelector('#no-1 [role=alert]')")
        assert (await pages.site.datasets.get(dataset.id)).edits.captions == {key: "by Ana"}


async def test_without_scripts_everything_can_be_decided(tmp_path: Path, browser: Any) -> None:
    async with browsed(tmp_path) as pages:
        dataset = await made_dataset(pages)
        async with window(browser, await pages.link(LinkKind.DATASET, dataset.id), java_script_enabled=False) as page:
            await page.locator("#no-2").get_by_role("button", name="Drop").click()
            await page.wait_for_selector("#no-2.dropped")
            await page.locator("#no-1 summary").click()
            for side, value in (("left", "10"), ("top", "0"), ("right", "90"), ("bottom", "100")):
                await page.locator(f"#{side}-1").fill(value)
            await page.locator("#no-1").get_by_role("button", name="Save crop").click()
            await page.wait_for_selector("#no-1 >> text=cropped by hand")
        edits = (await pages.site.datasets.get(dataset.id)).edits
        assert list(edits.decisions.values()) == ["drop"]
        assert list(edits.crops.values()) == [Crop(left=0.1, top=0, right=0.9, bottom=1)]


async def test_a_download_is_the_file_and_a_report_runs_nothing(tmp_path: Path, browser: Any) -> None:
    async with browsed(tmp_path) as pages:
        job = await pages.job([*WHOLE[:6], exported(size=len(FILES["output/lora.safetensors"])), WHOLE[-1]], FILES)
        url = await pages.link(LinkKind.JOB, job.id)
        async with window(browser, url) as page:
            async with page.expect_download() as started:
                await page.get_by_role("link", name="Download fox-kohya.safetensors").click()
            downloaded = await (await started.value).path()
            content = await asyncio.to_thread(Path(downloaded).read_bytes)
            assert content == FILES["output/lora.safetensors"]
        async with await browser.new_context() as opened:
            page = await opened.new_page()
            alerts: list[str] = []
            page.on("dialog", lambda dialog: alerts.append(dialog.message))
            await page.goto(f"{url}/report", wait_until="networkidle")
            assert "report" in await page.inner_text("body")
            assert alerts == []


async def test_a_picture_is_liked(tmp_path: Path, browser: Any) -> None:
    async with browsed(tmp_path) as pages:
        await share(pages, await pages.job(WHOLE, FILES), "samples/shared.png")
        async with window(browser, await pages.link(LinkKind.GALLERY)) as page:
            await page.locator("article button").click()
            await page.wait_for_selector("article button[aria-pressed=true]")
            assert await page.locator("article button .number").inner_text() == "1"
