"""The gallery: a picture is posted once, liked once by each, browsed, and taken back with its message."""

from __future__ import annotations

import pytest

from bot.db import Database
from bot.outbox import ChannelGone, MessageForm, MessageGone, Notification, Outbox, Sender, SendLater
from bot.queue import Job, JobStore
from bot.queue.store.gallery_store import (
    GalleryFilter,
    GalleryPost,
    GallerySort,
    NoSuchPost,
    NotYourPicture,
    Picture,
    ShownImage,
    parse_tags,
)
from tests.bot.conftest import CHANNEL, GUILD, Submit
from tests.bot.fakes import FakeClock, FakePost, Killed, KillSwitch

ANA, BEN, CLEO = 1, 2, 3
WALL = CHANNEL + 9


def picture(path: str = "samples/1.png", prompt: str = "a fox") -> Picture:
    return Picture(path=path, images=(ShownImage(prompt=prompt, seed=4),), epoch=3)


@pytest.fixture
def post() -> FakePost:
    return FakePost()


@pytest.fixture
def sender(store: JobStore, outbox: Outbox, post: FakePost, clock: FakeClock) -> Sender:
    async def render(notification: Notification, _form: MessageForm) -> str:
        if not notification.post_id:
            return str(notification.kind)
        shown = await store.gallery.get(notification.post_id)
        assert shown is not None
        return f"{shown.picture.path} {shown.likes}"

    return Sender(outbox, post, render, poll_s=0.05, clock=clock)


async def share(store: JobStore, job: Job, shown: Picture | None = None, **more: object) -> GalleryPost:
    values = {"model_job_id": job.id, "base": "sd15", "channel_id": WALL, "by": job.owner_id, **more}
    return await store.gallery.post(job, shown or picture(), **values)  # type: ignore[arg-type]


async def test_a_picture_is_posted_once_and_its_job_keeps_its_files(
    store: JobStore, submit: Submit, sender: Sender, post: FakePost
) -> None:
    job = await submit()
    first = await share(store, job)
    again = await share(store, job, channel_id=WALL + 1)
    await sender.step()

    assert again.id == first.id
    assert post.texts(WALL) == ["samples/1.png 0"]
    assert post.texts(WALL + 1) == []
    assert (await store.get(job.id)).is_shared


async def test_each_person_likes_a_picture_once_and_may_take_it_back(
    store: JobStore, submit: Submit, sender: Sender, post: FakePost
) -> None:
    shown = await share(store, await submit())
    await sender.step()
    for user in (BEN, CLEO, BEN, BEN):
        liked = await store.gallery.vote(GUILD, shown.id, user)
    await sender.step()

    assert liked.likes == 2
    assert post.texts(WALL) == ["samples/1.png 2"]
    with pytest.raises(NoSuchPost):
        await store.gallery.vote(GUILD + 1, shown.id, BEN)


async def test_a_withdrawn_picture_leaves_its_channel_and_frees_its_files_with_the_last(
    store: JobStore, submit: Submit, sender: Sender, post: FakePost
) -> None:
    job = await submit()
    one, two = await share(store, job), await share(store, job, picture("samples/2.png"))
    await sender.step()
    with pytest.raises(NotYourPicture):
        await store.gallery.withdraw(GUILD, one.id, by=BEN, can_manage=False)
    await store.gallery.withdraw(GUILD, one.id, by=BEN, can_manage=True)
    await sender.step()

    assert post.texts(WALL) == ["samples/2.png 0"]
    assert (await store.get(job.id)).is_shared
    await store.gallery.withdraw(GUILD, two.id, by=ANA, can_manage=False)
    await sender.step()
    assert post.texts(WALL) == []
    assert not (await store.get(job.id)).is_shared
    with pytest.raises(NoSuchPost):
        await store.gallery.withdraw(GUILD, two.id, by=ANA, can_manage=False)
    assert (await share(store, job)).id not in {one.id, two.id}


async def test_a_picture_that_was_withdrawn_before_it_was_sent_is_never_sent(
    store: JobStore, submit: Submit, sender: Sender, post: FakePost, outbox: Outbox
) -> None:
    shown = await share(store, await submit())
    await store.gallery.withdraw(GUILD, shown.id, by=ANA, can_manage=False)
    await sender.step()

    assert post.texts(WALL) == []
    assert await outbox.depth() == 0


async def test_a_message_that_is_deleted_by_hand_stays_so(
    store: JobStore, submit: Submit, sender: Sender, post: FakePost, outbox: Outbox
) -> None:
    shown = await share(store, await submit())
    await sender.step()
    post.messages = [each for each in post.messages if each.channel_id != WALL]
    await store.gallery.vote(GUILD, shown.id, BEN)
    await sender.step()

    assert post.texts(WALL) == []
    assert await outbox.depth() == 0


@pytest.mark.parametrize("gone", [MessageGone("404 10008"), ChannelGone("404 10003")])
async def test_a_picture_is_withdrawn_although_its_message_or_channel_is_gone(
    store: JobStore,
    submit: Submit,
    sender: Sender,
    post: FakePost,
    outbox: Outbox,
    gone: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(channel_id: int, message_id: int) -> None:
        raise gone

    shown = await share(store, await submit())
    await sender.step()
    monkeypatch.setattr(post, "delete", refuse)
    await store.gallery.withdraw(GUILD, shown.id, by=ANA, can_manage=False)
    await sender.step()

    assert await outbox.depth() == 0
    assert await store.gallery.count(GUILD) == 0


async def test_a_deletion_that_fails_for_a_while_is_tried_again(
    store: JobStore, submit: Submit, sender: Sender, post: FakePost, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(channel_id: int, message_id: int) -> None:
        raise SendLater("500")

    shown = await share(store, await submit())
    await sender.step()
    with monkeypatch.context() as patched:
        patched.setattr(post, "delete", fail)
        await store.gallery.withdraw(GUILD, shown.id, by=ANA, can_manage=False)
        await sender.step()
    assert post.texts(WALL) == ["samples/1.png 0"]
    clock.advance(120)
    await sender.step()
    assert post.texts(WALL) == []


@pytest.mark.parametrize("point", range(1, 4))
@pytest.mark.parametrize("is_withdrawn", [False, True])
async def test_a_bot_that_dies_while_it_posts_a_picture_posts_it_once(
    store: JobStore, submit: Submit, sender: Sender, post: FakePost, outbox: Outbox, point: int, is_withdrawn: bool
) -> None:
    job = await submit()
    await sender.step()
    shown = await share(store, job)
    post.kill_switch = KillSwitch(kill_at=point)
    with pytest.raises(BaseExceptionGroup) as killed:
        await sender.step()
    assert killed.value.split(Killed)[0] is not None
    post.kill_switch = KillSwitch()
    # simcord, and Discord after some minutes, know no nonce.
    post.enforces_nonce = False
    if is_withdrawn:
        await store.gallery.withdraw(GUILD, shown.id, by=ANA, can_manage=False)
    for _each in range(3):
        await Sender(outbox, post, sender._render, clock=sender._clock).step()

    assert post.texts(WALL) == ([] if is_withdrawn else ["samples/1.png 0"])


async def test_pictures_are_found_by_person_base_and_tag_in_both_orders(store: JobStore, submit: Submit) -> None:
    ana, ben = await submit(owner=ANA), await submit(owner=BEN)
    one = await share(store, ana, picture("1.png"), tags=("fox", "snow"))
    two = await share(store, ana, picture("2.png"), base="sdxl")
    three = await share(store, ben, picture("3.png"), tags=("fox",))
    await store.gallery.vote(GUILD, one.id, CLEO)

    async def found(sort: GallerySort = GallerySort.NEWEST, **wanted: object) -> list[int]:
        return [each.id for each in await store.gallery.browse(GUILD, GalleryFilter(**wanted), sort=sort)]  # type: ignore[arg-type]

    assert await found() == [three.id, two.id, one.id]
    assert await found(GallerySort.LIKED) == [one.id, three.id, two.id]
    assert await found(person=ANA) == [two.id, one.id]
    assert await found(base="sdxl") == [two.id]
    assert await found(tag="fox") == [three.id, one.id]
    assert await found(tag="fox", person=ANA) == [one.id]
    assert await store.gallery.browse(GUILD + 1) == []
    assert await store.gallery.bases(GUILD) == ["sd15", "sdxl"]
    assert await store.gallery.tags(GUILD, "f") == ["fox"]
    assert [each.id for each in await store.gallery.browse(GUILD, most=1, skip=1)] == [two.id]


async def test_a_sampling_keeps_the_files_of_the_training_that_drew_it(
    store: JobStore, submit: Submit, db: Database
) -> None:
    model, drawn = await submit(), await submit()
    shown = await share(store, drawn, model_job_id=model.id)
    assert (await store.get(model.id)).is_shared
    assert (await store.get(drawn.id)).is_shared
    await store.gallery.withdraw_all(model, by=ANA)
    assert not (await store.get(model.id)).is_shared
    assert not (await store.get(drawn.id)).is_shared
    found = await store.gallery.get(shown.id)
    assert found is not None
    assert found.is_withdrawn


def test_tags_are_words_in_lower_case_each_once() -> None:
    assert parse_tags("#Fox, snow  fox -- ÄÖ a b c d") == ("fox", "snow", "äö", "a", "b")
    assert parse_tags(" ,# ") == ()
