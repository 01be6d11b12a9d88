"""The same data and settings are the same work, whatever it is called."""

from __future__ import annotations

from typing import Any

import pytest

from bot.errors import DuplicateJob
from bot.queue import JobStore, StopIntent
from bot.queue.domain.duplicates import fingerprint
from tests.bot.conftest import claim
from tests.bot.fakes import failed, finished, started
from tests.bot.jobs import new_job
from trainer.protocol.spec import make_spec
from trainer.protocol.study import CompareOrder, KfoldOrder


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
def test_whatever_changes_the_result_counts(settings: dict[str, Any]) -> None:
    assert of(**settings) != of()


def test_mixed_in_datasets_count_by_what_is_in_them() -> None:
    def mixed(folder: str, digest: str) -> str:
        return fingerprint(make_spec({"dataset": "/a", "mix": [{"dataset": folder, "repeats": 2}]}), "d", (digest,))

    assert mixed("/b", "e") == mixed("/c", "e") != mixed("/b", "f")


def test_a_study_is_no_training_and_each_order_is_another_study() -> None:
    spec = make_spec({"dataset": "/a"})
    orders = (None, KfoldOrder(folds=2), KfoldOrder(folds=3), CompareOrder(vary=("method.rank=2,4",)))
    assert len({fingerprint(spec, "d", study=order) for order in orders}) == len(orders)
    named = make_spec({"dataset": "/b", "name": "two"})
    assert fingerprint(named, "d", study=orders[1]) == fingerprint(spec, "d", study=orders[1])
    assert fingerprint(spec, "e", study=orders[1]) != fingerprint(spec, "d", study=orders[1])


async def test_a_living_or_succeeded_job_is_named_and_a_failed_one_is_no_reason(store: JobStore) -> None:
    kept = await store.submit(new_job(fingerprint="f"))
    with pytest.raises(DuplicateJob, match=rf"Same data and settings as #{kept.id} \(queued\)"):
        await store.submit(new_job(owner=2, name="other", fingerprint="f"))
    again = await store.submit(new_job(owner=2, fingerprint="f", may_repeat=True))
    await store.submit(new_job(guild=99, fingerprint="f"))
    await store.request_stop(again.id, by=2, intent=StopIntent.CANCEL)
    await claim(store, 1)
    await store.runs.ingest(kept.id, 1, [started(1), failed(2)], 1)
    third = await store.submit(new_job(fingerprint="f"))
    await claim(store, 1)
    await claim(store, 2)
    await store.runs.ingest(third.id, 1, [started(1), finished(2)], 1)
    with pytest.raises(DuplicateJob, match=r"\(succeeded\)"):
        await store.submit(new_job(fingerprint="f"))
