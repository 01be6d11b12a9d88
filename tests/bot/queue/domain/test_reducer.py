"""The reducer, without a database: what events make of a job, and which notifications they cause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.outbox import NotificationKind
from bot.queue import ActiveJob, State, StopIntent
from bot.queue.domain.reducer import apply, events_shown, ingest_events
from tests.bot import fake_events
from tests.bot.queue.domain.test_rules import active
from trainer.protocol.events import EpochEnded, Event, KeepAlive, Phase, PhaseBegan, PhaseProgress, StageBegan

PREPARING = active(state=State.PREPARING, last_seq=0, step=None, epochs=())

_MAKERS: list[Any] = [
    fake_events.started,
    fake_events.base_validated,
    fake_events.stopped_early,
    fake_events.was_tested,
    fake_events.exported,
    *(
        lambda seq, phase=phase: PhaseBegan(seq=seq, time=0.0, phase=phase)
        for phase in (Phase.TRAINING, Phase.SAMPLING)
    ),
    *(
        lambda seq, done=done: PhaseProgress(seq=seq, time=0.0, phase=Phase.SAMPLING, done=done, total=8)
        for done in (1, 3)
    ),
    lambda seq: KeepAlive(seq=seq, time=0.0),
    *(lambda seq, n=n: fake_events.step_done(seq, n) for n in (1, 2, 3)),
    *(lambda seq, n=n: fake_events.sampled(seq, n) for n in (0, 1, 2)),
    *(lambda seq, n=n: fake_events.epoch_ended(seq, n) for n in (1, 2, 3)),
    *(lambda seq, kind=kind: fake_events.warned(seq, kind) for kind in ("plateau", "overfit")),
]
#: Events in the order of their numbers, as a trainer writes them.
runs = st.lists(st.sampled_from(_MAKERS), max_size=30).map(
    lambda makers: [make(seq) for seq, make in enumerate(makers, 1)]
)


def fold(job: ActiveJob, events: list[Event]) -> tuple[ActiveJob, list[str]]:
    keys: list[str] = []
    for event in events:
        job, notifications = apply(job, event)
        keys += [notification.dedupe_key for notification in notifications]
    return job, keys


def test_an_extended_training_may_stop_early_again() -> None:
    first = fake_events.stopped_early(1)
    _job, keys = fold(PREPARING, [first, first.model_copy(update={"seq": 2, "epoch": 5})])
    assert keys == ["job:1:early_stop:3", "job:1:early_stop:5"]


@given(runs, st.data())
def test_batches_give_the_same_as_single_events(events: list[Event], data: st.DataObject) -> None:
    job, keys = fold(PREPARING, events)
    batched, batched_keys, position = PREPARING, list[str](), 0
    while position < len(events):
        size = data.draw(st.integers(1, 6))
        # A batch may begin with events that were ingested before.
        overlap = data.draw(st.integers(0, min(3, position)))
        result = ingest_events(batched, events[position - overlap : position + size])
        batched, position = result.job, position + size
        batched_keys += [notification.dedupe_key for notification in result.notifications]
    assert (batched, batched_keys) == (job, keys)


@given(runs)
def test_progress_is_a_fold_of_the_events(events: list[Event]) -> None:
    job, _ = fold(PREPARING, events)
    epochs = {event.epoch: event.train_loss for event in events if isinstance(event, EpochEnded)}
    assert [epoch.epoch for epoch in job.progress.epochs] == sorted(epochs)
    assert job.progress.kept_epoch == max(epochs, default=0)
    assert job.progress.step == next((event for event in reversed(events) if event.type == "step_done"), None)
    assert job.last_seq == len(events)
    assert job.state is (State.RUNNING if any(event.type == "started" for event in events) else State.PREPARING)


@given(runs, st.integers(2, 5))
def test_events_of_a_superseded_attempt_change_nothing(events: list[Event], attempt: int) -> None:
    job = replace(PREPARING, attempt=attempt)
    late = [event.model_copy(update={"attempt": attempt - 1}) for event in events]
    assert ingest_events(job, late).job == job


@given(runs)
def test_a_child_of_a_study_causes_no_notifications(events: list[Event]) -> None:
    assert ingest_events(replace(PREPARING, parent_id=7), events).notifications == ()


def test_a_child_stops_at_the_epoch_of_its_goal() -> None:
    job = replace(PREPARING, state=State.RUNNING, parent_id=7, until_epoch=2)
    job, _ = apply(job, fake_events.epoch_ended(1, 1))
    assert job.state is State.RUNNING
    job, _ = apply(job, fake_events.epoch_ended(2, 2))
    assert (job.state, job.stop_intent) == (State.STOPPING, StopIntent.PAUSE)
    finishing, _ = apply(replace(job, state=State.RUNNING, is_finishing=True), fake_events.epoch_ended(3, 3))
    assert finishing.state is State.RUNNING


def test_a_terminal_event_counts_only_at_the_end_of_a_batch() -> None:
    ended = ingest_events(PREPARING, [fake_events.started(1), fake_events.stopped(2)])
    assert ended.terminal_event == fake_events.stopped(2)
    followed = ingest_events(PREPARING, [fake_events.started(1), fake_events.stopped(2), fake_events.started(3)])
    assert followed.terminal_event is None
    assert [event.seq for event in followed.stored] == [1, 2, 3]


def test_only_stages_after_the_first_and_named_ones_are_announced() -> None:
    def keys(**changes: Any) -> list[str]:
        stage = StageBegan(
            seq=1, time=0.0, stage=1, name="", first_epoch=1, last_epoch=3, parts=(), trainable_parameters=1,
            learning_rate=1e-4, optimizer="adamw", schedule="constant", resolution=512,
        ).model_copy(update=changes)  # fmt: skip
        return fold(PREPARING, [stage])[1]

    assert keys() == []
    assert keys(name="warm-up") == ["job:1:stage:1:1"]
    assert keys(stage=2, first_epoch=4) == ["job:1:stage:2:4"]


@pytest.mark.parametrize("kind", [NotificationKind.BASE, NotificationKind.EPOCH])
def test_a_message_shows_the_newest_samples_of_its_epoch(kind: NotificationKind) -> None:
    epoch = 0 if kind is NotificationKind.BASE else 2
    own = fake_events.base_validated(9) if kind is NotificationKind.BASE else fake_events.epoch_ended(9, 2)
    events = [
        fake_events.sampled(1, epoch),
        fake_events.sampled(2, 1),
        fake_events.sampled(3, epoch),
        own,
        fake_events.sampled(10, epoch),
    ]
    _, (notification,) = apply(replace(PREPARING, last_seq=8), own)
    assert notification.kind is kind
    assert [event.seq for event in events_shown(notification, events)] == [3, 9]
