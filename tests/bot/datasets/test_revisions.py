"""Changes of a dataset: decisions, more files, deletion; and what a sweep deletes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.config import CaptionSettings, LimitSettings
from bot.datasets import Dataset, DatasetStore
from bot.datasets.dataset import revision_name
from bot.datasets.decisions import review_questions, with_decisions, with_reviewed, with_rules
from bot.db import Database
from bot.errors import DatasetInUse, DatasetRefused, DatasetTooLarge, NoSuchDataset, TooFewImages
from bot.queue import JobStore, NewJob, StopIntent
from tests.bot.cogs.conftest import forked_trainer
from tests.bot.conftest import GUILD
from tests.bot.fakes import uploads
from trainer.protocol.edits import Edits
from trainer.protocol.report import Split
from trainer.protocol.spec import make_spec

MakeStore = Callable[..., DatasetStore]
OLD_S = 200_000.0

#: By the stand-in trainer: six good ones, one with a finding, one dropped.
IMAGES = {**{f"{n}.png": b"good %d" % n for n in range(6)}, "blur.png": b"blurred", "twin.png": b"twin"}


@pytest.fixture
def make_store(db: Database, tmp_path: Path) -> MakeStore:
    def make(pause_s: float = 0, max_mib: int = 1) -> DatasetStore:
        return DatasetStore(
            db,
            data_dir=tmp_path / "data",
            limits=LimitSettings(max_dataset_mib=max_mib, max_dataset_files=14),
            command=forked_trainer(),
            env={**os.environ, "FAKE_PREPARE_S": str(pause_s)},
        )

    return make


async def uploaded(store: DatasetStore, files: dict[str, bytes] = IMAGES, name: str = "foxes-2") -> Dataset:
    received = await store.receive(uploads(files))
    return await store.prepare(received, guild_id=GUILD, owner_id=5, name=name)


async def sha_of(store: DatasetStore, dataset: Dataset, name: str) -> str:
    report = await store.report(dataset)
    return next(image.pixels_sha256 for image in report.images if image.source == name and image.pixels_sha256)


async def status_of(store: DatasetStore, dataset: Dataset) -> dict[str, str]:
    return {image.source: image.status for image in (await store.report(dataset)).images}


async def splits_of(store: DatasetStore, dataset: Dataset) -> dict[str, Split | None]:
    return {image.source: image.split for image in (await store.report(dataset)).images if image.status == "kept"}


def job_on(dataset: Dataset, **settings: Any) -> NewJob:
    spec = make_spec({"name": "fox", "dataset": str(dataset.folder), **settings})
    return NewJob(interaction_id=1, guild_id=GUILD, channel_id=1, owner_id=5, dataset_id=dataset.id, spec=spec)


def age(*folders: Path) -> None:
    for folder in folders:
        os.utime(folder, (time.time() - OLD_S,) * 2)


def age_all(data_dir: Path) -> None:
    for content in (data_dir / "datasets").iterdir():
        age(*(folder for folder in content.iterdir() if folder.is_dir()), content)


# -- decisions -----------------------------------------------------------------------------------------------------


async def test_a_decision_makes_another_revision_and_does_not_change_the_first(make_store: MakeStore) -> None:
    store = make_store()
    first = await uploaded(store)
    twin = await sha_of(store, first, "twin.png")
    before = (first.folder / "report.json").read_bytes()

    changed = await store.edit(first.id, lambda edits: with_decisions(edits, [twin], "keep"))

    assert changed.folder != first.folder
    assert changed.folder.parent == first.folder.parent
    assert (first.folder / "report.json").read_bytes() == before
    assert (first.counts.kept, changed.counts.kept) == (7, 8)
    assert (await status_of(store, changed))["twin.png"] == "kept"
    assert (await store.get(first.id)) == changed
    undone = await store.edit(first.id, lambda edits: Edits())
    assert undone == first


async def test_concurrent_decisions_all_count(make_store: MakeStore) -> None:
    store = make_store(pause_s=0.2)
    first = await uploaded(store)
    shas = [await sha_of(store, first, name) for name in ("twin.png", "blur.png", "1.png", "2.png")]

    async def decide(sha256: str) -> None:
        await store.edit(first.id, lambda edits: with_decisions(edits, [sha256], "keep"))

    await asyncio.gather(*(decide(sha256) for sha256 in shas))

    now = await store.get(first.id)
    assert now.edits.decisions == dict.fromkeys(shas, "keep")
    assert not now.is_pending


async def test_a_decision_during_a_preparation_is_applied_too(make_store: MakeStore) -> None:
    store = make_store(pause_s=0.5)
    first = await uploaded(store)
    twin, blur = await sha_of(store, first, "twin.png"), await sha_of(store, first, "blur.png")
    await store.decide(first.id, lambda edits: with_decisions(edits, [twin], "keep"))
    applying = asyncio.create_task(store.apply(first.id))
    await asyncio.sleep(0.2)
    decided = await store.decide(first.id, lambda edits: with_decisions(edits, [blur], "drop"))
    assert decided.folder == first.folder

    applied = await applying

    assert (await status_of(store, applied)) | {"twin.png": "kept", "blur.png": "dropped"} == await status_of(
        store, applied
    )
    assert not applied.is_pending


async def test_decisions_survive_a_restart(make_store: MakeStore) -> None:
    first = await uploaded(make_store())
    blur = await sha_of(make_store(), first, "blur.png")
    await make_store().decide(first.id, lambda edits: with_decisions(edits, [blur], "drop"))

    again = make_store()
    found = await again.get(first.id)
    assert (found.is_pending, found.folder) == (True, first.folder)
    applied = await again.apply(first.id)
    assert (applied.is_pending, applied.counts.kept) == (False, 6)
    assert await again.apply(first.id) == applied


async def test_a_change_that_leaves_too_few_images_is_refused_and_the_dataset_stays_usable(
    make_store: MakeStore,
) -> None:
    store = make_store()
    first = await uploaded(store)
    drop = [await sha_of(store, first, f"{n}.png") for n in range(4)]
    for sha256 in drop:
        await store.decide(first.id, lambda edits, sha256=sha256: with_decisions(edits, [sha256], "drop"))  # type: ignore[misc]

    with pytest.raises(TooFewImages) as caught:
        await store.apply(first.id)
    assert caught.value.kept == 3

    now = await store.get(first.id)
    assert (now.folder, now.is_pending) == (first.folder, True)
    await store.decide(first.id, lambda edits: with_decisions(edits, [drop[0]], "keep"))
    await store.decide(first.id, lambda edits: with_decisions(edits, [drop[1]], "keep"))
    assert (await store.apply(first.id)).counts.kept == 5


async def test_the_order_of_decisions_does_not_matter(make_store: MakeStore) -> None:
    one = with_decisions(with_decisions(Edits(), ["a"], "keep"), ["b"], "drop")
    two = with_decisions(with_decisions(Edits(), ["b"], "drop"), ["a"], "keep")
    assert revision_name(one) == revision_name(two) != revision_name(Edits()) == "prepared"
    assert revision_name(Edits(), "ab/prepared") != "prepared"


async def test_rules_apply_to_every_caption_and_have_a_maximum_length(make_store: MakeStore) -> None:
    store = make_store()
    first = await uploaded(store)
    changed = await store.edit(first.id, lambda edits: with_rules(edits, trigger="ohwx"))
    assert {image.caption for image in (await store.report(changed)).images} == {"ohwx, a fox"}
    with pytest.raises(DatasetRefused, match="The trigger word is too long: at most 50 characters"):
        await store.edit(first.id, lambda edits: with_rules(edits, trigger="x" * 51))
    assert (await store.get(first.id)).edits.rules.trigger == "ohwx"


async def test_captions_by_a_model_are_automatic_until_reviewed(make_store: MakeStore) -> None:
    store = make_store()
    bare = {"bare-1.png": b"1", "bare-2.png": b"2"}
    first = await uploaded(store, {**IMAGES, **bare})
    assert first.counts.captioned == 7

    written = await store.write_captions(first.id, CaptionSettings(model="blip"))

    assert (written.counts.captioned, written.counts.automatic) == (9, 2)
    (found,) = (each.images for each in review_questions(await store.report(written)) if each.kind is None)
    assert [each.image.caption_source for each in found] == ["blip", "blip"]
    looked = await store.edit(first.id, lambda edits: with_reviewed(edits, found[0].sha256))
    assert looked.counts.automatic == 1


# -- more files ----------------------------------------------------------------------------------------------------


async def test_added_files_make_a_new_content_and_old_images_keep_their_splits(make_store: MakeStore) -> None:
    store = make_store()
    first = await uploaded(store)
    blur = await sha_of(store, first, "blur.png")
    first = await store.edit(first.id, lambda edits: with_decisions(edits, [blur], "drop"))
    before = await splits_of(store, first)

    # Sorted before the others: without the earlier folder it would go to the validation split.
    grown = await store.add(
        first.id, await store.receive(uploads({"-1.png": b"new", "-1.txt": b"a new one", "1.png": b"other"}))
    )

    after = await splits_of(store, grown)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"-1.png", "1-2.png"}
    assert (grown.id, grown.name, grown.counts.kept) == (first.id, first.name, 8)
    assert grown.sha256 != first.sha256
    assert (await status_of(store, grown))["blur.png"] == "dropped"
    assert (grown.source / "0.png").samefile(first.source / "0.png")
    captions = {image.source: image.caption for image in (await store.report(grown)).images}
    assert captions["-1.png"] == "a new one"
    # Later edits keep the content and the splits.
    twin = await sha_of(store, grown, "twin.png")
    edited = await store.edit(first.id, lambda edits: with_decisions(edits, [twin], "keep"))
    assert edited.sha256 == grown.sha256
    assert {name: (await splits_of(store, edited))[name] for name in before} == before


async def test_a_decision_while_files_are_added_is_applied_too(make_store: MakeStore) -> None:
    store = make_store(pause_s=0.5)
    first = await uploaded(store)
    blur = await sha_of(store, first, "blur.png")
    received = await store.receive(uploads({"new.png": b"new"}))
    adding = asyncio.create_task(store.add(first.id, received))
    await asyncio.sleep(0.2)
    await store.decide(first.id, lambda edits: with_decisions(edits, [blur], "drop"))

    grown = await adding

    assert not grown.is_pending
    assert (await status_of(store, grown))["blur.png"] == "dropped"
    assert (await status_of(store, grown))["new.png"] == "kept"


async def test_files_that_are_there_already_are_refused(make_store: MakeStore) -> None:
    store = make_store()
    first = await uploaded(store)
    with pytest.raises(DatasetRefused, match=r"1\.png"):
        await store.add(first.id, await store.receive(uploads({"1.png": IMAGES["1.png"]})))
    assert await store.get(first.id) == first


async def test_files_that_would_make_another_dataset_are_refused(make_store: MakeStore) -> None:
    store = make_store()
    first = await uploaded(store)
    await uploaded(store, {**IMAGES, "9.png": b"nine"}, "owls")
    with pytest.raises(DatasetRefused, match="owls"):
        await store.add(first.id, await store.receive(uploads({"9.png": b"nine"})))
    assert await store.get(first.id) == first


async def test_limits_apply_to_old_and_new_files_together(make_store: MakeStore) -> None:
    store = make_store()
    first = await uploaded(store)
    many = {f"m{number}.png": b"%d" % number for number in range(7)}
    with pytest.raises(DatasetRefused, match=r"14 files.*15"):
        await store.add(first.id, await store.receive(uploads(many)))
    with pytest.raises(DatasetTooLarge):
        await store.add(first.id, await store.receive(uploads({"big.png": b"x" * 2**20})))


# -- deleting and sweeping -----------------------------------------------------------------------------------------


async def test_a_dataset_is_not_deleted_while_a_job_needs_it(make_store: MakeStore, store: JobStore) -> None:
    datasets = make_store()
    dataset = await uploaded(datasets)
    job = await store.submit(job_on(dataset))
    with pytest.raises(DatasetInUse) as caught:
        await datasets.delete(dataset.id)
    assert caught.value.job_id == job.id
    assert await datasets.get(dataset.id) == dataset

    await store.request_stop(job.id, by=5, intent=StopIntent.CANCEL)
    await datasets.delete(dataset.id)

    for missing in (datasets.get(dataset.id), datasets.named(GUILD, "foxes-2"), datasets.delete(dataset.id)):
        with pytest.raises(NoSuchDataset):
            await missing
    with pytest.raises(NoSuchDataset):
        await datasets.decide(dataset.id, lambda edits: edits)
    assert [each.name for each in await datasets.search(GUILD)] == ["foxes"]
    assert (await store.get(job.id)).dataset_name == "foxes-2"


async def test_name_and_content_of_a_deleted_dataset_can_be_used_again(make_store: MakeStore) -> None:
    store = make_store()
    first = await uploaded(store)
    twin = await sha_of(store, first, "twin.png")
    await store.edit(first.id, lambda edits: with_decisions(edits, [twin], "keep"))
    await store.delete(first.id)
    again = await uploaded(store)
    assert (again.name, again.sha256) == (first.name, first.sha256)
    assert again.id != first.id
    assert again.edits == Edits()


async def test_the_sweep_keeps_current_revisions_and_those_that_jobs_were_trained_on(
    make_store: MakeStore, store: JobStore, tmp_path: Path
) -> None:
    datasets = make_store()
    revisions = [await uploaded(datasets)]
    for name in ("twin.png", "blur.png", "1.png"):
        sha256 = await sha_of(datasets, revisions[0], name)
        keep = with_decisions(revisions[-1].edits, [sha256], "keep")
        revisions.append(await datasets.edit(revisions[0].id, lambda edits, keep=keep: keep))  # type: ignore[misc]
    job = await store.submit(job_on(revisions[1]))
    await store.request_stop(job.id, by=5, intent=StopIntent.CANCEL)
    assert await datasets.sweep(older_than_s=86_400) == 0

    age_all(tmp_path / "data")
    assert await datasets.sweep(older_than_s=86_400) == 2

    assert [each.folder.exists() for each in revisions] == [False, True, False, True]
    assert revisions[0].source.exists()
    await datasets.delete(revisions[0].id)
    assert await datasets.sweep(older_than_s=86_400) == 0
    age_all(tmp_path / "data")
    await datasets.sweep(older_than_s=86_400)
    assert [each.folder.exists() for each in revisions] == [False, True, False, False]
    assert not revisions[0].source.exists()


async def test_a_replaced_revision_has_a_grace_period(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    first = await uploaded(store)
    age_all(tmp_path / "data")
    twin = await sha_of(store, first, "twin.png")
    await store.edit(first.id, lambda edits: with_decisions(edits, [twin], "keep"))
    assert await store.sweep(older_than_s=86_400) == 0
    assert first.folder.exists()


async def test_a_deleted_dataset_that_no_job_was_trained_on_is_swept_completely(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store()
    first = await uploaded(store)
    await store.delete(first.id)
    assert await store.sweep(older_than_s=86_400) == 0
    age_all(tmp_path / "data")
    assert await store.sweep(older_than_s=86_400) == 1
    assert not first.folder.parent.exists()


async def test_a_mixed_in_dataset_counts_as_trained_on(make_store: MakeStore, store: JobStore, tmp_path: Path) -> None:
    datasets = make_store()
    main = await uploaded(datasets)
    other = await uploaded(datasets, {f"o{n}.png": b"o%d" % n for n in range(6)}, "owls")
    job = await store.submit(job_on(main, mix=[{"dataset": str(other.folder)}]))
    await store.request_stop(job.id, by=5, intent=StopIntent.CANCEL)
    await datasets.delete(other.id)
    age_all(tmp_path / "data")
    await datasets.sweep(older_than_s=86_400)
    assert (other.folder / "report.json").exists()
