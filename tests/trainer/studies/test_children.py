"""Children of a study are real processes: few at once, followed by their events, stopped and resumed without loss."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.studies.studying import FAKE_TRAINER, all_events, epochs_of, events_of, is_alive, wait_until
from trainer.protocol.events import EpochEnded, Event, Failed, Finished, Started, Stopped
from trainer.protocol.process import read_process_file
from trainer.protocol.spec import make_spec
from trainer.studies import children
from trainer.studies.children import MAX_STARTS, Children, End, Goal, Outcome, Places

pytestmark = pytest.mark.timeout(120)


class Nursery:
    """A folder of children, and what was heard of them."""

    def __init__(self, folder: Path, **behaviour: Any) -> None:
        self.folder = folder
        self.heard: list[tuple[str, Event]] = []
        self.devices: dict[str, str] = {}
        self.halt = threading.Event()
        (folder / "behaviour.json").write_text(json.dumps(behaviour), encoding="utf-8")

    def run(
        self,
        *names: str,
        until: int | None = None,
        parallel: int = 2,
        devices: tuple[str, ...] = (),
        epochs: int = 4,
    ) -> dict[str, Outcome]:
        for name in names:
            spec = make_spec({"dataset": "x", "training": {"epochs": epochs}})
            if not (self.folder / name).exists():
                spec.write(self.folder / name)
        runner = Children(
            places=Places(parallel=parallel, devices=devices),
            must_halt=self.halt.is_set,
            devices=self.devices,
            remember_device=self.devices.__setitem__,
            listener=lambda child, event: self.heard.append((child, event)),
            command=FAKE_TRAINER,
        )
        return runner.run([Goal(name=name, job_dir=self.folder / name, until_epoch=until) for name in names])

    def span(self, name: str) -> tuple[float, float]:
        """When the child trained."""
        started, finished = events_of(self.folder / name, Started)[0], events_of(self.folder / name, Finished)[0]
        return started.time, finished.time


def most_at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_more_children_run_at_once_than_asked_for(tmp_path: Path, parallel: int) -> None:
    nursery = Nursery(tmp_path, **{"*": {"epoch_s": 0.15}})
    outcomes = nursery.run("a", "b", "c", parallel=parallel)
    assert {outcome.end for outcome in outcomes.values()} == {End.FINISHED}
    assert most_at_once([nursery.span(name) for name in "abc"]) == parallel


def test_children_are_dealt_over_the_devices(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path, **{"*": {"epoch_s": 0.15}})
    nursery.run("a", "b", "c", "d", parallel=2, devices=("0", "3"))
    seen = {name: (tmp_path / name / "device.txt").read_text(encoding="utf-8") for name in "abcd"}
    assert seen == nursery.devices
    assert sorted(seen.values()) == ["0", "0", "3", "3"]


def test_every_event_is_heard_once_and_in_order(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path)
    nursery.run("a", "b")
    for name in ("a", "b"):
        heard = [event for child, event in nursery.heard if child == name]
        assert heard == all_events(tmp_path / name)


def test_a_child_is_stopped_after_its_epoch_and_goes_on_from_there_later(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path, a={"epoch_s": 0.4})
    assert nursery.run("a", until=2)["a"].end is End.REACHED
    assert epochs_of(tmp_path / "a") == [1, 2]
    assert isinstance(all_events(tmp_path / "a")[-1], Stopped)

    assert nursery.run("a", until=2)["a"].end is End.REACHED
    assert len(events_of(tmp_path / "a", Started)) == 1, "a goal that is reached needs no start"

    assert nursery.run("a")["a"].end is End.FINISHED
    assert epochs_of(tmp_path / "a") == [1, 2, 3, 4]


def test_a_finished_child_is_not_started_again(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path)
    nursery.run("a")
    assert nursery.run("a")["a"].end is End.FINISHED
    assert len(events_of(tmp_path / "a", Started)) == 1


def test_a_killed_child_is_started_again_and_repeats_no_epoch(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path, a={"dies_at": 3})
    assert nursery.run("a")["a"].end is End.FINISHED
    assert len(events_of(tmp_path / "a", Started)) == 2
    assert epochs_of(tmp_path / "a") == [1, 2, 3, 4]


def test_a_child_that_keeps_dying_is_given_up_and_others_are_not(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path, a={"dies_at": 1, "dies_always": True})
    outcomes = nursery.run("a", "b")
    assert outcomes["b"].end is End.FINISHED
    assert outcomes["a"].end is End.FAILED
    assert f"died {MAX_STARTS} times" in outcomes["a"].reason
    assert len(events_of(tmp_path / "a", Started)) == MAX_STARTS


def test_a_failed_child_says_why_and_gets_another_try_when_asked_again(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path, a={"fails": True})
    outcome = nursery.run("a")["a"]
    assert (outcome.end, outcome.reason) == (End.FAILED, "The device is full. Take less.")
    assert len(events_of(tmp_path / "a", Failed)) == 1

    (tmp_path / "behaviour.json").write_text("{}", encoding="utf-8")
    assert nursery.run("a")["a"].end is End.FINISHED


def test_halting_stops_all_at_a_checkpoint_and_starts_no_other(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path, **{"*": {"epoch_s": 0.3}})
    outcomes: dict[str, Outcome] = {}
    thread = threading.Thread(target=lambda: outcomes.update(nursery.run("a", "b", "c")), daemon=True)
    thread.start()
    wait_until(lambda: len([event for _, event in nursery.heard if isinstance(event, EpochEnded)]) >= 2)
    nursery.halt.set()
    thread.join(30)
    assert {outcome.end for outcome in outcomes.values()} == {End.HALTED}
    for name in ("a", "b"):
        assert isinstance(all_events(tmp_path / name)[-1], Stopped)
        assert not is_alive(tmp_path / name)
    assert not (tmp_path / "c" / "events.jsonl").exists()

    nursery.halt.clear()
    assert {outcome.end for outcome in nursery.run("a", "b", "c").values()} == {End.FINISHED}
    assert epochs_of(tmp_path / "a") == [1, 2, 3, 4]


def test_a_trainer_that_runs_already_is_taken_over_and_keeps_its_place(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path, **{"*": {"epoch_s": 0.3}})
    spec = make_spec({"dataset": "x", "training": {"epochs": 4}})
    spec.write(tmp_path / "b")
    with subprocess.Popen([*FAKE_TRAINER, "run", str(tmp_path / "b")]):
        wait_until(lambda: is_alive(tmp_path / "b"))
        outcomes = nursery.run("a", "b", parallel=1)
    assert {outcome.end for outcome in outcomes.values()} == {End.FINISHED}
    assert len(events_of(tmp_path / "b", Started)) == 1
    assert nursery.span("b")[1] <= nursery.span("a")[0], "it holds the only place until it ends"


def test_a_trainer_that_was_started_unseen_makes_the_second_one_step_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nursery = Nursery(tmp_path, **{"*": {"epoch_s": 1.0}})
    make_spec({"dataset": "x", "training": {"epochs": 4}}).write(tmp_path / "a")
    # At the study's first look the other trainer has not written down that it is there.
    looks = iter([lambda job_dir: None])
    monkeypatch.setattr(children, "read_process_file", lambda job_dir: next(looks, read_process_file)(job_dir))
    with subprocess.Popen([*FAKE_TRAINER, "run", str(tmp_path / "a")]):
        wait_until(lambda: is_alive(tmp_path / "a"))
        assert nursery.run("a")["a"].end is End.FINISHED
    assert epochs_of(tmp_path / "a") == [1, 2, 3, 4]
    assert len(events_of(tmp_path / "a", Started)) == 1
