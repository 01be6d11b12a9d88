"""The page of the gallery: which pictures, in which order, for whom; and likes."""

from __future__ import annotations

import re

from bot.queue import Job
from bot.queue.store.gallery_store import GalleryPost, Picture, ShownImage
from bot.web import LinkKind
from tests.bot.conftest import CHANNEL, GUILD
from tests.bot.web.conftest import ANA, BEN, STRANGER, Pages, small_png, write_files


async def share(pages: Pages, job: Job, path: str, tags: tuple[str, ...] = (), base: str = "sd15") -> GalleryPost:
    write_files(pages.site.jobs.job_dir(job), {path: small_png()})
    picture = Picture(path=path, images=(ShownImage(prompt="a <fox>", seed=4, strength=0.8),))
    return await pages.site.jobs.gallery.post(
        job, picture, model_job_id=job.id, base=base, tags=tags, channel_id=CHANNEL, by=job.owner_id
    )


async def test_pictures_are_shown_by_tag_base_person_and_likes(pages: Pages) -> None:
    ana, ben = await pages.submit(owner=ANA), await pages.submit(owner=BEN, name="owl")
    first = await share(pages, ana, "samples/1.png", ("red",))
    second = await share(pages, ben, "samples/2.png", base="sdxl")
    elsewhere = await share(pages, await pages.submit(guild=GUILD + 1, name="other"), "samples/3.png")
    url = await pages.link(LinkKind.GALLERY)

    async def shown(query: str = "") -> list[int]:
        status, text, _headers = await pages.get(url + query)
        assert status == 200
        assert "<fox>" not in text
        return [int(number) for number in re.findall(r'id="post-(\d+)"', text)]

    assert await shown() == [second.id, first.id]
    assert await shown("?tag=red") == [first.id]
    assert await shown("?base=sdxl") == [second.id]
    assert await shown(f"?person={BEN}") == [second.id]
    assert await shown("?page=99&person=x") == [second.id, first.id]
    await pages.site.jobs.gallery.vote(GUILD, first.id, BEN)
    assert await shown("?sort=liked") == [first.id, second.id]
    assert (await pages.get(f"{url}/pictures/{first.id}"))[0] == 200
    for other in (elsewhere.id, 999, "x", "0", "-1"):
        assert (await pages.get(f"{url}/pictures/{other}"))[0] == 404, other
    await pages.site.jobs.gallery.withdraw(GUILD, first.id, by=ANA, can_manage=False)
    assert (await pages.get(f"{url}/pictures/{first.id}"))[0] == 404


async def test_a_member_likes_a_picture_once_and_takes_it_back(pages: Pages) -> None:
    post = await share(pages, await pages.submit(), "samples/1.png")
    url = await pages.link(LinkKind.GALLERY, user_id=BEN)
    likes = []
    for _press in range(2):
        async with pages.browser.post(
            f"{url}/pictures/{post.id}/like", data={"sort": "liked", "page": "2"}, allow_redirects=False
        ) as answer:
            assert answer.status == 303
            assert answer.headers["Location"].endswith(f"?sort=liked&page=2#post-{post.id}")
        likes.append(('aria-pressed="true"' in (await pages.get(url))[1], (await _now(pages, post)).likes))
    assert likes == [(True, 1), (False, 0)]


async def _now(pages: Pages, post: GalleryPost) -> GalleryPost:
    return await pages.site.jobs.gallery.get_in(GUILD, post.id)


async def test_only_the_picture_of_a_post_is_given(pages: Pages) -> None:
    job = await pages.submit()
    write_files(pages.site.jobs.job_dir(job), {"spec.json": b"secret", "samples/1.png": small_png()})
    (pages.site.jobs.job_dir(job) / "samples/link.png").symlink_to(pages.site.jobs.job_dir(job) / "spec.json")
    for path in ("samples/link.png", "samples/../spec.json", "samples/none.png"):
        picture = Picture(path=path, images=(ShownImage(prompt="x", seed=1),))
        post = await pages.site.jobs.gallery.post(
            job, picture, model_job_id=None, base="b", channel_id=CHANNEL, by=job.owner_id
        )
        url = await pages.link(LinkKind.GALLERY)
        status, text, _headers = await pages.get(f"{url}/pictures/{post.id}")
        assert (status, "secret" in text) == (404, False), path
        assert (await pages.get(url))[0] == 200


async def test_the_gallery_is_for_members(pages: Pages) -> None:
    assert (await pages.get(await pages.link(LinkKind.GALLERY, user_id=STRANGER)))[0] == 403
    url = await pages.link(LinkKind.GALLERY, guild_id=GUILD + 1)
    assert (await pages.get(url))[0] == 403
