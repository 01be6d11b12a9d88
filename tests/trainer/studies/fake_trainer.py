"""A trainer that trains nothing: a real process with the real lock and events, and losses by a formula.

    python fake_trainer.py run JOB_DIR

`behavior.json` in the folder of the study tells how each child behaves: `{"fold 1": {"epoch_s": 0.1, "dies_at": 2}}`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import JobFolderBusyError
from trainer.exchange.job_dir import read_spec
from trainer.protocol.events import (
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    BandLoss,
    BaseValidated,
    EpochEnded,
    Failed,
    FailureKind,
    Finished,
    PhaseBegan,
    Started,
    Stopped,
    Tested,
    ValidationLoss,
)
from trainer.protocol.spec import Spec
from trainer.reporter import Reporter
from trainer.training.run import StopRequest

IMAGES, STEPS = 12, 1000


def ratio_of(spec: Spec, epoch: int) -> float:
    """Fall fastest at a rate of 3e-4, and rise again from an epoch that depends on the fold."""
    miss = abs(math.log10(spec.training.learning_rate / 3e-4))
    turn = 4 + spec.split.fold
    learned: float = 0.4 * (1 - math.exp(-epoch / 2)) / (1 + 2 * miss)
    unlearned: float = 0.02 * max(0, epoch - turn) ** 1.5
    return 1 - learned + unlearned


def validation(spec: Spec, epoch: int) -> ValidationLoss:
    ratio = ratio_of(spec, epoch) if epoch else 1.0
    band = BandLoss(first_timestep=0, last_timestep=STEPS - 1, loss=0.2 * ratio, ratio=ratio)
    return ValidationLoss(loss=0.2 * ratio, ratio=ratio, bands=(band,), ratio_low=ratio - 0.02, ratio_high=ratio + 0.02)


def keep_losses(job_dir: Path, spec: Spec, epoch: int) -> None:
    """Write a loss for each image, scattered around the mean in its own way."""
    folder = job_dir / "validation"
    folder.mkdir(exist_ok=True)
    triples = [{"image": i, "pixels_sha256": f"{i}", "timestep": 500, "noise_seed": i} for i in range(IMAGES)]
    (folder / "validation-triples.json").write_text(json.dumps(triples), encoding="utf-8")
    base = [0.1 + 0.02 * i for i in range(IMAGES)]
    scatter = 1e9 * spec.training.learning_rate
    losses = [
        loss * (ratio_of(spec, epoch) if epoch else 1.0) * (1 + 0.02 * math.sin(scatter + 7 * i) * bool(epoch))
        for i, loss in enumerate(base)
    ]
    name, content = (f"epoch-{epoch:03d}", {"validation": losses}) if epoch else ("validation-base", losses)
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def run(job_dir: Path, behavior: dict[str, Any]) -> int:
    with StopRequest() as stop, Reporter(job_dir) as reporter:
        spec = read_spec(job_dir)
        done = [event for event in reporter.history if isinstance(event, EpochEnded)]
        reporter.emit(PhaseBegan, phase="loading")
        (job_dir / "device.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""), encoding="utf-8")
        time.sleep(behavior.get("start_s", 0))
        if behavior.get("fails"):
            reporter.emit(Failed, kind=FailureKind.OUT_OF_MEMORY, message="The device is full.", hint="Take less.")
            return EXIT_FAILED
        begin(reporter, spec, len(done))
        for epoch in range(len(done) + 1, spec.training.epochs + 1):
            deadline = time.monotonic() + behavior.get("epoch_s", 0.02)
            while time.monotonic() < deadline:
                time.sleep(0.005)
                if stop.is_set and not behavior.get("is_deaf"):
                    reporter.emit(Stopped, epoch=epoch, step=10 * (epoch - 1), checkpoint="checkpoints/x")
                    return EXIT_STOPPED
            if behavior.get("dies_at") == epoch and not (job_dir / "died").exists():
                if not behavior.get("dies_always"):
                    (job_dir / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            end_epoch(reporter, spec, epoch)
        finish(reporter, spec)
    return EXIT_FINISHED


def begin(reporter: Reporter, spec: Spec, done: int) -> None:
    reporter.emit(
        Started,
        pid=os.getpid(),
        device="fake",
        precision="fp32",
        epochs=spec.training.epochs,
        total_steps=spec.training.epochs * 10,
        train_images=10,
        validation_images=IMAGES,
        test_images=2,
        resolution=64,
        trainable_parameters=1000,
        resumed_from_step=10 * done,
    )
    reporter.emit(BaseValidated, validation=validation(spec, 0))
    keep_losses(reporter.job_dir, spec, 0)


def finish(reporter: Reporter, spec: Spec) -> None:
    if spec.validation.test:
        reporter.emit(Tested, test=validation(spec, spec.training.epochs), base_loss=0.2)
    best = best_epoch(spec, spec.training.epochs)
    reporter.emit(
        Finished,
        epochs=spec.training.epochs,
        best_epoch=best,
        stopped_early=False,
        base_loss=0.2,
        best_loss=0.2 * ratio_of(spec, best),
        best_ratio=ratio_of(spec, best),
        seconds=1.0,
        comparison="output/comparison.png",
        comparison_alt="",
    )


def best_epoch(spec: Spec, until: int) -> int:
    return min(range(1, until + 1), key=lambda epoch: ratio_of(spec, epoch))


def end_epoch(reporter: Reporter, spec: Spec, epoch: int) -> None:
    keep_losses(reporter.job_dir, spec, epoch)
    best = best_epoch(spec, epoch)
    reporter.emit(
        EpochEnded,
        epoch=epoch,
        step=10 * epoch,
        train_loss=0.2,
        validation=validation(spec, epoch),
        learning_rate=spec.training.learning_rate,
        seconds=1.0,
        is_best=best == epoch,
        best_epoch=best,
        chart="charts/loss.png",
    )


def main(arguments: Sequence[str]) -> int:
    job_dir = Path(arguments[1])
    file = next((parent / "behavior.json" for parent in job_dir.parents if (parent / "behavior.json").exists()), None)
    behaviors = json.loads(file.read_text(encoding="utf-8")) if file else {}
    try:
        return run(job_dir, {**behaviors.get("*", {}), **behaviors.get(job_dir.name, {})})
    except JobFolderBusyError:
        return EXIT_BUSY


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
