"""Children of a study are real processes: few at once, followed by their events, stopped and resumed without loss."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.studies.study_helpers import all_events, epochs_of, events_of, fake_trainer, is_alive, wait_until
from trainer.exchange.job_dir import write_spec
from trainer.exchange.process import read_process_file
from trainer.protocol.events import EpochEnded, Event, Failed, Finished, Started, Stopped
from trainer.protocol.spec import make_spec
from trainer.protocol.study import ChildGoal, ChildOutcome, EndedChild
from trainer.studies import child_runner
from trainer.studies.child_runner import MAX_STARTS, ChildRunner, DevicePool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SPEC = make_spec({"dataset": "x", "training": {"epochs": 4}})


class Children:
    """A study folder with children, and the events that the listener received."""

    def __init__(self, folder: Path, **behavior: Any) -> None:
        self.folder = folder
        self.received: list[tuple[str, Event]] = []
        self.stop = threading.Event()
        self.behave(**behavior)

    def behave(self, **behavior: Any) -> None:
        (self.folder / "behavior.json").write_text(json.dumps(behavior), encoding="utf-8")

    def run(self, *names: str, until: int | None = None, pool: DevicePool | None = None) -> dict[str, EndedChild]:
        for name in names:
            if not (self.folder / name / "spec.json").exists():
                write_spec(self.folder / name, SPEC)
        runner = ChildRunner(
            pool=pool or DevicePool(parallel=2),
            must_stop=self.stop.is_set,
            listener=lambda child, event: self.received.append((child, event)),
            command=fake_trainer(),
        )
        ended = runner.run(self.folder, [ChildGoal(name=name, folder=name, until_epoch=until) for name in names])
        return {child.name: child for child in ended}

    def span(self, name: str) -> tuple[float, float]:
        """Times of the first and the last event of a child."""
        events = all_events(self.folder / name)
        return events[0].time, events[-1].time

    def device(self, name: str) -> str:
        return (self.folder / name / "device.txt").read_text(encoding="utf-8")


def test_no_more_run_at_once_than_asked_for(tmp_path: Path) -> None:
    children = Children(tmp_path, **{"*": {"epoch_s": 0.1}})
    assert children.run("a", "b", "c", pool=DevicePool(parallel=2)) == {}
    assert all(events_of(tmp_path / name, Finished) for name in "abc")
    spans = [children.span(name) for name in "abc"]
    assert all(sum(begin <= start < end for begin, end in spans) <= 2 for start, _end in spans)


def test_children_are_spread_over_the_devices(tmp_path: Path) -> None:
    children = Children(tmp_path, **{"*": {"epoch_s": 0.1}})
    children.run("a", "b", "c", pool=DevicePool(parallel=2, devices=("4", "GPU-x")))
    assert {children.device("a"), children.device("b")} == {"4", "GPU-x"}


def test_the_listener_receives_each_event_once(tmp_path: Path) -> None:
    children = Children(tmp_path)
    children.run("a", until=2)
    children.run("a")
    assert [event for _name, event in children.received] == all_events(tmp_path / "a")


def test_parallel_children_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert DevicePool(parallel=4).environment([]) == {"OMP_NUM_THREADS": "2"}
    assert DevicePool(parallel=1).environment([]) == {}


def test_a_child_is_stopped_after_its_epoch_and_resumed_from_there_later(tmp_path: Path) -> None:
    children = Children(tmp_path, a={"epoch_s": 0.4})
    assert children.run("a", until=2) == {}
    assert epochs_of(tmp_path / "a") == [1, 2]
    assert isinstance(all_events(tmp_path / "a")[-1], Stopped)

    children.run("a", until=2)
    assert len(events_of(tmp_path / "a", Started)) == 1, "a goal that is reached needs no start"

    children.run("a")
    assert epochs_of(tmp_path / "a") == [1, 2, 3, 4]
    children.run("a")
    assert len(events_of(tmp_path / "a", Started)) == 2, "a finished child is not started again"


def test_a_killed_child_is_started_again_and_repeats_no_epoch(tmp_path: Path) -> None:
    assert Children(tmp_path, a={"dies_at": 3}).run("a") == {}
    assert len(events_of(tmp_path / "a", Started)) == 2
    assert epochs_of(tmp_path / "a") == [1, 2, 3, 4]


def test_a_child_that_keeps_dying_fails_and_the_others_finish(tmp_path: Path) -> None:
    ended = Children(tmp_path, a={"dies_at": 1, "dies_always": True}).run("a", "b")
    assert {name: child.outcome for name, child in ended.items()} == {"a": ChildOutcome.FAILED}
    assert str(tmp_path / "a" / "trainer.log") in ended["a"].reason
    assert len(events_of(tmp_path / "a", Started)) == MAX_STARTS
    assert events_of(tmp_path / "b", Finished)


def test_a_failed_child_gives_its_reason_and_gets_another_try_in_the_next_run(tmp_path: Path) -> None:
    children = Children(tmp_path, a={"fails": True})
    assert children.run("a")["a"].reason == "The device is full. Take less."
    assert len(events_of(tmp_path / "a", Failed)) == 1
    children.behave()
    assert children.run("a") == {}
    assert events_of(tmp_path / "a", Finished)


def test_a_stop_request_stops_all_at_a_checkpoint_and_starts_no_other(tmp_path: Path) -> None:
    children = Children(tmp_path, **{"*": {"epoch_s": 0.3}})
    ended: dict[str, EndedChild] = {}
    thread = threading.Thread(target=lambda: ended.update(children.run("a", "b", "c")), daemon=True)
    thread.start()
    wait_until(lambda: len([event for _name, event in children.received if isinstance(event, EpochEnded)]) >= 2)
    children.stop.set()
    thread.join(60)
    assert {child.outcome for child in ended.values()} == {ChildOutcome.HALTED}
    assert sorted(ended) == ["a", "b", "c"]
    for name in ("a", "b"):
        assert isinstance(all_events(tmp_path / name)[-1], Stopped)
        assert not is_alive(tmp_path / name)
    assert not (tmp_path / "c" / "events.jsonl").exists()

    children.stop.clear()
    assert children.run("a", "b", "c") == {}
    assert epochs_of(tmp_path / "a") == [1, 2, 3, 4]


def test_a_trainer_that_runs_already_is_adopted_and_keeps_its_place_and_its_device(tmp_path: Path) -> None:
    children = Children(tmp_path, **{"*": {"epoch_s": 0.3}})
    write_spec(tmp_path / "b", SPEC)
    environment: Mapping[str, str] = {**os.environ, "CUDA_VISIBLE_DEVICES": "1"}
    with subprocess.Popen([*fake_trainer(), "run", str(tmp_path / "b")], env=environment):
        wait_until(lambda: is_alive(tmp_path / "b"))
        assert children.run("a", "b", "c", pool=DevicePool(parallel=2, devices=("0", "1"))) == {}
    assert len(events_of(tmp_path / "b", Started)) == 1
    assert children.device("a") == "0", "the other device is taken"
    assert children.span("c")[0] >= min(children.span(name)[1] for name in "ab")


def test_a_child_that_is_busy_with_an_unseen_trainer_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(tmp_path, **{"*": {"epoch_s": 1.0}})
    write_spec(tmp_path / "a", SPEC)
    # At the first look the other trainer has not written its process file yet.
    looks = iter([lambda job_dir: None])
    monkeypatch.setattr(child_runner, "read_process_file", lambda job_dir: next(looks, read_process_file)(job_dir))
    with subprocess.Popen([*fake_trainer(), "run", str(tmp_path / "a")]):
        wait_until(lambda: is_alive(tmp_path / "a"))
        assert children.run("a") == {}
    assert epochs_of(tmp_path / "a") == [1, 2, 3, 4]
    assert len(events_of(tmp_path / "a", Started)) == 1
