"""A trainer that trains nothing, with the voice of a real one: `python stand_in.py PLAN run JOB_DIR --attempt=N`.

PLAN is JSON: {"epochs": 3, "pause_s": 0.05, "dies_at": 2, "in_attempt": 1, "ignores_stop": false}. It goes on from its
newest checkpoint, draws a chart for each epoch, and obeys SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from tests.bot import fakes
from trainer.errors import FencedError, JobFolderBusyError
from trainer.protocol.events import EXIT_BUSY, EXIT_FENCED, EXIT_FINISHED, EXIT_STOPPED, Event
from trainer.reporter import Reporter

_is_told = False


def _tell(number: int, frame: FrameType | None) -> None:
    global _is_told
    _is_told = True


def say(reporter: Reporter, event: Event, **fields: object) -> None:
    """Say a made-up event under the next number."""
    content = event.model_dump(exclude={"seq", "time", "attempt", "type"}) | fields
    reporter.say(type(event), **content)


def save(job_dir: Path, epoch: int) -> str:
    """A checkpoint, whole or not at all, and nothing but the latest kept."""
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
    """The epoch to go on from."""
    found = sorted((job_dir / "checkpoints").glob("step-????????"))
    return int(json.loads((found[-1] / "state.json").read_text())["epoch"]) if found else 0


def train(reporter: Reporter, plan: dict[str, object], options: argparse.Namespace) -> int:
    job_dir, done = reporter.job_dir, newest(reporter.job_dir)
    say(reporter, fakes.started(1), resumed_from_step=done * 10, pid=os.getpid())
    for epoch in range(done + 1, 0 if options.finish else int(str(plan["epochs"])) + 1):
        time.sleep(float(str(plan.get("pause_s", 0.05))))
        if _is_told and not plan.get("ignores_stop"):
            say(reporter, fakes.stopped(1, epoch), step=(epoch - 1) * 10, checkpoint=save_again(job_dir, epoch - 1))
            return EXIT_STOPPED
        if plan.get("dies_at") == epoch and plan.get("in_attempt") in {None, options.attempt}:
            os.kill(os.getpid(), signal.SIGKILL)
        (job_dir / "charts").mkdir(exist_ok=True)
        (job_dir / "charts" / f"{epoch}.png").write_text(f"chart of epoch {epoch}")
        save(job_dir, epoch)
        sys.stderr.write(f"attempt {options.attempt} printed this in epoch {epoch}\n")
        say(reporter, fakes.epoch_ended(1, epoch), chart=f"charts/{epoch}.png")
    (job_dir / "output").mkdir(exist_ok=True)
    (job_dir / "output" / "comparison.png").write_text(os.environ.get("DARKROOM_DATASETS", ""))
    say(reporter, fakes.finished(1), comparison="output/comparison.png")
    return EXIT_FINISHED


def save_again(job_dir: Path, epoch: int) -> str:
    return f"checkpoints/step-{epoch * 10:08d}" if newest(job_dir) == epoch else save(job_dir, epoch)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    parser.add_argument("run")
    parser.add_argument("job_dir", type=Path)
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--finish", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _tell)
    try:
        with Reporter(options.job_dir, attempt=options.attempt) as reporter:
            return train(reporter, json.loads(options.plan.read_text()), options)
    except JobFolderBusyError:
        return EXIT_BUSY
    except FencedError:
        return EXIT_FENCED


if __name__ == "__main__":
    sys.exit(main())
