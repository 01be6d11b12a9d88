"""The page of a dataset: the same decisions and permissions as in Discord, and what two people decide at once."""

from __future__ import annotations

import asyncio
import html
import re
from typing import Any

import aiohttp
import pytest

from bot.datasets import Dataset
from bot.datasets.decisions import with_caption, with_decisions
from bot.web import LinkKind
from tests.bot.conftest import GUILD
from tests.bot.fakes import uploads
from tests.bot.web.conftest import ANA, BEN, LEAD, STRANGER, Pages
from trainer.protocol.edits import Crop

#: By the stand-in trainer: six good ones, one with a finding, one dropped.
IMAGES = {**{f"{n}.png": b"good %d" % n for n in range(6)}, "blur.png": b"blurred", "twin.png": b"twin"}
SCRIPT = {"X-Requested-With": "fetch"}


@pytest.fixture
async def dataset(pages: Pages) -> Dataset:
    received = await pages.site.datasets.receive(uploads(IMAGES))
    return await pages.site.datasets.prepare(received, guild_id=GUILD, owner_id=ANA, name="fox")


async def now(pages: Pages, dataset: Dataset) -> Dataset:
    return await pages.site.datasets.get(dataset.id)


async def number_of(pages: Pages, dataset: Dataset, name: str) -> int:
    report = await pages.site.datasets.report(dataset)
    return next(number for number, image in enumerate(report.images, start=1) if image.source == name)


async def key_of(pages: Pages, dataset: Dataset, name: str) -> str:
    report = await pages.site.datasets.report(dataset)
    return next(str(image.pixels_sha256) for image in report.images if image.source == name)


def forms_of(text: str, number: int) -> list[dict[str, str]]:
    """The fields of each form of an image, as a browser would send them."""
    tile = re.search(rf'<article[^>]* id="no-{number}".*?</article>', text, re.DOTALL)
    assert tile is not None, f"no image {number}"
    forms = []
    for form in re.findall(r"<form.*?</form>", tile[0], re.DOTALL):
        fields = {
            found["name"]: html.unescape(found["value"])
            for found in re.finditer(r'<input [^>]*?name="(?P<name>[^"]+)"[^>]*? value="(?P<value>[^"]*)"', form)
        }
        if area := re.search(r'<textarea[^>]* name="caption"[^>]*>(.*?)</textarea>', form, re.DOTALL):
            fields["caption"] = html.unescape(area[1])
        forms.append(fields)
    return forms


async def form_of(pages: Pages, url: str, number: int, verb: str) -> dict[str, str]:
    """The form of an image with a button, filled as the page shows it."""
    _status, text, _headers = await pages.get(url)
    index = {"caption": 0, "keep": 1, "drop": 1, "undecide": 1, "crop": 2}[verb]
    return {**forms_of(text, number)[index], "verb": verb}


async def post(pages: Pages, url: str, fields: dict[str, Any], **headers: str) -> tuple[int, str]:
    async with pages.browser.post(url, data=fields, headers=headers, allow_redirects=False) as answer:
        return answer.status, answer.headers.get("Location", "") or await answer.text()


async def test_the_page_shows_every_image_and_what_was_found(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    status, text, _headers = await pages.get(url)
    assert status == 200
    assert text.count("<article") == len(IMAGES)
    assert text.count("data-crop=") >= 1
    found = re.findall(r'/files/([^"?]+)', text)
    for path in set(found):
        status, _text, headers = await pages.get(f"{url}/files/{path}")
        assert (status, headers["Content-Type"].partition("/")[0]) == (200, "image"), path
    status, text, _headers = await pages.get(f"{url}?part=blur")
    assert text.count("<article") == 1
    status, text, _headers = await pages.get(f"{url}?q=twin.PNG")
    assert text.count("<article") == 1
    for odd in (
        "?page=99999999999999999999",
        f"?page={'9' * 5000}",
        "?page=-1",
        "?page=%00",
        "?part=none&q=%f0%9f",
        "?page=٣",
    ):
        assert (await pages.get(url + odd))[0] == 200, odd


async def test_a_decision_is_the_same_as_in_discord_and_is_applied_at_once_with_others(
    pages: Pages, dataset: Dataset
) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    twin, blur = [await number_of(pages, dataset, name) for name in ("twin.png", "blur.png")]
    status, location = await post(pages, f"{url}/image", await form_of(pages, url, twin, "keep"))
    assert (status, location.endswith(f"#no-{twin}")) == (303, True)
    await post(pages, f"{url}/image", await form_of(pages, url, blur, "drop"))
    decided = await now(pages, dataset)
    assert decided.is_pending
    assert decided.edits.decisions == {
        await key_of(pages, dataset, "twin.png"): "keep",
        await key_of(pages, dataset, "blur.png"): "drop",
    }
    assert (await post(pages, f"{url}/apply", {}))[0] == 303
    applied = await now(pages, dataset)
    assert not applied.is_pending
    report = await pages.site.datasets.report(applied)
    assert {image.source: image.status for image in report.images if image.source in {"twin.png", "blur.png"}} == {
        "twin.png": "kept",
        "blur.png": "dropped",
    }
    # Taken back: the finding decides again.
    await post(pages, f"{url}/image", await form_of(pages, url, twin, "undecide"))
    assert list((await now(pages, dataset)).edits.decisions.values()) == ["drop"]


async def test_a_caption_is_written_in_place(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    form = await form_of(pages, url, 1, "caption")
    status, text = await post(pages, f"{url}/image", {**form, "caption": '  a <fox>\r\n & "me" '}, **SCRIPT)
    assert status == 200
    assert '"bar"' in text
    assert list((await now(pages, dataset)).edits.captions.values()) == ['a <fox> & "me"']
    again = await form_of(pages, url, 1, "caption")
    assert again["caption"] == 'a <fox> & "me"'
    _status, page, _headers = await pages.get(url)
    assert "<fox>" not in page


async def test_a_crop_is_stored_and_taken_back(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    form = await form_of(pages, url, 1, "crop")
    sides = {"left": "10", "top": "0", "right": "62,5", "bottom": "100"}
    assert (await post(pages, f"{url}/image", {**form, **sides}))[0] == 303
    assert list((await now(pages, dataset)).edits.crops.values()) == [Crop(left=0.1, top=0, right=0.625, bottom=1)]
    shown = await form_of(pages, url, 1, "crop")
    assert [shown[side] for side in ("left", "top", "right", "bottom")] == ["10", "0", "62.5", "100"]
    for wrong in ({"left": "80"}, {"right": "x"}, {"bottom": "101"}, {"top": ""}, {"left": "nan"}):
        status, _text = await post(pages, f"{url}/image", {**shown, **wrong})
        assert status == 422, wrong
    nothing = dict.fromkeys(("left", "top", "right", "bottom"), "")
    assert (await post(pages, f"{url}/image", {**shown, **nothing}))[0] == 303
    assert (await now(pages, dataset)).edits.crops == {}


@pytest.mark.parametrize("how", [{}, SCRIPT])
async def test_what_another_person_has_changed_meanwhile_is_told_and_not_lost(
    pages: Pages, dataset: Dataset, how: dict[str, str]
) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    form = await form_of(pages, url, 1, "caption")
    key = form["key"]
    # In Discord, meanwhile.
    await pages.site.datasets.decide(dataset.id, lambda edits: with_caption(edits, key, "by Lea"))
    status, text = await post(pages, f"{url}/image", {**form, "caption": "by Ana"}, **how)
    assert status == 409
    assert "by Lea" in html.unescape(text)
    assert (await now(pages, dataset)).edits.captions == {key: "by Lea"}
    if how:
        assert "by Ana" in text, "what was typed is still in its field"
    # The same words are no conflict, and neither is another decision about the image.
    assert (await post(pages, f"{url}/image", {**form, "caption": "by Lea"}))[0] == 303
    drop = await form_of(pages, url, 1, "drop")
    await pages.site.datasets.decide(dataset.id, lambda edits: with_caption(edits, key, "by Lea again"))
    assert (await post(pages, f"{url}/image", drop))[0] == 303
    await pages.site.datasets.decide(dataset.id, lambda edits: with_decisions(edits, [key], "keep"))
    assert (await post(pages, f"{url}/image", drop, **how))[0] == 409


async def test_all_images_of_a_question_are_decided_but_those_that_are_already(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    status, location = await post(pages, f"{url}/all", {"part": "blur", "verb": "drop", "q": "é&x"})
    assert (status, location.partition("?")[2]) == (303, "part=blur&q=%C3%A9%26x")
    assert (await now(pages, dataset)).edits.decisions == {await key_of(pages, dataset, "blur.png"): "drop"}
    assert (await post(pages, f"{url}/all", {"part": "none", "verb": "drop"}))[0] == 404
    assert (await post(pages, f"{url}/all", {"part": "blur", "verb": "explode"}))[0] == 404


async def test_rules_for_all_captions_are_those_of_discord_and_conflicts_are_told(
    pages: Pages, dataset: Dataset
) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    _status, text, _headers = await pages.get(url)
    seen = re.search(r'name="seen" value="(\w+)"', text)
    assert seen is not None
    rules = {"trigger": "foxo", "prefix": "", "suffix": "", "strip": "a, b", "replace": "x => y\r\nz =>"}
    assert (await post(pages, f"{url}/rules", {**rules, "seen": seen[1]}))[0] == 303
    stored = (await now(pages, dataset)).edits.rules
    assert (stored.trigger, stored.strip, [each.old for each in stored.replace]) == ("foxo", ("a", "b"), ["x", "z"])
    assert (await post(pages, f"{url}/rules", {**rules, "trigger": "other", "seen": seen[1]}))[0] == 409
    assert (await post(pages, f"{url}/rules", {**rules, "seen": seen[1]}))[0] == 303, "the same is no conflict"
    assert (await post(pages, f"{url}/rules", {**rules, "replace": "no arrow", "seen": ""}))[0] == 422


FORMS = {
    "image": {"verb": "drop", "number": "1", "key": "k", "seen_decision": ""},
    "all": {"verb": "drop", "part": "blur"},
    "rules": {"trigger": "x", "prefix": "", "suffix": "", "strip": "", "replace": "", "seen": ""},
    "apply": {},
}


@pytest.mark.parametrize(("who", "status"), [(BEN, 403), (STRANGER, 403), (LEAD, 303)])
async def test_only_the_owner_and_managers_decide(pages: Pages, dataset: Dataset, who: int, status: int) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id, who)
    key = await key_of(pages, dataset, "0.png")
    number = await number_of(pages, dataset, "0.png")
    if who == BEN:
        _status, text, _headers = await pages.get(url)
        assert "<textarea" not in text
        assert 'method="post"' not in text
    seen = re.search(r'name="seen" value="(\w+)"', (await pages.get(url))[1])
    for name, fields in FORMS.items():
        sent = {**fields, **({"number": str(number), "key": key} if name == "image" else {})}
        if name == "rules" and seen:
            sent["seen"] = seen[1]
        assert (await post(pages, f"{url}/{name}", sent))[0] == status, name
    if status != 303:
        assert not (await now(pages, dataset)).is_pending


async def test_a_form_of_another_revision_or_another_image_changes_nothing(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    form = await form_of(pages, url, 1, "drop")
    numbers = [{"number": number} for number in ("0", "999", "x", "²", "9" * 5000)]
    for wrong in ({"key": "0" * 64}, *numbers):
        assert (await post(pages, f"{url}/image", {**form, **wrong}))[0] == 404, wrong
    assert (await post(pages, f"{url}/image", {**form, "verb": "explode"}))[0] == 422
    assert (await post(pages, f"{url}/image", {**form, "verb": "caption", "caption": "x" * 5000}))[0] == 422
    assert not (await now(pages, dataset)).is_pending


async def test_another_site_cannot_decide(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    form = await form_of(pages, url, 1, "drop")
    assert (await post(pages, f"{url}/image", form, Origin="https://evil.example"))[0] == 403
    assert (await post(pages, f"{url}/image", form, **{"Sec-Fetch-Site": "cross-site"}))[0] == 403
    assert not (await now(pages, dataset)).is_pending
    assert (await post(pages, f"{url}/image", form, Origin="http://pages.example"))[0] == 303


@pytest.mark.parametrize(
    "path",
    [
        "report.json",
        "sheets/kept.png",
        "edits.json",
        "decoded.jsonl",
        "images",
        "images/../report.json",
        "thumbnails/%2e%2e/edits.json",
    ],
)
async def test_only_images_of_the_dataset_have_an_address(pages: Pages, dataset: Dataset, path: str) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    async with pages.browser.get(f"{url}/files/{path}") as answer:
        assert answer.status == 404


async def test_a_private_dataset_opens_for_those_who_may_see_it(pages: Pages, dataset: Dataset) -> None:
    links = {who: await pages.link(LinkKind.DATASET, dataset.id, who) for who in (ANA, BEN, LEAD)}
    await pages.site.datasets.set_privacy(dataset.id, by=1, is_private=True, guests=())
    statuses = {who: (await pages.get(url))[0] for who, url in links.items()}
    assert statuses == {ANA: 200, BEN: 404, LEAD: 200}
    thumbnail = (await pages.site.datasets.report(dataset)).images[0].thumbnail
    assert (await pages.get(f"{links[BEN]}/files/{thumbnail}"))[0] == 404
    await pages.site.datasets.set_privacy(dataset.id, by=1, is_private=True, guests=(BEN,))
    assert (await pages.get(links[BEN]))[0] == 200


async def test_a_member_who_lost_the_role_sees_nothing(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id, BEN)
    rules = pages.site.access.rules_of(GUILD).model_copy(update={"datasets": (77,)})
    await pages.site.access.set_rules(GUILD, rules, by=LEAD)
    assert (await pages.get(url))[0] == 403


async def test_a_deleted_dataset_is_told(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id)
    await pages.site.datasets.delete(dataset.id)
    assert (await pages.get(url))[0] == 404


async def test_a_browser_that_asks_for_all_pictures_at_once_gets_them(pages: Pages, dataset: Dataset) -> None:
    """Over HTTP/2 a browser sends a hundred requests at the same time, and the proxy passes them on."""
    url = await pages.link(LinkKind.DATASET, dataset.id)
    thumbnail = (await pages.site.datasets.report(dataset)).images[0].thumbnail
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as browser:

        async def status() -> int:
            async with browser.get(f"{url}/files/{thumbnail}") as answer:
                await answer.read()
                return answer.status

        assert set(await asyncio.gather(*(status() for _picture in range(90)))) == {200}


async def test_a_refusal_names_people_and_not_their_numbers(pages: Pages, dataset: Dataset) -> None:
    url = await pages.link(LinkKind.DATASET, dataset.id, BEN)
    status, text = await post(pages, f"{url}/apply", {}, Accept="text/html")
    assert status == 403
    assert "Ana" in text
    assert "&lt;@" not in text
    assert "`" not in text
    rules = pages.site.access.rules_of(GUILD).model_copy(update={"datasets": (77,)})
    await pages.site.access.set_rules(GUILD, rules, by=LEAD)
    status, text, _headers = await pages.get(url, headers={"Accept": "text/html"})
    assert (status, "77" in text) == (403, False)
