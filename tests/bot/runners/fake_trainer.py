"""A trainer that trains nothing but emits real events: `python fake_trainer.py PLAN run JOB_DIR …`, or `… PLAN wait`.

It draws nothing by `… PLAN sample JOB_DIR …`, and stays after that as the real trainer does.

PLAN is a JSON file; every key is optional:

    epochs, pause_s   number of epochs, and seconds for each
    dies_at           SIGKILL itself in this epoch, in the attempt `in_attempt` (default: in every attempt)
    ignores_stop      ignore SIGTERM
    wait              "dies" before it is ready, "loads" forever, "ignores" a job, or "drops dead" at a job
    draw_s            seconds that a sampling job takes, which does not stop
    refuses_job       of a sampling job after its first one: "ignores" it, or "drops dead"

It resumes from its newest checkpoint, writes a chart for each epoch, and stops on SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

if sys.argv[2:] == ["wait"]:
    # It never trains, and the imports below take a third of a second.
    match json.loads(Path(sys.argv[1]).read_text()).get("wait"):
        case "dies":
            sys.exit(1)
        case "loads":
            signal.pause()

from tests.bot import fake_events
from trainer.commands import job_processes
from trainer.commands.sampling_commands import add_sample, options_of
from trainer.errors import FencedError, JobFolderBusyError
from trainer.exchange.job_dir import DATASETS_VARIABLE, LOG_FILE
from trainer.protocol.events import EXIT_BUSY, EXIT_FENCED, EXIT_FINISHED, EXIT_STOPPED, Event, SamplingFinished
from trainer.protocol.run_options import READY, TAKEN, RunOptions
from trainer.reporter import Reporter

_must_stop = False


def _request_stop(number: int, frame: FrameType | None) -> None:
    global _must_stop
    _must_stop = True


def emit(reporter: Reporter, event: Event, **fields: object) -> None:
    """Emit a fake event under the next number."""
    content = event.model_dump(exclude={"seq", "time", "attempt", "type"}) | fields
    reporter.emit(type(event), **content)


def save(job_dir: Path, epoch: int) -> str:
    """Write a checkpoint atomically, and delete the earlier ones."""
    folder = job_dir / "checkpoints"
    final = folder / f"step-{epoch * 10:08d}"
    part = final.with_suffix(".part")
    part.mkdir(parents=True)
    (part / "state.json").write_text(json.dumps({"epoch": epoch}))
    part.replace(final)
    for old in folder.iterdir():
        if old != final:
            (old / "state.json").unlink()
            old.rmdir()
    return f"checkpoints/{final.name}"


def newest(job_dir: Path) -> int:
    """Return the epoch to resume from."""
    found = sorted((job_dir / "checkpoints").glob("step-????????"))
    return int(json.loads((found[-1] / "state.json").read_text())["epoch"]) if found else 0


def train(reporter: Reporter, plan: dict[str, Any], options: RunOptions) -> int:
    job_dir, done = reporter.job_dir, newest(reporter.job_dir)
    emit(reporter, fake_events.started(1), resumed_from_step=done * 10, pid=os.getpid())
    for epoch in range(done + 1, 0 if options.finish else plan.get("epochs", 3) + 1):
        time.sleep(plan.get("pause_s", 0.05))
        if _must_stop and not plan.get("ignores_stop"):
            kept = save(job_dir, 0) if epoch == 1 else f"checkpoints/step-{(epoch - 1) * 10:08d}"
            emit(reporter, fake_events.stopped(1, epoch), step=(epoch - 1) * 10, checkpoint=kept)
            return EXIT_STOPPED
        if plan.get("dies_at") == epoch and plan.get("in_attempt") in {None, options.attempt}:
            os.kill(os.getpid(), signal.SIGKILL)
        (job_dir / "charts").mkdir(exist_ok=True)
        (job_dir / "charts" / f"{epoch}.png").write_text(f"chart of epoch {epoch}")
        save(job_dir, epoch)
        sys.stderr.write(f"attempt {options.attempt} printed this in epoch {epoch}\n")
        emit(reporter, fake_events.epoch_ended(1, epoch), chart=f"charts/{epoch}.png")
    (job_dir / "output").mkdir(exist_ok=True)
    (job_dir / "output" / "comparison.png").write_text(os.environ.get(DATASETS_VARIABLE, ""))
    emit(reporter, fake_events.finished(1), comparison="output/comparison.png")
    return EXIT_FINISHED


def wait(how: str) -> RunOptions:
    """Wait for a job as the real trainer does."""
    os.write(1, READY)
    line = sys.stdin.buffer.readline()
    if how == "ignores":
        signal.pause()
    if how == "drops dead" or not line:
        sys.exit(0)
    options = RunOptions.model_validate_json(line)
    os.write(1, TAKEN)
    log = os.open(options.job_dir / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    return options


def sample(options: RunOptions, plan: dict[str, Any]) -> int:
    """Do sampling jobs that draw nothing, by the loop of the real trainer."""

    def draw(own: RunOptions, kept: object) -> int:
        with Reporter(own.job_dir, attempt=own.attempt) as reporter:
            sys.stderr.write(f"job {own.job_id} was drawn by {os.getpid()}\n")
            time.sleep(plan.get("draw_s", 0.0))
            reporter.emit(SamplingFinished, images=0, sheets=(), seconds=0.0)
        return EXIT_FINISHED

    job_processes.run_job = draw  # type: ignore[assignment]
    refuses = plan.get("refuses_job")

    def fail(input_fd: int, within_s: float | None) -> bytes:
        is_at_end = not os.read(input_fd, 1)
        if refuses == "ignores" and not is_at_end:
            signal.pause()
        sys.exit(0)

    if refuses:
        job_processes._read_line = fail
    channel = os.dup(0)
    return job_processes.sample_jobs(options, channel, channel)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    commands = parser.add_subparsers(dest="name", required=True)
    commands.add_parser("wait")
    RunOptions.add_arguments(commands.add_parser("run"))
    add_sample(commands.add_parser("sample"))
    arguments = parser.parse_args(argv)
    plan = json.loads(arguments.plan.read_text())
    if arguments.name == "sample":
        return sample(options_of(arguments), plan)
    is_waiting = arguments.name == "wait"
    options = wait(plan.get("wait", "")) if is_waiting else RunOptions.from_arguments(arguments)
    signal.signal(signal.SIGTERM, _request_stop)
    try:
        with Reporter(options.job_dir, attempt=options.attempt) as reporter:
            return train(reporter, plan, options)
    except JobFolderBusyError:
        return EXIT_BUSY
    except FencedError:
        return EXIT_FENCED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
