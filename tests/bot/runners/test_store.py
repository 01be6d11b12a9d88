"""Job folders through an object store, both of its sides in one process: what goes up, what comes down, and when."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bot.runners.mirror import Mirror
from bot.runners.stored import StoredJobs
from tests.bot import fakes
from tests.bot.fakes import Clock
from trainer.errors import FencedError
from trainer.protocol.events import Event
from trainer.protocol.log_file import MAX_LOG_BYTES
from trainer.protocol.objects import Objects
from trainer.protocol.order import LOG_FILE
from trainer.protocol.places import read_places
from trainer.protocol.spec import make_spec
from trainer.protocol.store import Begin, JobPlace
from trainer.shipping.beating import Beating
from trainer.shipping.fetching import Fetched, fetch
from trainer.shipping.sending import LOG_INTERVAL_S, Sender

FIRST, SECOND, THIRD = (JobPlace(job_id=7, attempt=number) for number in (1, 2, 3))


class Both:
    """A bot's job folder, a store, and a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = Objects(f"file://{folder}/store")
        self.job_dir = folder / "jobs" / "7"
        self.job_dir.mkdir(parents=True)
        dataset = folder / "datasets/3/prepared"
        (dataset / "cache").mkdir(parents=True)
        (dataset / "report.json").write_text("{}")
        (dataset / "cache/latents").write_text("large")
        make_spec({"name": "fox", "dataset": str(dataset)}).write(self.job_dir)
        self.mirror = Mirror(self.objects)

    def begin(self, place: JobPlace) -> tuple[Fetched, Sender]:
        self.mirror.prepare(place, self.job_dir)
        fetched = fetch(self.objects, place, self.folder / f"node-{place.attempt}")
        return fetched, Sender(self.objects, place, fetched)

    def hear(self, place: JobPlace) -> list[int]:
        """Numbers of all events that the bot has."""
        self.mirror.fetch(place, self.job_dir)
        return said_in(self.job_dir)


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def said_in(job_dir: Path) -> list[int]:
    path = job_dir / "events.jsonl"
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()] if path.exists() else []


def say(fetched: Fetched, *events: Event, attempt: int = 1) -> None:
    with (fetched.job_dir / "events.jsonl").open("a") as file:
        for event in events:
            file.write(event.model_copy(update={"attempt": attempt}).model_dump_json() + "\n")


def save(fetched: Fetched, step: int) -> None:
    folder = fetched.job_dir / f"checkpoints/step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(f'{{"step": {step}}}')


def draw(fetched: Fetched, name: str, content: str = "drawn") -> None:
    path = fetched.job_dir / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def test_a_node_gets_the_spec_and_the_dataset_under_their_names(both: Both) -> None:
    fetched, _ = both.begin(FIRST)

    assert (fetched.job_dir / "spec.json").read_bytes() == (both.job_dir / "spec.json").read_bytes()
    [(name, place)] = read_places(fetched.environment).items()
    assert name == str(both.folder / "datasets/3/prepared")
    assert Path(place).parts[-2:] == ("3", "prepared")
    assert (Path(place) / "report.json").exists()
    assert not (Path(place) / "cache").exists()


def test_a_dataset_goes_up_once(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    both.begin(FIRST)
    packed: list[Any] = []
    monkeypatch.setattr(Objects, "pack", lambda *arguments, **more: packed.append(arguments))
    both.mirror.prepare(SECOND, both.job_dir)
    assert packed == []


def test_what_an_event_names_is_there_before_the_event(both: Both) -> None:
    fetched, sender = both.begin(FIRST)
    draw(fetched, "c.png")
    draw(fetched, "half.png.part")
    say(fetched, fakes.started(1), fakes.epoch_ended(2, 1))
    sender.send()

    assert both.hear(FIRST) == [1, 2]
    assert (both.job_dir / "c.png").read_text() == "drawn"
    assert not list((both.folder / "store").rglob("*.part"))


def test_a_torn_line_is_not_sent(both: Both) -> None:
    fetched, sender = both.begin(FIRST)
    say(fetched, fakes.started(1))
    with (fetched.job_dir / "events.jsonl").open("a") as file:
        file.write('{"seq": 2')
    sender.send()
    assert both.hear(FIRST) == [1]


def test_the_events_before_a_checkpoint_go_first_and_the_last_word_goes_last(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, sender = both.begin(FIRST)
    say(fetched, fakes.started(1))
    save(fetched, 10)
    say(fetched, fakes.stopped(2, 1))
    sent: list[str] = []
    write, pack = Objects.write, Objects.pack

    def note_write(self: Objects, name: str, content: bytes) -> None:
        sent.append(name)
        write(self, name, content)

    def note_pack(self: Objects, folder: Path, name: str, **more: Any) -> None:
        sent.append(name)
        pack(self, folder, name, **more)

    monkeypatch.setattr(Objects, "write", note_write)
    monkeypatch.setattr(Objects, "pack", note_pack)
    sender.send()

    first, checkpoint, last = sent
    assert first == FIRST.events_from(0)
    assert checkpoint == f"{FIRST.checkpoints}/step-00000010.tar"
    assert last.startswith(FIRST.events)


def test_the_next_attempt_begins_with_all_that_came_before(both: Both) -> None:
    fetched, sender = both.begin(FIRST)
    draw(fetched, "charts/1.png")
    say(fetched, fakes.started(1))
    save(fetched, 10)
    sender.send()
    save(fetched, 20)
    (fetched.job_dir / "checkpoints/step-00000010/state.json").unlink()
    (fetched.job_dir / "checkpoints/step-00000010").rmdir()
    sender.send()
    both.hear(FIRST)

    again, _ = both.begin(SECOND)
    assert [path.name for path in (again.job_dir / "checkpoints").iterdir()] == ["step-00000020"]
    assert (again.job_dir / "charts/1.png").read_text() == "drawn"
    assert said_in(again.job_dir) == [1]
    # One that never came so far as to save leaves the next with the same.
    third, sender = both.begin(THIRD)
    assert [path.name for path in (third.job_dir / "checkpoints").iterdir()] == ["step-00000020"]
    assert (third.job_dir / "charts/1.png").exists()
    assert both.objects.exists(f"{FIRST.checkpoints}/step-00000020.tar")


def test_what_was_sent_and_not_heard_belongs_to_the_next_attempt_without_its_last_word(both: Both) -> None:
    fetched, sender = both.begin(FIRST)
    say(fetched, fakes.started(1))
    sender.send()
    assert both.hear(FIRST) == [1]
    draw(fetched, "c.png")
    say(fetched, fakes.epoch_ended(2, 1), fakes.stopped(3, 1))
    sender.send()

    again, _ = both.begin(SECOND)
    assert said_in(again.job_dir) == [1, 2]
    assert both.hear(SECOND) == [1, 2]
    lines = (both.job_dir / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["attempt"] for line in lines] == [1, 2]
    assert (both.job_dir / "c.png").exists()


def test_an_attempt_that_lost_its_job_sends_nothing(both: Both) -> None:
    fetched, sender = both.begin(FIRST)
    both.mirror.prepare(SECOND, both.job_dir)
    say(fetched, fakes.started(1))
    with pytest.raises(FencedError):
        sender.send()
    assert both.objects.names(FIRST.events) == []


def test_what_it_sent_all_the_same_is_heard_by_nobody(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked at the fence, was stopped for a minute, and then wrote."""
    fetched, sender = both.begin(FIRST)
    monkeypatch.setattr(sender, "_check_fence", lambda: None)
    again, second = both.begin(SECOND)
    say(fetched, fakes.started(1))
    save(fetched, 990)
    sender.send()
    say(again, fakes.started(1), fakes.step_done(2, 1), attempt=2)
    second.send()

    assert both.hear(SECOND) == [1, 2]
    third, _ = both.begin(THIRD)
    assert not (third.job_dir / "checkpoints").exists()


def test_a_second_launch_of_an_attempt_that_runs_changes_nothing(both: Both) -> None:
    fetched, sender = both.begin(FIRST)
    say(fetched, fakes.started(1), fakes.step_done(2, 1))
    sender.send()
    # A bot that has heard but the first of them.
    first = (fetched.job_dir / "events.jsonl").read_bytes().splitlines(keepends=True)[0]
    (both.job_dir / "events.jsonl").write_bytes(first)
    both.mirror.prepare(FIRST, both.job_dir)
    assert both.hear(FIRST) == [1, 2]


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_bot_that_died_while_it_wrote_hears_the_rest(both: Both, whole: int) -> None:
    fetched, sender = both.begin(FIRST)
    say(fetched, fakes.started(1), fakes.step_done(2, 1), fakes.step_done(3, 1))
    sender.send()
    say(fetched, fakes.step_done(4, 2))
    sender.send()
    lines = (fetched.job_dir / "events.jsonl").read_bytes().splitlines(keepends=True)
    (both.job_dir / "events.jsonl").write_bytes(b"".join(lines[:whole]) + lines[whole][:20])
    both.mirror = Mirror(both.objects)

    assert both.hear(FIRST) == [1, 2, 3, 4]


def test_a_name_that_leads_out_of_the_job_folder_is_not_fetched(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    fetched, sender = both.begin(FIRST)
    say(fetched, fakes.epoch_ended(1, 1).model_copy(update={"chart": "../../../secret"}))
    sender.send()
    assert both.hear(FIRST) == [1]
    assert "lies outside" in caplog.text


def test_the_sign_of_life_comes_through(both: Both) -> None:
    fetched, _ = both.begin(FIRST)
    beating = Beating(both.objects, FIRST, fetched.job_dir, lambda: False)
    beating.pass_on()
    assert both.mirror.last_beat(FIRST) is None
    draw(fetched, "heartbeat", "")
    beating.pass_on()
    assert both.mirror.last_beat(FIRST) == (fetched.job_dir / "heartbeat").stat().st_mtime


def test_while_a_large_checkpoint_is_sent_signs_of_life_come_through(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those after the trainer's end, whose own heart has stopped by then."""
    fetched, sender = both.begin(FIRST)
    save(fetched, 1)
    beats: list[float] = []
    pack = Objects.pack

    def pack_slowly(self: Objects, *arguments: Any, **more: Any) -> None:
        deadline = time.monotonic() + 60
        while len(beats) < 3 and time.monotonic() < deadline:
            beat = both.mirror.last_beat(FIRST)
            if beat is not None and beat not in beats:
                beats.append(beat)
            time.sleep(0.01)
        pack(self, *arguments, **more)

    monkeypatch.setattr(Objects, "pack", pack_slowly)
    with Beating(both.objects, FIRST, fetched.job_dir, lambda: True, interval_s=0.01):
        sender.send(is_last=True)
    assert len(beats) == 3
    assert beats == sorted(beats)


def test_begin_knows_its_own_fields_only() -> None:
    with pytest.raises(ValueError, match="extra"):
        Begin.model_validate({"spec": "", "more": 1})


def test_the_log_goes_on_over_the_attempts_and_comes_back(both: Both) -> None:
    (both.job_dir / LOG_FILE).write_text("said on this machine\n")
    for place in (FIRST, SECOND):
        fetched, sender = both.begin(place)
        with (fetched.job_dir / LOG_FILE).open("a") as file:
            file.write(f"said by attempt {place.attempt}\n")
        sender.send(is_last=True)
        both.mirror.fetch_log(place, both.job_dir)

    said = (both.job_dir / LOG_FILE).read_text()
    assert said == "said on this machine\nsaid by attempt 1\nsaid by attempt 2\n"


def test_what_was_added_to_the_log_here_is_there_in_the_next_attempt(both: Both) -> None:
    both.begin(FIRST)
    # Its machine died before it had sent any.
    both.mirror.fetch_log(FIRST, both.job_dir)
    (both.job_dir / LOG_FILE).write_text("Ray says why\n")
    fetched, _ = both.begin(SECOND)
    assert (fetched.job_dir / LOG_FILE).read_text() == "Ray says why\n"


def test_the_log_is_sent_now_and_then_and_only_its_end(both: Both) -> None:
    clock = Clock()
    fetched, _ = both.begin(FIRST)
    sender = Sender(both.objects, FIRST, fetched, monotonic=clock)
    (fetched.job_dir / LOG_FILE).write_text("first line\n")
    sender.send()
    assert both.objects.read(FIRST.log) is None
    clock.now += LOG_INTERVAL_S
    sender.send()
    assert both.objects.read(FIRST.log) == b"first line\n"

    lines = [f"line {number}\n" for number in range(50_000)]
    (fetched.job_dir / LOG_FILE).write_text("".join(lines))
    sender.send(is_last=True)
    kept = both.objects.read(FIRST.log) or b""
    assert MAX_LOG_BYTES - 20 < len(kept) <= MAX_LOG_BYTES
    assert "".join(lines).endswith(kept.decode())
    assert kept.startswith(b"line ")
    assert LOG_FILE not in {name.rpartition("/")[2] for name in both.objects.names(FIRST.files)}


# -- what is left in the store -------------------------------------------------------------------------------------


def packed(both: Both) -> list[str]:
    """Checkpoints in the store, without the names that all of them have."""
    names = [name for name in both.objects.names("jobs") if name.endswith(".tar")]
    return [name.removeprefix("jobs/7/attempts/").replace("/checkpoints", "") for name in names]


def pack(both: Both, place: JobPlace, *steps: int) -> None:
    for step in steps:
        both.objects.write(f"{place.checkpoints}/step-{step:08d}.tar", b"packed")


def test_stale_checkpoints_are_those_that_no_next_attempt_begins_with(both: Both) -> None:
    both.begin(FIRST)
    pack(both, FIRST, 10, 20)
    both.mirror.prepare(SECOND, both.job_dir)
    # It had lost its job, and sent what it saved meanwhile.
    pack(both, FIRST, 30)
    pack(both, SECOND, 40)
    stored = StoredJobs(both.objects)
    for _ in range(2):
        stored.delete_stale_checkpoints(7)
        assert packed(both) == ["1/step-00000010.tar", "1/step-00000020.tar", "2/step-00000040.tar"]
    both.mirror.prepare(THIRD, both.job_dir)
    begin = Begin.model_validate_json(both.objects.read(THIRD.begin) or b"")
    assert len(begin.checkpoints) == 3


def test_an_attempt_that_nobody_finished_preparing_is_not_the_last(both: Both) -> None:
    both.begin(FIRST)
    pack(both, FIRST, 10)
    both.objects.write(SECOND.events_from(0), b"{}\n")
    StoredJobs(both.objects).delete_stale_checkpoints(7)
    assert packed(both) == ["1/step-00000010.tar"]


def test_all_checkpoints_of_a_job_go_and_nothing_else(both: Both) -> None:
    both.begin(FIRST)
    pack(both, FIRST, 10)
    both.mirror.prepare(SECOND, both.job_dir)
    pack(both, SECOND, 20)
    before = set(both.objects.names("jobs"))
    for _ in range(2):
        StoredJobs(both.objects).delete_checkpoints(7)
    assert before - set(both.objects.names("jobs")) == {
        f"{FIRST.checkpoints}/step-00000010.tar",
        f"{SECOND.checkpoints}/step-00000020.tar",
    }


def test_all_of_a_job_goes_and_its_dataset_and_other_jobs_stay(both: Both) -> None:
    both.begin(FIRST)
    pack(both, FIRST, 10)
    other = JobPlace(job_id=70, attempt=1)
    both.objects.write(other.begin, b"{}")
    stored = StoredJobs(both.objects)
    assert stored.ids() == {7, 70}
    for _ in range(2):
        stored.delete(7)
    assert stored.ids() == {70}
    assert both.objects.names("jobs") == [other.begin]
    assert len(both.objects.names("datasets")) == 1


def test_a_store_that_is_no_folder_is_cleared_as_well() -> None:
    objects = Objects("memory://darkroom-of-a-test")
    objects.write(FIRST.begin, b"{}")
    pack_in = f"{FIRST.checkpoints}/step-00000010.tar"
    objects.write(pack_in, b"packed")
    stored = StoredJobs(objects)
    assert stored.ids() == {7}
    stored.delete_checkpoints(7)
    assert objects.names("jobs") == [FIRST.begin]
    for _ in range(2):
        stored.delete(7)
    assert stored.ids() == set()
