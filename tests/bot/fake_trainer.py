"""A trainer that trains nothing and speaks the protocol: `python fake_trainer.py PLAN run JOB_DIR [--finish]`, or
`… PLAN wait`.

PLAN is JSON: {"epochs": 3, "pause_s": 0.05, "starts": ["die:2", "silent", …]}; `starts` says how the n-th start goes.
`wait` says how waiting goes: "dies" before it is ready, "loads" for ever, "ignores" orders, "drops dead" at one.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from tests.bot import fakes
from trainer.protocol.attempt import read_attempt
from trainer.protocol.events import EXIT_FENCED, EXIT_FINISHED, EXIT_STOPPED, EpochEnded, Event, Started, parse_event
from trainer.protocol.order import LOG_FILE, READY, TAKEN, Order
from trainer.protocol.process import PROCESS_FILE, identify

EXIT_FOLDER_HELD = 6


class Job:
    """A job folder that this process holds."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.folder, self.attempt = folder, attempt
        self.lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(EXIT_FOLDER_HELD)
        identity = identify(os.getpid())
        assert identity is not None
        part = folder / (PROCESS_FILE + ".part")
        part.write_text(identity.model_dump_json())
        part.replace(folder / PROCESS_FILE)
        path = folder / "events.jsonl"
        self.said: list[Event] = [parse_event(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        self.is_told_to_stop = False

    def say(self, event: Event) -> None:
        if self.attempt not in {0, read_attempt(self.folder)}:
            sys.exit(EXIT_FENCED)
        event = event.model_copy(update={"attempt": self.attempt})
        self.said.append(event)
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(event.model_dump_json() + "\n")

    @property
    def seq(self) -> int:
        return len(self.said) + 1


def wait(how: str) -> Order:
    """The order that comes, as the real one waits for it."""
    if how == "dies":
        sys.exit(1)
    if how == "loads":
        signal.pause()
    os.write(1, READY)
    line = sys.stdin.buffer.readline()
    if how == "ignores":
        signal.pause()
    if how == "drops dead" or not line:
        sys.exit(0)
    order = Order.model_validate_json(line)
    os.write(1, TAKEN)
    log = os.open(order.job_dir / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, goal in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, goal)
    return order


def main() -> int:
    plan = json.loads(Path(sys.argv[1]).read_text())
    if sys.argv[2] == "wait":
        order = wait(plan.get("wait", ""))
        finish = ["--finish"] if order.finish else []
        sys.argv[2:] = ["run", str(order.job_dir), f"--attempt={order.attempt}", *finish]
    attempts = [int(each.removeprefix("--attempt=")) for each in sys.argv if each.startswith("--attempt=")]
    job = Job(Path(sys.argv[3]), *attempts)

    def told(number: int, frame: object) -> None:
        if not plan.get("ignores_stop"):
            job.is_told_to_stop = True

    signal.signal(signal.SIGTERM, told)
    start = sum(isinstance(event, Started) for event in job.said)
    fate = dict(enumerate(plan.get("starts", []))).get(start, "")
    if fate == "silent":
        return 1
    job.say(fakes.started(job.seq))
    if "--finish" not in sys.argv:
        ended = [event.epoch for event in job.said if isinstance(event, EpochEnded)]
        for epoch in range(max(ended, default=0) + 1, plan["epochs"] + 1):
            time.sleep(plan.get("pause_s", 0.05))
            job.say(fakes.step_done(job.seq, epoch))
            if fate == f"die:{epoch}":
                os.kill(os.getpid(), signal.SIGKILL)
            if job.is_told_to_stop:
                job.say(fakes.stopped(job.seq, epoch))
                return EXIT_STOPPED
            job.say(fakes.epoch_ended(job.seq, epoch))
    job.say(fakes.finished(job.seq))
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
