"""`make tour`: walks through Darkroom in the simulated Discord and writes docs/tour.md, with a picture of every stop.

The real bot and the real trainer do what the pictures show: each message, form and page is photographed in Chromium on
a desktop and on a phone, in English and in Chinese, the pages in light and in dark colors; the training of the first
walk becomes the moving picture of the README. It takes about ten minutes on two cores, and needs `chromium` and a font
with Chinese letters.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.async_api import Browser, async_playwright
from simcord.backend.errors import SetupError
from simcord.preview import _capture

from bot.app.compose import App, compose
from bot.cogs.attachments import read_attachment
from bot.config import CardSettings, WebSettings
from bot.demo.show import demo_config
from bot.demo.simulation import Simulation, simulate
from bot.log import setup_logging
from bot.web import LinkKind
from trainer.protocol.text import speaking

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = DOCS / "images" / "tour"
#: Width and height of the window, px. A message is shown 550 px wide on the first and 285 px on the second.
DEVICES = {"desktop": (660, 3000), "phone": (390, 3000)}
PAGE_DEVICES = {"desktop": (1280, 900), "phone": (390, 844)}
#: A long page is cut off here, px.
PAGE_PX = 2400
LANGUAGES = {"en": "English", "zh_CN": "中文"}
#: The moving picture of the README.
MOVIE, FRAME_PX = DOCS / "images" / "demo.webp", (660, 900)
#: For a training, or what is waited for.
PATIENCE_S = 600
QUALITY = 82
_SLOWER = ("settings.toml", b"lr = 1e-4\n")
_WRONG = ("settings.toml", b'lr = 20\noptimizer = "adamw9bit"\n')


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One picture of the tour in all its forms: a message, a form or a page."""

    name: str
    title: str
    text: str
    is_page: bool = False


@dataclass
class Camera:
    """Takes the pictures of one language, and keeps the order of the stops."""

    simulation: Simulation
    browser: Browser
    language: str
    stops: list[Stop] = field(default_factory=list)
    #: Of the moving picture: each with the seconds that it is shown.
    frames: list[tuple[Image.Image, float]] = field(default_factory=list)

    async def message(self, name: str, title: str, text: str, target: Any, *, viewer: Any = None) -> None:
        """Photograph a message, or the form or answer of an interaction."""
        self.stops.append(Stop(name=name, title=title, text=text))
        await self.simulation.advance_clock()
        for device in DEVICES:
            self._store(await self._shown(target, viewer, device), f"{name}-{device}")

    async def frame(self, target: Any, *, shown_s: float = 1.2) -> None:
        """Photograph a message for the moving picture."""
        shown = Image.open(io.BytesIO(await self._shown(target, None, "desktop"))).convert("RGB")
        canvas = Image.new("RGB", FRAME_PX, shown.getpixel((2, 2)))
        canvas.paste(shown, (0, max(0, (FRAME_PX[1] - shown.height) // 2)))
        self.frames.append((canvas, shown_s))

    async def _shown(self, target: Any, viewer: Any, device: str) -> bytes:
        viewer, size = viewer or self.simulation.ana, DEVICES[device]
        for tries_left in reversed(range(6)):
            try:
                async with self._preview(target, viewer, size) as preview:
                    shown = await preview.screenshot(viewer=viewer, target=target, viewport=size, allow_incomplete=True)
                break
            except SetupError:
                # A card was edited meanwhile.
                if not tries_left:
                    raise
        return bytes(shown.png)

    @contextlib.asynccontextmanager
    async def _preview(self, target: Any, viewer: Any, size: tuple[int, int]) -> AsyncIterator[Any]:
        env, channel = self.simulation.env, self.simulation.channel
        # A message of a thread, or an answer in it, is seen in its own channel.
        response = getattr(target, "_interaction", target)
        home = getattr(response, "channel_id", None) or getattr(getattr(target, "channel", None), "id", channel.id)
        place = next((each for each in channel.threads if each.id == home), channel)
        preview = env.preview(place, viewers=[viewer], width=size[0], height=size[1])
        # simcord starts a browser of its own that Playwright has downloaded.
        preview._capture_manager._ensure_browser = self._given
        async with preview:
            yield preview

    async def _given(self) -> Browser:
        return self.browser

    async def page(self, name: str, title: str, text: str, address: str | Path) -> None:
        """Photograph a web page, light and dark."""
        self.stops.append(Stop(name=name, title=title, text=text, is_page=True))
        for device, (width, height) in PAGE_DEVICES.items():
            for colors in ("light", "dark"):
                page = await self.browser.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme="dark" if colors == "dark" else "light",
                    locale=self.language.replace("_", "-"),
                )
                await page.goto(address.as_uri() if isinstance(address, Path) else address)
                whole_px = int(await page.evaluate("document.documentElement.scrollHeight"))
                # In a window of this height, images that are loaded when they are reached are there.
                await page.set_viewport_size({"width": width, "height": min(whole_px, PAGE_PX)})
                await page.wait_for_load_state("networkidle")
                self._store(await page.screenshot(), f"{name}-{device}-{colors}")
                await page.close()

    def _store(self, png: bytes, name: str) -> None:
        image = Image.open(io.BytesIO(png)).convert("RGB")
        path = PICTURES / self.language / f"{name}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "WEBP", quality=QUALITY, method=6)


@dataclass
class Walk:
    """What Ana and Ben do, stop by stop. Buttons are found by the ends of their ids, which no language changes."""

    app: App
    simulation: Simulation
    camera: Camera

    async def all(self) -> None:
        """Go through every stop."""
        await self.start()
        await self.training()
        await self.result()
        await self.sampling()
        await self.sharing()
        await self.pages()
        await self.dataset()
        await self.settings()
        await self.managing()

    async def slash(self, command: str, *, actor: Any = None, **options: Any) -> Any:
        return await (actor or self.simulation.ana).slash(self.simulation.channel, command, **options)

    async def press(self, message: Any, end: str, *, actor: Any = None) -> Any:
        """Press the button of a message, as it is now, whose id ends with `end`."""
        message = self.again(message)
        ids = [each for each in _ids(message.components) if re.search(end + r"(:\d+)?$", each)]
        if not ids:
            raise LookupError(f"no button {end!r} among {sorted(_ids(message.components))}")
        return await (actor or self.simulation.ana).click(message, custom_id=ids[0])

    async def until(self, is_there: Callable[[], Any]) -> Any:
        """Wait until something is in the channel or a thread, and return it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if found := is_there():
                    return found
                await asyncio.sleep(0.5)
                await self.simulation.advance_clock()

    def posted(self, kind: str, job_id: int) -> Any:
        """The newest message that is a notification of this kind; None if it is not sent."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.app.services.config.storage.data_dir / 'darkroom.db'}?mode=ro", uri=True)
        ) as db:
            rows = db.execute(
                "SELECT message_id FROM outbox WHERE job_id = ? AND message_id > 0 AND notification ->> 'kind' = ? "
                "UNION ALL SELECT message_id FROM card WHERE job_id = ? AND message_id > 0 AND kind = ? ORDER BY 1",
                (job_id, kind, job_id, kind),
            ).fetchall()
        sent = {message.id: message for message in self.simulation.messages()}
        return sent.get(rows[-1][0]) if rows else None

    async def start(self) -> None:
        """What a new member reads, and the first request."""
        shot = self.camera.message
        await shot("help", "/help", "What people want to do, by task.", await self.slash("help"))
        await shot(
            "presets", "/preset list", "The starting points, each with what it is for.", await self.slash("preset list")
        )
        momo = ("momo.zip", (resources.files("bot.demo") / "momo.zip").read_bytes())
        asked = await self.slash(
            "finetune",
            dataset=momo,
            base="tiny",
            preset="demo",
            trigger="momo",
            prompts="momo on a yellow background | a big momo on a blue background | a red star on a blue background",
            confirm=True,
        )
        request = asked.response.message
        await shot(
            "request",
            "/finetune",
            "Every image was looked at. Nothing is queued before [Start training].",
            request,
        )
        await shot(
            "edit", "[Edit]", "The few settings that matter, as they were typed.", await self.press(request, "edit")
        )
        advanced = await self.press(request, "advanced")
        await shot("advanced", "[Advanced…]", "Every other setting, by page; each says its range.", advanced)
        await self.press(request, "back")
        await self.camera.frame(self.again(request), shown_s=3)
        await self.press(request, "go")

    async def training(self) -> None:
        """The card and what the thread tells."""
        shot = self.camera.message
        card = await self.until(lambda: self.posted("card", 1))
        base = await self.until(lambda: self.posted("base", 1))
        await self.camera.frame(self.again(card))
        await self.camera.frame(base)
        await shot("base", "Before the first step", "What the base draws: every epoch is compared with it.", base)
        epoch = await self.until(lambda: self.posted("epoch", 1))
        await shot("epoch", "An epoch", "How much better it is, and the same prompts with the same seeds.", epoch)
        await shot(
            "card", "The card", "One message in the channel, edited; the rest is in its thread.", self.again(card)
        )
        await shot("details", "[Details]", "The numbers behind the words.", await self.press(card, "details"))
        queue = await self.slash("queue")
        await shot("queue", "/queue", "What runs and what waits.", queue)
        while not self.posted("early_stop", 1):
            if (newest := self.posted("epoch", 1)).id != epoch.id:
                epoch = newest
                await self.camera.frame(epoch)
                await self.camera.frame(self.again(card))
            await asyncio.sleep(1)
        stopped = self.posted("early_stop", 1)
        await shot("early-stop", "Early stop", "Why it stopped, what was kept, and how long that saved.", stopped)

    async def result(self) -> None:
        """The end, and what follows from it."""
        shot = self.camera.message
        done = await self.until(lambda: self.posted("done", 1))
        await shot("done", "The result", "The picture first, then the verdict, then one file for most people.", done)
        await shot(
            "files",
            "[All files]",
            "For A1111, ComfyUI and diffusers, with how to use them.",
            await self.press(done, "files"),
        )
        card = self.posted("card", 1)
        await shot("card-done", "The card at the end", "With the losses of all epochs.", card)
        await shot(
            "compare",
            "[Compare]",
            "Two epochs side by side.",
            await self.press(self.posted("early_stop", 1), "compare"),
        )
        await shot("history", "/job history", "Who did what, in words.", await self.slash("job history", id="1"))
        job = await self.app.services.jobs.get(1)
        await self.camera.page(
            "run",
            "The page of a training",
            "It comes with the result: curves, samples of each epoch, the test.",
            self.app.services.jobs.job_dir(job) / "report.html",
        )

    def again(self, message: Any) -> Any:
        """A message as it is now."""
        return next(each for each in self.simulation.messages() if each.id == message.id)

    async def sampling(self) -> None:
        """Draw with the result."""
        shot = self.camera.message
        done = self.posted("done", 1)
        await shot(
            "try",
            "[Try prompts]",
            "What to draw, how strongly, with which seeds.",
            await self.press(done, "try_prompts"),
        )
        asked = await self.slash(
            "sample",
            job="1",
            prompts="momo on a pink background | a small momo on a yellow background",
            epochs="base, 4, 8, best",
            strengths="0.6, 1",
        )
        await shot("sample", "/sample", "What will be drawn, and when.", asked)
        await self.ended(2)
        grid = await self.until(lambda: self.posted("card", 2))
        await shot(
            "grid", "A grid", "Epochs, strengths and prompts with the same seeds, to choose by eye.", self.again(grid)
        )
        share = await self.press(grid, "share_images")
        await shot("share", "[Show in the gallery]", "What the gallery will say.", share)

    async def sharing(self) -> None:
        """Compare trainings."""
        shot = self.camera.message
        await self.slash(
            "finetune", from_dataset="momo", base="tiny", preset="demo", settings=_SLOWER, epochs=3, confirm=False
        )
        await self.ended(3)
        compared = await self.slash("compare", jobs="1 3")
        await shot(
            "compare-jobs", "/compare", "Curves, samples with the same seeds, and the settings that differ.", compared
        )
        await shot("gallery", "/gallery", "What the team shows, with likes.", await self.slash("gallery"))

    async def pages(self) -> None:
        """The pages in the browser, if the bot has them (docs/web.md)."""
        page, ana = self.camera.page, self.simulation.ana

        async def address(kind: LinkKind, subject: int) -> str:
            link = await self.app.services.links.create(kind, subject, user_id=ana.id, guild_id=ana.guild.id)
            assert link is not None
            return link

        await page(
            "web-job",
            "The results of a training in the browser",
            "Samples, charts, and every file.",
            await address(LinkKind.JOB, 1),
        )
        await page(
            "web-dataset",
            "A dataset in the browser",
            "Keep, drop, crop, and write captions.",
            await address(LinkKind.DATASET, 1),
        )
        await page(
            "web-gallery",
            "The gallery in the browser",
            "For members of the server.",
            await address(LinkKind.GALLERY, 0),
        )

    async def ended(self, job_id: int) -> None:
        """Wait until a job has ended and all its messages are sent."""
        async with asyncio.timeout(PATIENCE_S):
            while not (await self.app.services.jobs.get(job_id)).state.is_end or await self.app.outbox.depth():
                await asyncio.sleep(0.5)
                await self.simulation.advance_clock()

    async def dataset(self) -> None:
        """A dataset that leaves decisions to its owner."""
        shot = self.camera.message
        blueprint = ("blueprint.zip", (resources.files("bot.demo") / "blueprint.zip").read_bytes())
        form = await self.slash("dataset upload")
        await shot("upload", "/dataset upload", "Images, archives and captions, up to ten files.", form)
        uploaded = await self.simulation.ana.submit_modal(form, {"files": [blueprint], "name": "blueprint"})
        card = uploaded.response.message
        await shot("dataset", "The card of a dataset", "What was found, and every image on contact sheets.", card)
        await shot("review", "[Review images]", "What needs a decision, by kind.", await self.press(card, "review"))
        card = (await self.slash("dataset inspect", dataset="blueprint")).response.message
        captions = await self.press(card, "captions")
        await shot("captions", "[Captions]", "What the captions have in common.", captions)
        rules = await self.press(captions.response.message, "rules")
        await shot("caption-rules", "[Change all at once]", "A trigger word, a beginning, words to remove.", rules)
        each = await self.press(captions.response.message, "each:[a-z_]+")
        await shot("caption", "[One by one]", "An image and its caption, with a form to change it.", each)
        number = int(_ids(card.components)[0].split(":")[1])
        found = await self.app.services.datasets.get(number)
        await self.camera.page(
            "report", "The report of a dataset", "Every image, what was found, and why.", found.folder / "report.html"
        )

    async def settings(self) -> None:
        """Wrong values, studies, and what one person chooses for themselves."""
        shot = self.camera.message
        wrong = await self.slash("finetune", from_dataset="blueprint", base="tiny", preset="demo", settings=_WRONG)
        await shot("wrong", "A wrong value", "What is wrong, and a value that works; nothing you typed is lost.", wrong)
        fix = await self.press(wrong.response.message, "fix")
        await shot("fix", "[Fix in form]", "The form as it was typed, with the nearest right value.", fix)
        study = await self.slash(
            "study compare",
            from_dataset="blueprint",
            base="tiny",
            preset="demo",
            vary="lr=1e-3,2e-3; rank=8,16",
            epochs=2,
        )
        await shot("study", "/study compare", "What a comparison costs, before it is queued.", study)
        await shot("notify", "/notify", "What you are told, where, and when not.", await self.slash("notify"))

    async def managing(self) -> None:
        """What the people see who run the server."""
        shot, ben = self.camera.message, self.simulation.ben
        for name, title, text in (
            ("admin settings", "/admin settings", "Who may do what, and where."),
            ("admin models", "/admin models", "The base models, and how to add one."),
            ("admin slots", "/admin slots", "Where trainings run."),
            ("admin health", "/admin health", "Database, disk, queue and connection."),
            ("admin audit", "/admin audit", "Who did what, when and why."),
        ):
            await shot(name.replace(" ", "-"), title, text, await self.slash(name, actor=ben), viewer=ben)


def _ids(components: Any) -> list[str]:
    found: list[str] = []
    for part in components:
        part = part if isinstance(part, dict) else part.to_dict()
        if part.get("type") == 2 and not part.get("disabled"):
            found.append(part["custom_id"])
        found += _ids(part.get("components", []))
        found += _ids([part["accessory"]] if "accessory" in part else [])
    return found


def write_tour(stops: Sequence[Stop]) -> None:
    """Write docs/tour.md: each stop with its pictures."""
    lines = [
        "# A tour of Darkroom",
        "",
        "The real bot and the real trainer in a simulated Discord, whose typeface is not Discord's own. The model is",
        "the toy model that ships (64 px). `make tour` takes all pictures again.",
    ]
    for stop in stops:
        lines += ["", f"## {stop.title}", "", stop.text, ""]
        kinds = [(device, colors) for device in DEVICES for colors in ("light", "dark")] if stop.is_page else []
        kinds = kinds or [(device, "") for device in DEVICES]
        shown = [
            (
                f"{words}, {' '.join(filter(None, kind))}",
                f"images/tour/{language}/{stop.name}-{'-'.join(filter(None, kind))}.webp",
            )
            for language, words in LANGUAGES.items()
            if (PICTURES / language).exists()
            for kind in kinds
        ]
        lines += ["| " + " | ".join(words for words, _path in shown) + " |", "|" + " --- |" * len(shown)]
        lines.append("| " + " | ".join(f"![{stop.title}: {words}]({path})" for words, path in shown) + " |")
    (DOCS / "tour.md").write_text("\n".join(lines) + "\n")


def write_movie(frames: Sequence[tuple[Image.Image, float]]) -> None:
    """Write the moving picture of a training, from the request to its file."""
    first, *others = [frame for frame, _shown_s in frames]
    first.save(
        MOVIE,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=[round(shown_s * 1000) for _frame, shown_s in frames],
        loop=0,
        quality=70,
        method=6,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def take(languages: Sequence[str]) -> None:
    """Walk through Darkroom once in each language."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("The tour needs Chromium: install the package `chromium`.")
    # Beside a training, a picture takes longer than usual; one of a card that was edited meanwhile never comes.
    _capture._CAPTURE_DEADLINE = 20.0
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for language in languages:
            with tempfile.TemporaryDirectory() as folder, speaking(language):
                port = free_port()
                web = WebSettings(port=port, public_url=f"http://127.0.0.1:{port}")
                # A picture needs some seconds in which the card stays as it is.
                cards = CardSettings(edit_interval_s=15.0, epoch_interval_s=5.0)
                config = demo_config(Path(folder)).model_copy(update={"web": web, "cards": cards})
                async with compose(config, download=read_attachment) as app, simulate(app.new_client()) as simulation:
                    for person in (simulation.ana, simulation.ben):
                        await app.services.languages.choose(language, person=person.id)
                    await app.services.languages.choose(language, server=simulation.channel.guild.id)
                    camera = Camera(simulation, browser, language)
                    await Walk(app, simulation, camera).all()
                    if language == "en":
                        write_movie(camera.frames)
        write_tour(camera.stops)


if __name__ == "__main__":
    setup_logging(logging.WARNING)
    asyncio.run(take(sys.argv[1:] or tuple(LANGUAGES)))
