"""A trainer that trains nothing and speaks the protocol: `python fake_trainer.py PLAN run JOB_DIR [--finish]`.

PLAN is JSON: {"epochs": 3, "pause_s": 0.05, "starts": ["die:2", "silent", …]}; `starts` says how the n-th start goes.
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
from trainer.protocol.events import EXIT_FINISHED, EXIT_STOPPED, EpochEnded, Event, Started, parse_event
from trainer.protocol.process import PROCESS_FILE, identify

EXIT_FOLDER_HELD = 6


class Job:
    """A job folder that this process holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        self.said.append(event)
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(event.model_dump_json() + "\n")

    @property
    def seq(self) -> int:
        return len(self.said) + 1


def main() -> int:
    plan = json.loads(Path(sys.argv[1]).read_text())
    job = Job(Path(sys.argv[3]))

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
