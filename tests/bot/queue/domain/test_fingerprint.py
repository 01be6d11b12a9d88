"""Fingerprints: jobs with the same data and settings are duplicates, whatever their names."""

from __future__ import annotations

from typing import Any

import pytest

from bot.errors import DuplicateJob
from bot.queue import JobStore, StopIntent
from bot.queue.domain.job import fingerprint
from tests.bot.conftest import claim
from tests.bot.fake_events import failed, finished, started
from tests.bot.jobs import new_job
from trainer.protocol.spec import make_spec
from trainer.protocol.study import CompareRequest, KfoldRequest


def of(digest: str = "d", **settings: Any) -> str:
    return fingerprint(make_spec({"dataset": "/a", **settings}), digest)


def test_name_folder_and_preset_do_not_count() -> None:
    assert of(name="one") == of(name="two") == of(dataset="/b") == of(preset="portrait")


@pytest.mark.parametrize(
    "settings",
    [
        {"training": {"seed": 1}},
        {"training": {"epochs": 21}},
        {"base": {"source": "other"}},
        {"samples": {"prompts": ["a fox"]}},
        {"digest": "e"},
    ],
    ids=str,
)
def test_everything_that_changes_the_result_counts(settings: dict[str, Any]) -> None:
    assert of(**settings) != of()


def test_mixed_in_datasets_count_by_their_content() -> None:
    def mixed(folder: str, digest: str) -> str:
        return fingerprint(make_spec({"dataset": "/a", "mix": [{"dataset": folder, "repeats": 2}]}), "d", (digest,))

    assert mixed("/b", "e") == mixed("/c", "e") != mixed("/b", "f")


def test_a_study_differs_from_a_training_and_from_other_studies() -> None:
    spec = make_spec({"dataset": "/a"})
    orders = (None, KfoldRequest(folds=2), KfoldRequest(folds=3), CompareRequest(vary=("method.rank=2,4",)))
    assert len({fingerprint(spec, "d", study=order) for order in orders}) == len(orders)
    named = make_spec({"dataset": "/b", "name": "two"})
    assert fingerprint(named, "d", study=orders[1]) == fingerprint(spec, "d", study=orders[1])
    assert fingerprint(spec, "e", study=orders[1]) != fingerprint(spec, "d", study=orders[1])


async def test_duplicates_of_living_and_succeeded_jobs_are_refused_and_of_failed_ones_accepted(
    store: JobStore,
) -> None:
    kept = await store.submit(new_job(fingerprint="f"))
    with pytest.raises(DuplicateJob, match=rf"#{kept.id} has the same data and settings") as refused:
        await store.submit(new_job(owner=2, name="other", fingerprint="f"))
    assert refused.value.state == "queued"
    again = await store.submit(new_job(owner=2, fingerprint="f"), may_repeat=True)
    await store.submit(new_job(guild=99, fingerprint="f"))
    await store.request_stop(again.id, by=2, intent=StopIntent.CANCEL)
    await claim(store, 1)
    await store.attempts.ingest(kept.id, 1, [started(1), failed(2)], 1)
    third = await store.submit(new_job(fingerprint="f"))
    await claim(store, 1)
    await claim(store, 2)
    await store.attempts.ingest(third.id, 1, [started(1), finished(2)], 1)
    with pytest.raises(DuplicateJob) as refused:
        await store.submit(new_job(fingerprint="f"))
    assert refused.value.state == "succeeded"
