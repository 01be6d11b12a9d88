"""A trainer that starts within 30 ms and trains nothing, for tests that start hundreds; the standard library only.

python -S -E tests/e2e/quick_trainer.py EVENTS.json run JOB_DIR --attempt=N [--finish]

EVENTS.json holds one event of each kind, which it says with its own numbers. The job's name says how it goes:
`plain`, `long`, `dies` (the first start, by SIGKILL), `fails` (the first start), `waits` (until it is told to stop),
`deaf` (as `waits`, and hears no SIGTERM), `hangs` (the first start: its main thread for ever, while its heart beats),
`garbles` (rubbish between its events).
It holds the job folder's lock, as the real one does, and one lock for each slot that it was given: two trainers on a
slot, or in a folder, leave a line in `clashes`.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO

EPOCHS = 3
#: No UTF-8, no JSON, no event, an event of another version, and more than a line of anything should be.
GARBAGE = b"\xff\xfe\x00\n{]\n[1]\n" + b'{"type": "epoch_ended", "seq": 1}\n' + b"x" * 3_000_000 + b"\n"
EXIT_FINISHED, EXIT_FAILED, EXIT_STOPPED, EXIT_FOLDER_HELD, EXIT_FENCED = 0, 1, 3, 6, 7


class Trainer:
    def __init__(self, events: Path, job_dir: Path, options: list[str]) -> None:
        self.events = json.loads(events.read_text())
        self.job_dir = job_dir
        self.attempt = next((int(each.partition("=")[2]) for each in options if each.startswith("--attempt=")), 0)
        self.is_finishing = "--finish" in options
        self.is_told_to_stop = False
        self.pause_s = float(os.environ.get("QUICK_EPOCH_S", "0.03"))
        signal.signal(signal.SIGTERM, self.tell)
        self.name = json.loads((job_dir / "spec.json").read_text())["name"]

    def tell(self, *_: object) -> None:
        self.is_told_to_stop = True

    def run(self) -> int:
        self.folder_lock = (self.job_dir / "lock").open("w")
        if not try_lock(self.folder_lock):
            return EXIT_FOLDER_HELD
        if self.is_fenced():
            return EXIT_FENCED
        self.hold_slots()
        part = self.job_dir / "process.json.part"
        part.write_text(json.dumps(identity()))
        part.replace(self.job_dir / "process.json")
        path = self.job_dir / "events.jsonl"
        # A line that was being written when its process died is no line.
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        said = [json.loads(line) for line in whole.splitlines()]
        self.file = path.open("r+b" if path.exists() else "wb")
        self.file.truncate(len(whole) + 1 if whole else 0)
        self.file.seek(0, os.SEEK_END)
        self.seq = said[-1]["seq"] if said else 0
        kept = max((each["epoch"] for each in said if each["type"] == "epoch_ended"), default=0)
        starts = sum(each["type"] == "started" for each in said)
        return self.train(self.name, kept, starts)

    def train(self, name: str, kept: int, starts: int) -> int:
        self.say("started")
        if name == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        epochs = {"long": 8, "waits": 1000, "deaf": 1000}.get(name, EPOCHS)
        for epoch in range(kept + 1, 0 if self.is_finishing else epochs + 1):
            time.sleep(self.pause_s)
            (self.job_dir / "heartbeat").touch()
            if self.is_fenced():
                return EXIT_FENCED
            self.say("step_done", epoch=epoch)
            if name == "garbles":
                self.file.write(GARBAGE)
            if name == "dies" and epoch == 2 and starts == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "hangs" and epoch == 2 and starts == 0:
                self.hang()
            if name == "fails" and epoch == 2 and starts == 0:
                self.say("failed")
                return EXIT_FAILED
            if self.is_told_to_stop:
                self.say("stopped", epoch=epoch, checkpoint=f"checkpoints/e{epoch - 1}" if epoch > 1 else None)
                return EXIT_STOPPED
            self.say("epoch_ended", epoch=epoch)
        self.say("finished")
        return EXIT_FINISHED

    def hang(self) -> None:
        threading.Thread(target=self.beat_for_ever, daemon=True).start()
        lock = threading.Lock()
        with lock:
            lock.acquire()

    def beat_for_ever(self) -> None:
        while True:
            time.sleep(0.02)
            (self.job_dir / "heartbeat").touch()

    def say(self, kind: str, **values: object) -> None:
        self.seq += 1
        event = self.events[kind] | {"seq": self.seq, "time": time.time(), "attempt": self.attempt} | values
        self.file.write(json.dumps(event).encode() + b"\n")
        self.file.flush()

    def is_fenced(self) -> bool:
        try:
            valid = json.loads((self.job_dir / "attempt.json").read_bytes())["attempt"]
        except FileNotFoundError:
            return False
        return bool(0 < self.attempt != valid)

    def hold_slots(self) -> None:
        root = self.job_dir.parents[1]
        self.slot_locks = []
        for device in filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")):
            lock = (root / f"slot-{device}").open("w")
            if not try_lock(lock):
                with (root / "clashes").open("a") as file:
                    file.write(f"{device}: #{self.job_dir.name}, attempt {self.attempt}\n")
            self.slot_locks.append(lock)


def try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def identity() -> dict[str, object]:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": os.getpid(), "start_time": int(fields[19]), "boot_id": boot_id}


if __name__ == "__main__":
    sys.exit(Trainer(Path(sys.argv[1]), Path(sys.argv[3]), sys.argv[4:]).run())
