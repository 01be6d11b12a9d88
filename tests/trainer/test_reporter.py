"""Events are appended once, whole, and by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import JobFolderBusyError
from trainer.protocol.events import Event, Phase, PhaseBegan, Sampled, Stopped, Warned, parse_event
from trainer.protocol.process import identify, read_process_file
from trainer.reporter import Reporter


def read(job_dir: Path) -> list[Event]:
    return [parse_event(line) for line in (job_dir / "events.jsonl").read_bytes().splitlines()]


def test_seq_rises_by_one_over_all_runs_of_a_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with Reporter(tmp_path) as reporter:
            reporter.say(PhaseBegan, phase=Phase.LOADING)
            reporter.say(Stopped, epoch=1, step=1, checkpoint=None)

    assert [event.seq for event in read(tmp_path)] == [1, 2, 3, 4]


def test_a_torn_last_line_goes_and_its_number_is_used_again(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        reporter.say(PhaseBegan, phase=Phase.LOADING)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"seq":2,"time":1.0,"type":"phase_be')

    with Reporter(tmp_path) as reporter:
        reporter.say(PhaseBegan, phase=Phase.CACHING)

    assert [(event.seq, event.type) for event in read(tmp_path)] == [(1, "phase_began"), (2, "phase_began")]


def test_what_was_said_of_an_epoch_is_not_said_again_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        with Reporter(tmp_path) as reporter:
            reporter.say(Sampled, epoch=1, samples=(), sheet="a.png")
            reporter.say(Sampled, epoch=2, samples=(), sheet="b.png")
            reporter.say(Warned, kind="plateau", message="It is flat.")

    assert [event.type for event in read(tmp_path)] == ["sampled", "sampled", "warned"]


def test_the_listener_hears_an_event_only_once_it_is_durable(tmp_path: Path) -> None:
    heard: list[Event] = []

    def listen(event: Event, /) -> None:
        assert read(tmp_path)[-1] == event
        heard.append(event)

    with Reporter(tmp_path, listen) as reporter:
        reporter.say(PhaseBegan, phase=Phase.LOADING)

    assert len(heard) == 1


def test_the_folder_says_who_runs_it(tmp_path: Path) -> None:
    with Reporter(tmp_path):
        assert read_process_file(tmp_path) == identify(os.getpid())


def test_a_second_process_is_refused_while_the_first_lives_and_let_in_after(tmp_path: Path) -> None:
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

    with pytest.raises(JobFolderBusyError, match="Another trainer"), Reporter(tmp_path):
        pass

    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    with Reporter(tmp_path):
        pass
