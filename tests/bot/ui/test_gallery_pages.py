"""The gallery: a picture, its pages and answers; whatever members typed, within Discord's limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bot.publishing import Publication, PublicationOutcome
from bot.queue.store.gallery_store import GalleryFilter, GalleryPost, GallerySort, Picture, ShownImage
from bot.ui.comparison_pages import comparison_reply
from bot.ui.gallery_pages import (
    PAGE_SIZE,
    GalleryView,
    PostContext,
    gallery_page,
    gallery_post_message,
    shared_reply,
    tagged_text,
    unshared_text,
    word_key,
)
from bot.ui.publication_pages import publish_question, published_post, publishing_text
from tests.bot.ui.examples import NOW, OWNER, job
from tests.bot.ui.rendering import HOSTILE, check_limits, check_messages
from trainer.protocol.hub import Published
from trainer.protocol.job_comparison import DifferingSetting, JobComparison

GOLDEN = Path(__file__).parent / "golden"
LIMIT = 10 * 1024 * 1024


def post(**changes: Any) -> GalleryPost:
    picture = Picture(path="sample.png", images=(ShownImage(prompt="a red fox", seed=4),), alt_text="A fox", epoch=3)
    values: dict[str, Any] = {
        "id": 7, "guild_id": 1, "job_id": 42, "owner_id": OWNER, "model_job_id": 42, "picture": picture,
        "base": "sd15", "tags": ("fox", "snow"), "likes": 3, "created_at": NOW, "is_withdrawn": False,
    }  # fmt: skip
    return GalleryPost(**{**values, **changes})


@pytest.fixture
def shown(tmp_path: Path) -> PostContext:
    Image.new("RGB", (8, 8)).save(tmp_path / "sample.png")
    return PostContext(post=post(), job=job(), job_dir=tmp_path, model=job(), file_limit=LIMIT)


def test_the_pictures_and_pages(shown: PostContext, tmp_path: Path) -> None:
    sampled = Picture(
        path="sample.png",
        images=tuple(ShownImage(prompt=f"fox {n}", seed=n, negative_prompt="blurry", strength=0.8) for n in range(6)),
    )
    of_sampling = replace(shown, post=post(picture=sampled, model_job_id=None, tags=()), model=None)
    view = GalleryView(
        wanted=GalleryFilter(person=OWNER, base="sd15", tag="fox"), sort=GallerySort.LIKED, page=1, total=9
    )
    check_messages(
        GOLDEN / "gallery.txt",
        {
            "a picture of a training": gallery_post_message(shown),
            "a picture without its file": gallery_post_message(replace(shown, file_limit=1)),
            "a picture of a sampling": gallery_post_message(of_sampling),
            "a picture of the base model": gallery_post_message(
                replace(shown, post=post(picture=shown.post.picture.model_copy(update={"epoch": 0})))
            ),
            "a page": gallery_page(view, [shown, replace(of_sampling, post=replace(of_sampling.post, id=8))]),
            "an empty gallery": gallery_page(
                GalleryView(wanted=GalleryFilter(), sort=GallerySort.NEWEST, page=0, total=0), []
            ),
            "nothing found": gallery_page(replace(view, total=0), []),
            "shared": shared_reply(post(), 99),
            "shared where I may not write": shared_reply(post(tags=()), 99, missing=["Send Messages"]),
            "unshared": unshared_text(1) + "\n" + unshared_text(2),
            "tagged": tagged_text(post()) + "\n" + tagged_text(post(tags=())),
            "push?": publish_question(job(), "ana/fox-42"),
            "pushing": publishing_text(job(), "ana/fox-42"),
            "pushed": published_post(job(), publication(PublicationOutcome.DONE)),
            "refused": published_post(job(), publication(PublicationOutcome.REFUSED)),
            "given up": published_post(job(), publication(PublicationOutcome.GIVEN_UP)),
        },
        tmp_path,
    )


def publication(outcome: PublicationOutcome) -> Publication:
    published = Published(url="https://huggingface.co/ana/fox-42", is_private=True)
    return Publication(
        outcome=outcome,
        repository="ana/fox-42",
        published=published if outcome is PublicationOutcome.DONE else None,
        reason="" if outcome is PublicationOutcome.DONE else "The token may not write to ana/fox-42.",
    )


def test_whatever_members_typed_fits(shown: PostContext, tmp_path: Path) -> None:
    long = (HOSTILE * 200)[:2000]
    images = tuple(ShownImage(prompt=long, seed=2**31, negative_prompt=long, strength=1.25) for _n in range(20))
    hostile = replace(
        shown,
        post=post(picture=Picture(path="sample.png", images=images, alt_text=long), tags=("狐" * 30,) * 5, base=long),
        job=job(name="n" * 40),
    )
    page = [replace(hostile, post=replace(hostile.post, id=10**17 + n)) for n in range(PAGE_SIZE)]
    wanted = GalleryFilter(person=OWNER, base=long, tag="狐" * 30)
    view = GalleryView(wanted=wanted, sort=GallerySort.NEWEST, page=99_998, total=400_000)
    comparison = JobComparison(
        order=tuple(range(5)),
        verdict=(long,) * 9,
        settings=tuple(DifferingSetting(name=f"training.{n}", values=(long,) * 5) for n in range(60)),
        chart="sample.png",
        chart_alt=long,
        samples="sample.png",
        samples_alt=long,
    )
    for message in (
        gallery_post_message(hostile),
        gallery_page(view, page),
        shared_reply(hostile.post, 2**63 - 1, missing=["Send Messages"] * 7),
        comparison_reply([job()] * 5, comparison, tmp_path, file_limit=LIMIT, may_train=True),
    ):
        check_limits(message)


def test_a_word_in_a_custom_id_has_twelve_letters_and_is_its_own() -> None:
    assert word_key(None) == ""
    assert len(word_key("狐" * 100)) == 12
    assert word_key("fox") != word_key("Fox")
