"""A trainer that starts within 30 ms and trains nothing, for tests that start hundreds; standard library only.

python -S -E tests/e2e/quick_trainer.py EVENTS.json run|sample JOB_DIR --attempt=N [--finish]

EVENTS.json holds one event of each kind; the trainer writes them with its own numbers. The job's name selects its run:
`plain`, `long`, `pauses` (waits in its fourth epoch until it has been stopped once), `dies` (the first attempt, by
SIGKILL), `fails` (the first attempt), `waits` (until it is asked to stop), `hangs` (the first attempt: its main thread
sleeps forever, its heartbeats continue), `garbles` (garbage between its events). A sampling draws three images; its
first attempt dies after the first.
It holds the job folder's lock, as the real one does, and a lock for each of its slots: two trainers on a slot, or in a
folder, leave a line in `clashes`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    # `typing` and `threading` would take a fifth of the start.
    from typing import IO

EPOCHS = 3
IMAGES = 3
#: No UTF-8, no JSON, no event, an event of another version, and more than a line of anything should be.
GARBAGE = b"\xff\xfe\x00\n{]\n[1]\n" + b'{"type": "epoch_ended", "seq": 1}\n' + b"x" * 3_000_000 + b"\n"
EXIT_FINISHED, EXIT_FAILED, EXIT_STOPPED, EXIT_FOLDER_HELD, EXIT_FENCED = 0, 1, 3, 6, 7


class Trainer:
    def __init__(self, events: Path, command: str, job_dir: Path, options: list[str]) -> None:
        self.events = json.loads(events.read_text())
        self.job_dir = job_dir
        self.attempt = next((int(each.partition("=")[2]) for each in options if each.startswith("--attempt=")), 0)
        self.is_finishing = "--finish" in options
        self.must_stop = False
        self.pause_s = float(os.environ.get("QUICK_EPOCH_S", "0.03"))
        signal.signal(signal.SIGTERM, self.tell)
        self.is_sampling = command == "sample"
        spec = json.loads((job_dir / ("sampling.json" if self.is_sampling else "spec.json")).read_text())
        self.name = spec.get("name", "")

    def tell(self, *_: object) -> None:
        self.must_stop = True

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
        written = [json.loads(line) for line in whole.splitlines()]
        self.file = path.open("r+b" if path.exists() else "wb")
        self.file.truncate(len(whole) + 1 if whole else 0)
        self.file.seek(0, os.SEEK_END)
        self.seq = written[-1]["seq"] if written else 0
        kept = max((each["epoch"] for each in written if each["type"] == "epoch_ended"), default=0)
        starts = sum(each["type"].endswith("started") for each in written)
        if self.is_sampling:
            return self.draw([each["cell"] for each in written if each["type"] == "image_drawn"], starts)
        has_stopped = any(each["type"] == "stopped" for each in written)
        return self.train(self.name, kept, starts, has_stopped=has_stopped)

    def train(self, name: str, kept: int, starts: int, *, has_stopped: bool) -> int:
        self.emit("started")
        epochs = {"long": 8, "pauses": 8, "waits": 1000}.get(name, EPOCHS)
        for epoch in range(kept + 1, 0 if self.is_finishing else epochs + 1):
            time.sleep(self.pause_s)
            (self.job_dir / "heartbeat").touch()
            if self.is_fenced():
                return EXIT_FENCED
            self.emit("step_done", epoch=epoch)
            while name == "pauses" and epoch == 4 and not (has_stopped or self.must_stop):
                time.sleep(self.pause_s)
                (self.job_dir / "heartbeat").touch()
            if name == "garbles":
                self.file.write(GARBAGE)
            if name == "dies" and epoch == 2 and starts == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "hangs" and epoch == 2 and starts == 0:
                self.hang()
            if name == "fails" and epoch == 2 and starts == 0:
                self.emit("failed")
                return EXIT_FAILED
            if self.must_stop:
                self.emit("stopped", epoch=epoch, checkpoint=f"checkpoints/e{epoch - 1}" if epoch > 1 else None)
                return EXIT_STOPPED
            self.emit("epoch_ended", epoch=epoch)
        self.emit("finished")
        return EXIT_FINISHED

    def draw(self, drawn: list[int], starts: int) -> int:
        self.emit("sampling_started", images=IMAGES, already_drawn=len(drawn))
        for cell in range(IMAGES):
            time.sleep(self.pause_s)
            (self.job_dir / "heartbeat").touch()
            if self.is_fenced():
                return EXIT_FENCED
            if self.must_stop:
                self.emit("stopped", epoch=0, step=cell, checkpoint=None)
                return EXIT_STOPPED
            if cell not in drawn:
                self.emit("image_drawn", cell=cell)
            if starts == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        self.emit("sampling_finished", images=IMAGES)
        return EXIT_FINISHED

    def hang(self) -> None:
        import threading

        threading.Thread(target=self.send_heartbeats, daemon=True).start()
        lock = threading.Lock()
        with lock:
            lock.acquire()

    def send_heartbeats(self) -> None:
        while True:
            time.sleep(0.02)
            (self.job_dir / "heartbeat").touch()

    def emit(self, kind: str, **values: object) -> None:
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
    sys.exit(Trainer(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]).run())
