"""The job store on a real database: transitions, the order of the queue, events and notifications."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bot.config import LimitSettings
from bot.db import Database, open_db
from bot.errors import NoSuchDataset, NoSuchJob, TooManyWaiting
from bot.outbox import Destination, Notification, NotificationKind, Outbox
from bot.queue import ACTIVE, TRANSITIONS, EndReason, EndReasonKind, JobStore, Priority, State, StopIntent
from bot.queue.domain.rules import AttemptOutcome
from bot.queue.store import job_sql
from tests.bot.conftest import CHANNEL, GUILD, Submit, claim, notifications, set_slots, submitter
from tests.bot.fake_events import (
    base_validated,
    epoch_ended,
    exported,
    finished,
    sampled,
    started,
    step_done,
    stopped,
    stopped_early,
    warned,
    was_tested,
)
from tests.bot.fakes import FakeClock
from tests.trainer.fork_server import ForkServer
from trainer.protocol.events import EpochEnded, Phase, PhaseBegan, Warned

WHOLE_RUN = [
    started(1),
    sampled(2, 0),
    base_validated(3),
    step_done(4, 1),
    sampled(5, 1),
    epoch_ended(6, 1),
    warned(7, "plateau"),
    warned(8, "plateau"),
    step_done(9, 2),
    epoch_ended(10, 2),
    stopped_early(11),
    was_tested(12),
    exported(13),
    finished(14),
]
KEYS = ["base", "epoch:1", "warning:plateau", "epoch:2", "early_stop:3", "end"]


async def put_in_state(db: Database, job_id: int, state: State) -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET state = ?, attempt = 1 WHERE id = ?", (state, job_id))


async def whole_row(db: Database, job_id: int) -> tuple[object, ...]:
    row = await db.one("SELECT * FROM job WHERE id = ?", (job_id,))
    assert row is not None
    return tuple(row)


# -- transitions ---------------------------------------------------------------------------------------------------


#: The state after a stop of a job that was never started; all other states stay.
_STOPPED = {
    **{(state, StopIntent.CANCEL): State.CANCELLED for state in (State.QUEUED, State.PAUSED)},
    **{(state, StopIntent.KEEP_BEST): State.CANCELLED for state in (State.QUEUED, State.PAUSED)},
    **{(state, intent): State.STOPPING for state in (State.PREPARING, State.RUNNING) for intent in StopIntent},
    (State.QUEUED, StopIntent.PAUSE): State.PAUSED,
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("intent", StopIntent)
async def test_a_stop_follows_the_table_and_changes_nothing_else(
    store: JobStore, db: Database, submit: Submit, state: State, intent: StopIntent
) -> None:
    job = await submit()
    await put_in_state(db, job.id, state)
    before = await whole_row(db, job.id)

    after = await store.request_stop(job.id, by=7, intent=intent)

    expected = _STOPPED.get((state, intent), state)
    assert after.state is expected
    assert expected is state or expected in TRANSITIONS[state]
    if expected is state and state is not State.STOPPING:
        assert await whole_row(db, job.id) == before
    elif state is not State.STOPPING:
        assert (after.stop_intent, after.stopped_by) == (
            StopIntent.CANCEL if expected is State.CANCELLED else intent,
            7,
        )


@pytest.mark.parametrize("before", sorted(ACTIVE))
@pytest.mark.parametrize("target", list(job_sql.SETTLE))
async def test_an_attempt_settles_only_along_the_table(
    store: JobStore, db: Database, submit: Submit, before: State, target: State
) -> None:
    job = await submit()
    await put_in_state(db, job.id, before)
    row = await whole_row(db, job.id)
    active = await store.attempts.active_job(job.id, 1)
    assert active is not None
    outcome = AttemptOutcome(state=target, notification=NotificationKind.LOST)

    try:
        async with db.transaction() as connection:
            await store._transitions.settle(connection, active, outcome, None)
    except AssertionError:
        assert target not in TRANSITIONS[before]
        assert await whole_row(db, job.id) == row
    else:
        assert target in TRANSITIONS[before]
        assert (await store.get(job.id)).state is target


@pytest.mark.parametrize("state", [state for state in State if state not in ACTIVE])
async def test_a_job_that_is_not_active_ingests_nothing_and_is_not_lost(
    store: JobStore, db: Database, submit: Submit, state: State
) -> None:
    job = await submit()
    await put_in_state(db, job.id, state)
    before = await whole_row(db, job.id), await notifications(db)

    assert not await store.attempts.ingest(job.id, 1, WHOLE_RUN, 999)
    assert not await store.attempts.lost(job.id, 1)
    await store.attempts.set_handle(job.id, 1, "{}")  # type: ignore[arg-type]
    await store.attempts.mark_stop_sent(job.id, 1)

    assert (await whole_row(db, job.id), await notifications(db)) == before


async def test_a_superseded_attempt_changes_nothing(store: JobStore, db: Database, submit: Submit) -> None:
    job = await submit()
    await claim(store, 1)
    await store.attempts.lost(job.id, 1)
    await claim(store, 1)
    before = await whole_row(db, job.id)

    assert not await store.attempts.ingest(job.id, 1, WHOLE_RUN, 999)
    assert not await store.attempts.lost(job.id, 1)
    assert await whole_row(db, job.id) == before


# -- submitting ----------------------------------------------------------------------------------------------------


async def test_the_same_interaction_twice_is_one_job(store: JobStore, db: Database, submit: Submit) -> None:
    one, two = await asyncio.gather(submit(interaction=5), submit(interaction=5))

    assert one.id == two.id
    assert len(await store.recent(GUILD)) == 1
    assert one.dataset_name == "foxes"


async def test_an_owner_queues_no_more_than_the_limit(
    db: Database, outbox: Outbox, clock: FakeClock, tmp_path: Path
) -> None:
    store = JobStore(db, outbox, data_dir=tmp_path, limits=LimitSettings(max_jobs_per_user=2), clock=clock)
    await set_slots(store, 1)
    submit = submitter(store)
    results = await asyncio.gather(*(submit(owner=1) for _ in range(5)), return_exceptions=True)

    assert [isinstance(result, TooManyWaiting) for result in results].count(True) == 3
    await submit(owner=2)
    await claim(store, 1)
    await submit(owner=1)


async def test_an_unknown_id_is_refused(store: JobStore, submit: Submit) -> None:
    job = await submit()
    with pytest.raises(NoSuchJob, match="#99"):
        await store.get(99)
    with pytest.raises(NoSuchJob):
        await store.get_in(GUILD + 1, job.id)


async def test_jobs_are_found_by_id_and_by_name(store: JobStore, submit: Submit) -> None:
    for name in ("fox", "owl", "red-fox"):
        await submit(name=name)
    await submit(name="fox", guild=GUILD + 1)
    await store.request_stop(3, by=1, intent=StopIntent.CANCEL)

    assert [job.id for job in await store.search(GUILD, "FOX")] == [1, 3]
    assert [job.id for job in await store.search(GUILD, "#2")] == [2]
    assert [job.id for job in await store.search(GUILD, "")] == [2, 1, 3]
    assert [job.id for job in await store.search(GUILD, "%")] == []
    assert [job.id for job in await store.living(GUILD)] == [1, 2]
    assert [job.id for job in await store.recent(GUILD, 2)] == [3, 2]


# -- the queue ------------------------------------------------------------------------------------------------------


async def test_owners_are_served_round_robin(store: JobStore, submit: Submit) -> None:
    for owner in (1, 1, 1, 2, 2, 3):
        await submit(owner=owner)

    assert await store.queued_ids() == [1, 4, 6, 2, 5, 3]
    assert await store.queue_position(5) == 5


async def test_an_owner_who_was_just_served_waits_for_the_others(store: JobStore, submit: Submit) -> None:
    await submit(owner=1)
    await claim(store, 1)
    await store.attempts.ingest(1, 1, [finished(1)], 1)
    await submit(owner=1)
    await submit(owner=2)

    assert await store.queued_ids() == [3, 2]


@pytest.mark.parametrize("case", ["cancel, retry, cancel", "another priority"])
async def test_a_served_turn_counts_whatever_becomes_of_its_job(store: JobStore, submit: Submit, case: str) -> None:
    for owner in (1, 2, 2):
        await submit(owner=owner)
    await claim(store, 1)
    if case == "another priority":
        await store.attempts.lost(1, 1)
        await store.bump(1, Priority.HIGH, by=9)
        await claim(store, 1)
    else:
        await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
        await store.attempts.lost(1, 1)
        await store.retry(1, by=1)
        await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    await submit(owner=1)

    assert await store.queued_ids() == [2, 3, 4], "both were served once, and the other queued its second job earlier"


async def test_turns_are_found_by_indexes(db: Database) -> None:
    values = {"owner_id": 1, "kind": "train", "priority": 0, "turn": 1}
    for statement in (job_sql.NEXT_TURN, job_sql.MOVE_UP):
        plan = [row["detail"] for row in await db.all("EXPLAIN QUERY PLAN " + statement, values)]
        assert not [step for step in plan if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"], plan
        assert any("job_turns" in step for step in plan), plan


async def test_no_more_jobs_are_claimed_than_there_are_slots(store: JobStore, submit: Submit) -> None:
    for _ in range(3):
        await submit()
    assert [bool(await claim(store, 2)) for _ in range(3)] == [True, True, False]
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    assert await claim(store, 2) is None, "a job that is stopping still holds its slot"
    assert await store.queue_position(1) is None


@pytest.mark.parametrize("seed", range(12))
async def test_jobs_start_in_the_order_that_is_shown(store: JobStore, submit: Submit, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(chance.randint(3, 14)):
        await submit(owner=chance.randint(1, 4))
        if chance.random() < 0.4 and (claimed := await claim(store, 2)):
            lost = chance.random() < 0.5
            await (
                store.attempts.lost(claimed.id, 1) if lost else store.attempts.ingest(claimed.id, 1, [finished(1)], 1)
            )
    for busy in await store.attempts.active():
        await store.attempts.lost(busy.id, busy.attempt)
    shown = await store.queued_ids()

    served = []
    while first := await claim(store, 1):
        served.append(first.id)
        seq = 100 + first.attempt
        await store.attempts.ingest(first.id, first.attempt, [finished(seq)], seq)
    assert served == shown


async def test_a_card_is_stale_when_its_queue_position_changes(store: JobStore, outbox: Outbox, submit: Submit) -> None:
    for owner in (1, 2):
        await submit(owner=owner)
    before = await outbox.cards.of(2)
    await claim(store, 1)
    after = await outbox.cards.of(2)

    assert before is not None
    assert after is not None
    assert (after.version - before.version, after.urgent_version) == (1, before.urgent_version)


def claim_all(arguments: Sequence[str]) -> int:
    """Claim jobs of a database and end them at once, until there are none: the program of the forks below."""

    async def work() -> None:
        async with open_db(Path(arguments[0])) as db:
            store = JobStore(db, Outbox(db), data_dir=Path())
            idle = 0
            while idle < 20:
                claimed = await store.attempts.claim()
                if claimed is None:
                    idle += 1
                    await asyncio.sleep(0.05)
                    continue
                idle = 0
                await store.attempts.ingest(claimed.id, claimed.attempt, [finished(1)], 1)
                sys.stdout.write(f"{claimed.id}\n")

    asyncio.run(work())
    return 0


@pytest.mark.slow
async def test_eight_processes_claim_four_hundred_jobs_each_once_and_no_slot_twice(
    db: Database, store: JobStore, submit: Submit, tmp_path: Path
) -> None:
    await set_slots(store, 256)
    for owner in range(400):
        await submit(owner=owner % 40)
    logs = [tmp_path / f"claimed-{number}" for number in range(8)]
    with ForkServer(f"{__name__}:claim_all") as server:
        processes = [server.start(str(db.path), log=log) for log in logs]
        codes = [await asyncio.to_thread(process.wait) for process in processes]

    assert codes == [0] * 8, [log.read_text() for log in logs]
    claimed = [int(line) for log in logs for line in log.read_text().split()]
    assert sorted(claimed) == list(range(1, 401))
    rows = await db.all("SELECT job_id, COUNT(*) AS starts FROM attempt GROUP BY job_id")
    assert {row["starts"] for row in rows} == {1}


# -- events ----------------------------------------------------------------------------------------------------


async def keys_of(db: Database, job_id: int) -> list[str]:
    return [key.removeprefix(f"job:{job_id}:") for key in await notifications(db)]


async def test_the_notifications_of_a_whole_run_are_stored_once(store: JobStore, db: Database, submit: Submit) -> None:
    job = await submit()
    await claim(store, 1)
    assert await store.attempts.ingest(job.id, 1, WHOLE_RUN, 500)

    assert await keys_of(db, job.id) == KEYS
    job = await store.get(job.id)
    assert (job.state, job.terminal_event) == (State.SUCCEEDED, WHOLE_RUN[-1])
    assert [epoch.epoch for epoch in job.progress.epochs] == [1, 2]
    assert job.progress.step == WHOLE_RUN[8]
    assert job.progress.total_steps == 30
    assert job.ended_at is not None


@pytest.mark.parametrize("size", [1, 2, 3, 5])
async def test_events_in_batches_and_twice_are_notified_once(
    store: JobStore, db: Database, submit: Submit, size: int
) -> None:
    job = await submit()
    await claim(store, 1)
    for end in range(size, len(WHOLE_RUN) + size, size):
        # Each batch begins one event too early: that one was ingested before the bot died.
        batch = WHOLE_RUN[max(0, end - size - 1) : end]
        await store.attempts.ingest(job.id, 1, batch, end)
        await store.attempts.ingest(job.id, 1, batch, end)

    assert await keys_of(db, job.id) == KEYS
    assert (await store.get(job.id)).state is State.SUCCEEDED


async def test_no_job_starts_from_a_deleted_dataset(store: JobStore, db: Database, submit: Submit) -> None:
    first = await submit()
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE dataset SET deleted_at = 1")
    with pytest.raises(NoSuchDataset):
        await submit(interaction=99)
    assert (await submit(interaction=1)).id == first.id, "the same command twice is one job"


async def test_a_row_fills_each_field_of_a_job(store: JobStore, submit: Submit) -> None:
    await submit()
    active = await claim(store, 1)
    for record in (active, await store.get(1)):
        assert vars(record).keys() == {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]


async def test_the_hundredth_epoch_costs_what_the_tenth_does(store: JobStore, db: Database, submit: Submit) -> None:
    await submit()
    await claim(store, 1)
    sizes = []
    for epoch in range(1, 101):
        ended = epoch_ended(epoch, epoch).model_copy(update={"best_epoch": min(epoch, 30)})
        await store.attempts.ingest(1, 1, [ended], epoch)
        row = await db.one("SELECT LENGTH(progress) FROM job")
        assert row is not None
        sizes.append(row[0])
    assert max(sizes[15:]) < 1.2 * sizes[14]
    job = await store.get(1)
    assert [epoch.epoch for epoch in job.progress.epochs] == [30, *range(89, 101)]
    assert job.progress.kept_epoch == 100


async def test_the_post_of_an_early_epoch_shows_those_before_it_however_far_its_job_is(
    store: JobStore, outbox: Outbox, submit: Submit
) -> None:
    await submit()
    await claim(store, 1)
    for epoch in range(1, 41):
        await store.attempts.ingest(1, 1, [epoch_ended(epoch, epoch)], epoch)
    fifth = Notification(kind=NotificationKind.EPOCH, job_id=1, attempt=1, seq=5, dedupe_key="job:1:epoch:5")
    shown = await store.events_of(fifth)
    assert [event.epoch for event in shown if isinstance(event, EpochEnded)] == [1, 2, 3, 4, 5]


async def test_lists_of_jobs_parse_no_settings(
    store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        await submit(owner=number)
    await claim(store, 1)
    monkeypatch.setattr("bot.queue.domain.job._parse_spec", None)
    shown = await store.living(GUILD, most=20)
    assert [job.id for job in shown] == [1, *range(2, 22)]
    assert await store.count_living(GUILD) == {State.PREPARING: 1, State.QUEUED: 29}
    assert await store.queue_positions([job.id for job in shown]) == {number: number - 1 for number in range(2, 22)}
    assert len(await store.search(GUILD, "fox")) == 25
    assert [job.id for job in await store.search(GUILD, "", states={State.QUEUED}, owner_id=3)] == [4]
    assert len(await store.recent(GUILD, 15)) == 15


async def test_a_notification_shows_its_event_and_those_that_belong_to_it(
    store: JobStore, outbox: Outbox, submit: Submit
) -> None:
    job = await submit()
    await claim(store, 1)
    for event in WHOLE_RUN:
        await store.attempts.ingest(job.id, 1, [event], event.seq)

    found = []
    for to in (Destination(channel_id=CHANNEL, thread_of=1), Destination(channel_id=CHANNEL)):
        while pending := await outbox.next_pending(to):
            found.append([event.type for event in await store.events_of(pending.notification)])
            await outbox.mark_sent(pending, 1)
    assert found == [
        ["sampled", "base_validated"],
        ["sampled", "epoch_ended"],
        ["warned"],
        ["epoch_ended", "epoch_ended"],
        ["stopped_early"],
        ["tested", "exported", "finished"],
    ]


async def test_whatever_happens_the_channel_gets_a_card_a_warning_and_the_result(
    store: JobStore, db: Database, submit: Submit
) -> None:
    job = await submit()
    await claim(store, 1)
    kinds = ["mix_overlap", "doubtful_setting", "idle_setting", "memorized"]
    warnings = [Warned(seq=seq, time=0.0, kind=kind, message=f"{kind} {seq}") for seq, kind in enumerate(kinds, 100)]
    *run, finished = WHOLE_RUN
    await store.attempts.ingest(job.id, 1, [*run, *warnings, finished.model_copy(update={"seq": 200})], 500)
    rows = await db.all("SELECT thread_of, json_extract(notification, '$.kind') AS kind FROM outbox ORDER BY id")
    assert [row["kind"] for row in rows if not row["thread_of"]] == ["alarm", "done"]
    in_thread = [row["kind"] for row in rows if row["thread_of"] == job.id]
    assert in_thread.count("warning") >= len(warnings)
    assert len(in_thread) + 2 == len(rows)


async def test_warnings_of_one_kind_are_notified_once(store: JobStore, db: Database, submit: Submit) -> None:
    job = await submit()
    await claim(store, 1)
    warnings = [Warned(seq=seq, time=0.0, kind="idle_setting", message=f"setting {seq} does nothing") for seq in (1, 2)]

    assert await store.attempts.ingest(job.id, 1, [*warnings, warnings[0].model_copy(update={"seq": 3})], 500)

    assert [key for key in await keys_of(db, job.id) if "warning" in key] == ["warning:idle_setting"]


async def test_a_terminal_event_that_another_run_followed_ends_nothing(store: JobStore, submit: Submit) -> None:
    job = await submit()
    await claim(store, 1)
    await store.attempts.ingest(job.id, 1, [started(1), stopped(2), started(3), step_done(4, 1)], 10)

    assert (await store.get(job.id)).state is State.RUNNING


async def test_a_new_attempt_resets_the_phase(store: JobStore, submit: Submit) -> None:
    job = await submit()
    await claim(store, 1)
    await store.attempts.ingest(job.id, 1, [started(1), PhaseBegan(seq=2, time=0, phase=Phase.TRAINING)], 10)
    assert (await store.get(job.id)).progress.phase is Phase.TRAINING
    await store.attempts.lost(job.id, 1)
    await claim(store, 1)
    await store.attempts.ingest(job.id, 2, [started(3)], 20)
    assert (await store.get(job.id)).progress.phase is None


# -- stopping and losing -------------------------------------------------------------------------------------------


async def test_keep_best_continues_with_a_finish_before_all_other_jobs(
    store: JobStore, db: Database, submit: Submit
) -> None:
    for owner in (1, 2):
        await submit(owner=owner)
    await claim(store, 1)
    await store.attempts.ingest(1, 1, WHOLE_RUN[:6], 6)
    await store.request_stop(1, by=1, intent=StopIntent.KEEP_BEST)
    await store.attempts.ingest(1, 1, [stopped(7)], 7)

    assert await store.queued_ids() == [1, 2]
    claimed = await claim(store, 1)
    assert claimed is not None
    assert (claimed.id, claimed.is_finishing) == (1, True)
    assert "job:1:end" not in await notifications(db)
    await store.attempts.ingest(1, 2, [started(8), was_tested(9), finished(10)], 10)
    assert (await store.get(1)).state is State.STOPPED


async def test_keep_best_without_an_epoch_is_a_cancel(store: JobStore, submit: Submit) -> None:
    job = await submit()
    await claim(store, 1)
    await store.request_stop(job.id, by=1, intent=StopIntent.KEEP_BEST)
    await store.attempts.ingest(job.id, 1, [started(1), stopped(2, checkpoint=None)], 2)

    job = await store.get(job.id)
    assert (job.state, job.end_reason) == (State.CANCELLED, EndReason(kind=EndReasonKind.NOTHING_TO_KEEP))


async def test_cancel_overrides_keep_best_and_not_the_reverse(store: JobStore, submit: Submit) -> None:
    job = await submit()
    await claim(store, 1)
    intents = [StopIntent.KEEP_BEST, StopIntent.CANCEL, StopIntent.KEEP_BEST]
    seen = [(await store.request_stop(job.id, by=1, intent=intent)).stop_intent for intent in intents]

    assert seen == [StopIntent.KEEP_BEST, StopIntent.CANCEL, StopIntent.CANCEL]


async def test_an_interrupted_queued_job_can_keep_its_best_epoch(store: JobStore, submit: Submit) -> None:
    job = await submit()
    await claim(store, 1)
    await store.attempts.ingest(job.id, 1, WHOLE_RUN[:6], 6)
    await store.attempts.lost(job.id, 1)

    job = await store.request_stop(job.id, by=1, intent=StopIntent.KEEP_BEST)
    assert (job.state, job.stop_intent) == (State.QUEUED, StopIntent.KEEP_BEST)
    claimed = await claim(store, 1)
    assert claimed is not None
    assert claimed.is_finishing


async def test_a_lost_job_continues_before_all_others_until_its_attempts_are_used_up(
    store: JobStore, db: Database, submit: Submit
) -> None:
    for owner in (1, 2):
        await submit(owner=owner)
    for attempt in itertools.count(1):
        claimed = await claim(store, 1)
        assert claimed is not None
        if claimed.id != 1:
            break
        if attempt == 1:
            await store.attempts.ingest(1, 1, WHOLE_RUN[:6], 6)
        assert await store.attempts.lost(1, claimed.attempt)

    job = await store.get(1)
    assert (job.state, job.attempt) == (State.FAILED, 3)
    assert job.end_reason == EndReason(
        kind=EndReasonKind.PROCESS_DIED, attempt=3, max_attempts=3, epoch=1, kept_epoch=1, is_retried=False
    )
    assert [key for key in await notifications(db) if "lost" in key or "end" in key] == [
        "job:1:lost:1",
        "job:1:lost:2",
        "job:1:end",
    ]


async def test_a_stop_that_was_not_requested_does_not_count(store: JobStore, submit: Submit) -> None:
    job = await submit()
    for attempt in range(1, 8):
        assert await claim(store, 1)
        assert await store.attempts.ingest(job.id, attempt, [stopped(attempt)], attempt)
    assert (await store.get(job.id)).state is State.QUEUED
