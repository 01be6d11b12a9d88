"""The reporter appends each event once and completely; only one process at a time writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.trainer.small_disk import fill, small_disk
from trainer.errors import FencedError, JobFolderBusyError
from trainer.exchange.attempt import HEARTBEAT_FILE, write_attempt
from trainer.exchange.process import identify, read_process_file
from trainer.protocol.events import (
    MAX_LINE_BYTES,
    Event,
    Phase,
    PhaseBegan,
    Sampled,
    Stopped,
    Warned,
    parse_event,
)
from trainer.reporter import KEEP_ALIVE_S, Heartbeat, Reporter


def read(job_dir: Path) -> list[Event]:
    return [parse_event(line) for line in (job_dir / "events.jsonl").read_bytes().splitlines()]


def test_seq_rises_by_one_over_all_runs_of_a_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with Reporter(tmp_path) as reporter:
            reporter.emit(PhaseBegan, phase=Phase.LOADING)
            reporter.emit(Stopped, epoch=1, step=1, checkpoint=None)

    assert [event.seq for event in read(tmp_path)] == [1, 2, 3, 4]


def test_a_torn_last_line_is_removed_and_its_number_is_used_again(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        reporter.emit(PhaseBegan, phase=Phase.LOADING)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"seq":2,"time":1.0,"type":"phase_be')

    with Reporter(tmp_path) as reporter:
        reporter.emit(PhaseBegan, phase=Phase.CACHING)

    assert [(event.seq, event.type) for event in read(tmp_path)] == [(1, "phase_began"), (2, "phase_began")]


def test_an_event_of_an_epoch_is_not_emitted_again_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        with Reporter(tmp_path) as reporter:
            reporter.emit(Sampled, epoch=1, samples=(), sheet="a.png")
            reporter.emit(Sampled, epoch=2, samples=(), sheet="b.png")
            reporter.emit(Warned, kind="plateau", message="It is flat.")

    assert [event.type for event in read(tmp_path)] == ["sampled", "sampled", "warned"]


def test_the_listener_gets_an_event_only_once_it_is_durable(tmp_path: Path) -> None:
    received: list[Event] = []

    def listen(event: Event, /) -> None:
        assert read(tmp_path)[-1] == event
        received.append(event)

    with Reporter(tmp_path, listen) as reporter:
        reporter.emit(PhaseBegan, phase=Phase.LOADING)

    assert len(received) == 1


def test_the_folder_names_the_process_that_runs_it(tmp_path: Path) -> None:
    with Reporter(tmp_path):
        assert read_process_file(tmp_path) == identify(os.getpid())


def test_a_second_process_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainer.reporter import Reporter\n"
        "with Reporter(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdin is not None
    assert first.stdout.readline() == "in\n"

    with pytest.raises(JobFolderBusyError), Reporter(tmp_path):
        pass

    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    with Reporter(tmp_path):
        pass


# -- damaged files --------------------------------------------------------------------------------------------------


def test_garbage_in_the_middle_is_skipped_and_numbering_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Reporter(tmp_path) as reporter:
        reporter.emit(Sampled, epoch=1, samples=(), sheet="a.png")
        reporter.emit(PhaseBegan, phase=Phase.TRAINING)
    path = tmp_path / "events.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    # The end of a line that is too long looks like an event.
    long = b"x" * (2 * MAX_LINE_BYTES) + first
    # The newest line comes before an older one: numbering continues from the highest number.
    path.write_bytes(second + b"\xff\x00\n" + long + b'{"type": "sang", "seq": 99}\n' + first + b'{"torn')

    with Reporter(tmp_path) as reporter:
        assert [event.seq for event in reporter.history] == [2, 1]
        reporter.emit(Sampled, epoch=1, samples=(), sheet="a.png")
        reporter.emit(PhaseBegan, phase=Phase.TESTING)

    assert parse_event(path.read_bytes().splitlines()[-1]).seq == 3
    assert b"torn" not in path.read_bytes()
    assert "3 lines of events.jsonl" in caplog.text


def test_a_torn_end_too_long_for_an_event_keeps_its_bytes(tmp_path: Path) -> None:
    """The bot has skipped it, and continues behind it."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * (MAX_LINE_BYTES + 1))
    with Reporter(tmp_path) as reporter:
        reporter.emit(PhaseBegan, phase=Phase.LOADING)
    garbage, line = path.read_bytes().splitlines()
    assert len(garbage) == MAX_LINE_BYTES + 1
    assert parse_event(line).seq == 1


# -- the fence ------------------------------------------------------------------------------------------------------


def test_each_event_has_its_attempt(tmp_path: Path) -> None:
    write_attempt(tmp_path, 3)
    with Reporter(tmp_path, attempt=3) as reporter:
        reporter.emit(PhaseBegan, phase=Phase.LOADING)
    assert read(tmp_path)[0].attempt == 3


def test_a_superseded_attempt_writes_nothing_more(tmp_path: Path) -> None:
    write_attempt(tmp_path, 1)
    with Reporter(tmp_path, attempt=1) as reporter:
        reporter.emit(PhaseBegan, phase=Phase.LOADING)
        write_attempt(tmp_path, 2)
        for _ in range(2):
            with pytest.raises(FencedError):
                reporter.emit(PhaseBegan, phase=Phase.CACHING)
    assert len(read(tmp_path)) == 1


def test_an_attempt_that_starts_too_late_leaves_no_trace(tmp_path: Path) -> None:
    write_attempt(tmp_path, 2)
    with pytest.raises(FencedError), Reporter(tmp_path, attempt=1):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"attempt.json", "lock"}
    with Reporter(tmp_path, attempt=2):
        pass


def test_a_run_from_the_command_line_is_never_fenced(tmp_path: Path) -> None:
    write_attempt(tmp_path, 2)
    with Reporter(tmp_path) as reporter:
        reporter.emit(PhaseBegan, phase=Phase.LOADING)
    assert read(tmp_path)[0].attempt == 0


# -- the heartbeat --------------------------------------------------------------------------------------------------


def changes(path: Path, *, within_s: float) -> bool:
    """Return True if a heartbeat is written in that time."""
    before, until = path.stat().st_mtime_ns, time.monotonic() + within_s
    while time.monotonic() < until:
        if path.stat().st_mtime_ns != before:
            return True
        time.sleep(0.01)
    return False


def test_a_reporter_writes_a_heartbeat_at_once(tmp_path: Path) -> None:
    with Reporter(tmp_path):
        assert (tmp_path / HEARTBEAT_FILE).exists()


def test_a_stopped_process_has_no_heartbeat_until_it_continues(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainer.reporter import Heartbeat\n"
        "beat = Heartbeat(Path(sys.argv[1]), lambda: True, interval_s=0.02); beat.start()\n"
        "print('in', flush=True); sys.stdin.read(); beat.stop()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        path = tmp_path / HEARTBEAT_FILE
        assert changes(path, within_s=60)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert not changes(path, within_s=0.3)
        process.send_signal(signal.SIGCONT)
        assert changes(path, within_s=60)
        process.communicate()
    assert process.returncode == 0


def test_a_superseded_attempt_has_no_heartbeat(tmp_path: Path) -> None:
    is_valid = True
    heartbeat = Heartbeat(tmp_path, lambda: is_valid, interval_s=0.01)
    heartbeat.start()
    assert changes(tmp_path / HEARTBEAT_FILE, within_s=60)
    is_valid = False
    deadline = time.monotonic() + 60
    while changes(tmp_path / HEARTBEAT_FILE, within_s=0.2):
        assert time.monotonic() < deadline, "the heartbeat goes on"
    heartbeat.stop()


# -- the disk -------------------------------------------------------------------------------------------------------


def test_an_event_on_a_full_disk_leaves_no_trace_and_counts_as_not_emitted(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as folder, Reporter(folder) as reporter:
        reporter.emit(PhaseBegan, phase=Phase.LOADING)
        ballast = folder / "ballast"
        fill(ballast)
        with pytest.raises(OSError, match="No space left"):
            reporter.emit(Warned, kind="long", message="x" * 10_000)
        written = read(folder)
        assert tuple(written) == reporter.history
        ballast.unlink()
        reporter.emit(Stopped, epoch=1, step=1, checkpoint=None)
        assert read(folder)[-1].seq == len(written) + 1


def test_keep_alive_is_emitted_only_after_a_minute_without_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("trainer.reporter.time", SimpleNamespace(monotonic=lambda: now, time=lambda: now))
    with Reporter(tmp_path) as reporter:
        reporter.keep_alive()
        now += KEEP_ALIVE_S
        reporter.emit(PhaseBegan, phase=Phase.CACHING)
        reporter.keep_alive()
        now += KEEP_ALIVE_S - 1
        reporter.keep_alive()
        now += 1
        reporter.keep_alive()
        reporter.keep_alive()

    assert [event.type for event in read(tmp_path)] == ["phase_began", "keep_alive"]
