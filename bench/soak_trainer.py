"""A trainer that trains and draws nothing for 0.3 to 1 s, writes protocol events, and reports others on its slot.

python -m bench.soak_trainer run|sample JOB_DIR --attempt=N [--finish]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import signal
import sys
import time
from pathlib import Path

from trainer.exchange.attempt import HEARTBEAT_FILE, read_attempt
from trainer.exchange.process import PROCESS_FILE, identify
from trainer.protocol.events import (
    EXIT_FENCED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    BandLoss,
    EpochEnded,
    Event,
    Finished,
    ImageDrawn,
    SamplingFinished,
    SamplingSheet,
    SamplingStarted,
    Started,
    StepDone,
    Stopped,
    ValidationLoss,
    parse_event,
)

EVENTS_FILE = "events.jsonl"
#: In the data folder: one lock per slot, and a file with a line for each overlap of two trainers on a slot.
SLOTS_FOLDER, OVERLAPS_FILE = "slots", "overlaps"
_EXIT_FOLDER_HELD = 6
_LOSS = ValidationLoss(loss=0.1, ratio=0.9, bands=(BandLoss(first_timestep=0, last_timestep=999, loss=0.1, ratio=0.9),))


class Training:
    """One attempt of a job."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.folder, self.attempt = folder, attempt
        self.must_stop = False
        self._locks = [_lock(folder / "lock") or sys.exit(_EXIT_FOLDER_HELD)]
        self._hold_slot(folder.parents[1])
        path = folder / EVENTS_FILE
        self.events_written = [parse_event(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        identity = identify(os.getpid())
        assert identity is not None
        part = folder / (PROCESS_FILE + ".part")
        part.write_text(identity.model_dump_json())
        part.replace(folder / PROCESS_FILE)

    def _hold_slot(self, data_dir: Path) -> None:
        device = os.environ["CUDA_VISIBLE_DEVICES"]
        lock = _lock(data_dir / SLOTS_FOLDER / device)
        if lock is None:
            with (data_dir / OVERLAPS_FILE).open("a") as file:
                file.write(f"{device} {self.folder.name} {self.attempt} {os.getpid()}\n")
        else:
            self._locks.append(lock)

    def emit(self, event: Event) -> None:
        if self.attempt != read_attempt(self.folder):
            sys.exit(EXIT_FENCED)
        (self.folder / HEARTBEAT_FILE).touch()
        event = event.model_copy(
            update={"attempt": self.attempt, "seq": len(self.events_written) + 1, "time": time.time()}
        )
        self.events_written.append(event)
        # A single write: a killed process leaves a complete line or none.
        with (self.folder / EVENTS_FILE).open("ab", buffering=0) as file:
            file.write(event.model_dump_json().encode() + b"\n")

    def request_stop(self, number: int, frame: object) -> None:
        self.must_stop = True


def _lock(path: Path) -> int | None:
    """Lock a file until this process exits; return None if another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return descriptor


def train(training: Training, *, is_finishing: bool) -> int:
    """Run the remaining epochs; return the exit status."""
    chance = random.Random(training.folder.name)
    epochs = chance.randint(2, 4)
    pause_s = chance.uniform(0.3, 1.0) / epochs
    training.emit(_started(epochs))
    ended = [event.epoch for event in training.events_written if isinstance(event, EpochEnded)]
    for epoch in range(max(ended, default=0) + 1, 1 if is_finishing else epochs + 1):
        time.sleep(pause_s)
        training.emit(_step_done(epoch))
        if training.must_stop:
            checkpoint = "checkpoints/last" if epoch > 1 else None
            training.emit(Stopped(seq=1, time=0.0, epoch=epoch, step=epoch, checkpoint=checkpoint))
            return EXIT_STOPPED
        training.emit(_epoch_ended(epoch))
    training.emit(_finished(epochs))
    return EXIT_FINISHED


def draw(training: Training) -> int:
    """Draw the images that are missing; return the exit status."""
    chance = random.Random(training.folder.name)
    images = chance.randint(2, 6)
    pause_s = chance.uniform(0.3, 1.0) / images
    drawn = [event.cell for event in training.events_written if isinstance(event, ImageDrawn)]
    training.emit(
        SamplingStarted(
            seq=1, time=0.0, device="cpu", precision="fp32", width=64, height=64, images=images,
            already_drawn=len(drawn),
        )
    )  # fmt: skip
    for cell in range(len(drawn), images):
        time.sleep(pause_s)
        if training.must_stop:
            training.emit(Stopped(seq=1, time=0.0, epoch=0, step=cell, checkpoint=None))
            return EXIT_STOPPED
        training.emit(ImageDrawn(seq=1, time=0.0, cell=cell, path=f"samples/{cell:04d}.png"))
    sheet = SamplingSheet(path="samples/sheet-1.png", alt="")
    training.emit(SamplingFinished(seq=1, time=0.0, images=images, sheets=(sheet,), seconds=1.0))
    return EXIT_FINISHED


def _started(epochs: int) -> Event:
    return Started(
        seq=1, time=0.0, pid=os.getpid(), device="cpu", precision="fp32", epochs=epochs, total_steps=epochs,
        train_images=10, validation_images=2, test_images=2, resolution=64, trainable_parameters=1,
    )  # fmt: skip


def _step_done(epoch: int) -> Event:
    return StepDone(
        seq=1, time=0.0, step=epoch, epoch=epoch, loss=0.2, learning_rate=1e-4, steps_per_s=1.0, eta_s=None,
        peak_memory_bytes=0,
    )  # fmt: skip


def _epoch_ended(epoch: int) -> Event:
    return EpochEnded(
        seq=1, time=0.0, epoch=epoch, step=epoch, train_loss=0.2, validation=_LOSS, learning_rate=1e-4, seconds=0.1,
        is_best=True, best_epoch=epoch, chart="c.png",
    )  # fmt: skip


def _finished(epochs: int) -> Event:
    return Finished(
        seq=1, time=0.0, epochs=epochs, best_epoch=epochs, stopped_early=False, base_loss=0.2, best_loss=0.1,
        best_ratio=0.5, seconds=1.0, comparison="c.png", comparison_alt="",
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="A fake trainer.")
    parser.add_argument("command", choices=["run", "sample"])
    parser.add_argument("job_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--finish", action="store_true")
    options = parser.parse_args()
    training = Training(options.job_dir, options.attempt)
    signal.signal(signal.SIGTERM, training.request_stop)
    return draw(training) if options.command == "sample" else train(training, is_finishing=options.finish)


if __name__ == "__main__":
    sys.exit(main())
