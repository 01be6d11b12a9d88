"""[Open page] on jobs, datasets and the gallery: a link for the member who presses it, to the bot's own pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot.errors import JobRefused
from bot.ui.help_pages import PAGE_LABELS, HelpPage
from bot.web import LinkKind
from tests.bot.cogs import conftest
from tests.bot.cogs.conftest import World, answer, first_bot, next_bot, text_of, world
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged, shown_again, upload_dataset
from trainer.protocol.text import translate


def link_in(result: Any) -> str:
    """The address in the newest answer to a press."""
    message = result.followups[-1] if result.followups else result.response.message
    return next(url for url in _links(message.components) if url.startswith("http://127.0.0.1"))


def _links(components: Any) -> list[str]:
    found: list[str] = []
    for part in components:
        part = part if isinstance(part, dict) else part.to_dict()
        found += [part["url"]] if part.get("url") else []
        found += _links(part.get("components", []))
    return found


async def opened(url: str) -> tuple[int, str]:
    headers = {"Accept": "text/html"}
    async with aiohttp.ClientSession() as browser, browser.get(url, headers=headers) as page:
        return page.status, await page.text()


def result_post(lab: World) -> Any:
    return next(each for each in lab.messages() if "is done" in conftest.text_of(each) and buttons(each))


@pytest.mark.usefixtures("pages_are_on")
async def test_a_finished_training_has_a_page_for_each_member_also_after_a_restart(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        await lab.train(name="fox")
        post = result_post(lab)
        pressed = await press(lab.ana, post, "Open page")
        assert pressed.response.ephemeral
        first, again = link_in(pressed), link_in(await press(lab.ana, post, "Open page"))
        of_ben = link_in(await press(lab.ben, post, "Open page"))
        assert len({first, again, of_ben}) == 3
        for url in (first, again, of_ben):
            status, text = await opened(url)
            assert status == 200
            assert "fox" in text
        with_files = await lab.ana.slash(lab.channel, "job files", id="1")
        assert (await opened(link_in(with_files)))[0] == 200
    async with next_bot(lab, data_dir):
        assert (await opened(first))[0] == 200
        assert (await opened(link_in(await press(lab.ben, result_post(lab), "Open page"))))[0] == 200


@pytest.mark.usefixtures("pages_are_on")
async def test_a_dataset_has_a_page_where_its_owner_decides_and_others_look(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await upload_dataset(lab)
        status, text = await opened(link_in(await press(lab.ana, card, "Open page")))
        assert (status, "<textarea" in text) == (200, True)
        dataset = (await lab.app.services.datasets.search(lab.channel.guild.id))[0]
        seen = await lab.ben.slash(lab.channel, "dataset inspect", dataset=dataset.name)
        status, text = await opened(link_in(await press(lab.ben, seen.response.message, "Open page")))
        assert (status, "<textarea" in text) == (200, False)


@pytest.mark.usefixtures("pages_are_on")
async def test_a_member_who_leaves_and_a_role_that_is_taken_close_the_page(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await upload_dataset(lab)
        url = link_in(await press(lab.ana, card, "Open page"))
        guild = lab.channel.guild
        rules = lab.app.services.access.rules_of(guild.id).model_copy(update={"datasets": (1,)})
        await lab.app.services.access.set_rules(guild.id, rules, by=1)
        status, text = await opened(url)
        assert status == 403
        assert "<textarea" not in text


async def test_without_pages_there_is_no_button_and_an_old_one_says_so(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(name="fox")
        assert "Open page" not in buttons(result_post(lab))
        assert "no web pages" in await press_forged(lab, "job:1:web")
        assert "no web pages" in await press_forged(lab, "gallery:0:web")
        dataset = (await lab.app.services.datasets.search(lab.channel.guild.id))[0]
        assert "no web pages" in await press_forged(lab, f"ds:{dataset.id}:web")
        rows = await lab.app.parts.db.all("SELECT * FROM web_link WHERE kind = ?", (LinkKind.JOB,))
        assert rows == []


@pytest.mark.usefixtures("pages_are_on")
async def test_no_link_is_made_to_what_a_member_may_not_see(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await upload_dataset(lab)
        dataset = (await lab.app.services.datasets.search(lab.channel.guild.id))[0]
        await lab.app.services.datasets.set_privacy(dataset.id, by=1, is_private=True, guests=())
        assert "http" not in await press_forged(lab, f"ds:{dataset.id}:web", lab.ben)
        for number in (7, 10**17):
            assert "http" not in await press_forged(lab, f"job:{number}:web", lab.ben)
            assert "http" not in await press_forged(lab, f"ds:{number}:web", lab.ben)
        assert await lab.app.parts.db.all("SELECT * FROM web_link") == []


@pytest.mark.usefixtures("pages_are_on")
async def test_the_gallery_has_a_page(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(name="fox")
        shared = await lab.ana.slash(lab.channel, "job share", id="1")
        assert answer(shared)
        shown = await lab.ben.slash(lab.channel, "gallery")
        message = shown.followups[-1] if shown.followups else shown.response.message
        status, text = await opened(link_in(await press(lab.ben, message, "Open page")))
        assert status == 200
        assert 'id="post-1"' in text


@pytest.mark.usefixtures("pages_are_on")
async def test_help_and_the_upload_command_name_the_upload_page(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        shown = (await lab.ana.slash(lab.channel, "help")).response.message
        await press(lab.ana, shown, translate(PAGE_LABELS[HelpPage.IMAGES]))
        assert "you get a page for them" in text_of(shown_again(lab, shown))
        assert "a page that takes folders" in described(lab, "dataset upload")


async def test_without_pages_nothing_names_them(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        shown = (await lab.ana.slash(lab.channel, "help")).response.message
        await press(lab.ana, shown, translate(PAGE_LABELS[HelpPage.IMAGES]))
        assert "a page" not in text_of(shown_again(lab, shown))
        assert "page" not in described(lab, "dataset upload")


def described(lab: World, command: str) -> str:
    """The description of a command as Discord gets it."""
    tree = lab.env.bot.tree
    found = next(each for each in tree.walk_commands() if each.qualified_name == command)
    return str(found.to_dict(tree)["description"])


@pytest.mark.usefixtures("pages_are_on")
async def test_a_manager_ends_links_and_their_owners_get_new_ones(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(name="fox")
        boss, post = lab.add_manager(), result_post(lab)
        dataset = (await lab.app.services.datasets.search(lab.channel.guild.id))[0]

        async def links() -> dict[str, str]:
            made = {"ana": await press(lab.ana, post, "Open page"), "ben": await press(lab.ben, post, "Open page")}
            seen = await lab.ben.slash(lab.channel, "dataset inspect", dataset=dataset.name)
            made["dataset"] = await press(lab.ben, seen.response.message, "Open page")
            return {name: link_in(result) for name, result in made.items()}

        for options, ended in (
            ({"member": lab.ben.user}, {"ben", "dataset"}),
            ({"job": "1"}, {"ana", "ben"}),
            ({"dataset": dataset.name}, {"dataset"}),
            ({"member": lab.ana.user, "dataset": dataset.name}, set()),
            ({}, {"ana", "ben", "dataset"}),
        ):
            urls = await links()
            result = answer(await boss.slash(lab.channel, "admin links", **options))
            assert ("no such link" in result) is (not ended), result
            statuses = {name: (await opened(url))[0] for name, url in urls.items()}
            assert statuses == {name: 410 if name in ended else 200 for name in urls}, options
            await lab.app.services.links.revoke_in(lab.channel.guild.id, by=boss.id)
        assert "ended links to web pages: 3" in answer(await boss.slash(lab.channel, "admin audit"))
        both = await boss.slash(lab.channel, "admin links", job="1", dataset=dataset.name)
        assert "not both" in answer(both)
        assert lab.refusals() == [JobRefused]

        # What has ended says where there is a new one, and the message in Discord has a button for it.
        old = await press(lab.ana, post, "Open page")
        url = link_in(old)
        await lab.app.services.links.revoke_in(lab.channel.guild.id, by=boss.id)
        card = await lab.app.services.outbox.cards.of(1)
        assert card is not None
        status, text = await opened(url)
        place = f"https://discord.com/channels/{lab.channel.guild.id}/{card.thread_id or card.channel_id}"
        assert (status, place in text) == (410, True)
        message = old.followups[-1] if old.followups else old.response.message
        assert (await opened(link_in(await press(lab.ana, message, "New link"))))[0] == 200
