"""Our step loop beside a bare one (same model, latents and captions in memory: forward, backward, optimizer, no more).

    python -m bench.train [--base tiny] [--rounds 8] [--steps 20]

Rounds alternate in one run, so that a machine whose speed drifts slows both alike; what counts is the ratio.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from recipes.tiny.demo_dataset import write_demo_dataset
from trainer.dataset.prepare import prepare
from trainer.models.lora import trainable_parameters
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split
from trainer.reporter import Reporter
from trainer.tasks.examples import View
from trainer.training.progress import EpochProgress
from trainer.training.recipe import prepare_session, take_step
from trainer.training.session import Session
from trainer.training.stop import StopRequest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        job_dir = _make_job(Path(folder), options.base)
        with Reporter(job_dir) as reporter:
            began = time.monotonic()
            session = prepare_session(reporter, stop, is_finishing=False)
            sys.stdout.write(f"ready to train after {time.monotonic() - began:.1f} s (imports not counted)\n")
            _compare(session, rounds=options.rounds, steps=options.steps)


def _make_job(folder: Path, base: str) -> Path:
    write_demo_dataset(folder / "demo.zip")
    prepare([folder / "demo.zip"], folder / "dataset", resolution=64)
    changes = {"training": {"batch_size": 4, "repeats": 50, "epochs": 1000}}
    spec_from_preset("lora", dataset=str(folder / "dataset"), base=base, changes=changes).write(folder / "job")
    return folder / "job"


def _compare(session: Session, *, rounds: int, steps: int) -> None:
    """Print pictures per second of both, and the ratio round by round."""
    session.task.train_mode(True)
    for loop in (_ours, _bare):
        loop(session, 3)
    ours, bare = [], []
    for number in range(rounds):
        for loop, times in ((_ours, ours), (_bare, bare)) if number % 2 else ((_bare, bare), (_ours, ours)):
            times.append(loop(session, steps))
    ratios = [theirs / mine for mine, theirs in zip(ours, bare, strict=True)]
    pictures = steps * session.spec.training.batch_size
    mine_s, bare_s = statistics.median(ours), statistics.median(bare)
    sys.stdout.write(
        f"ours {pictures / mine_s:.2f} pictures/s, bare {pictures / bare_s:.2f}\n"
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} – {max(ratios):.3f}; {rounds} rounds of {steps})\n"
    )


def _ours(session: Session, steps: int) -> float:
    """Seconds for `steps` steps of the recipe, events written."""
    order = session.views_of(1)
    progress = EpochProgress(session)
    began = time.monotonic()
    for number, step in enumerate(order[:steps]):
        session.stop.check()
        progress.add(take_step(session, step, number), pictures=sum(map(len, step)))
    progress.flush()
    _wait(session.task.device)
    return time.monotonic() - began


def _bare(session: Session, steps: int) -> float:
    """Seconds for `steps` bare steps on one batch that is in memory."""
    task, device = session.task, session.task.device
    examples = session.examples[Split.TRAIN]
    size = max(set(examples.sizes), key=examples.sizes.count)
    indices = [index for index, each in enumerate(examples.sizes) if each == size][: session.spec.training.batch_size]
    latents = examples.latents([View(index=index) for index in indices]).to(device)
    captions = task.embed([examples.captions[index] for index in indices])
    parameters = list(trainable_parameters(task.base.unet))
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    began = time.monotonic()
    for _ in range(steps):
        noise = torch.randn_like(latents)
        timesteps = torch.randint(task.schedule_steps, (len(indices),), device=device)
        with task.accelerator.autocast():
            noisy = task.base.noise_schedule.add_noise(latents, noise, timesteps)
            predicted = task.unet(noisy, timesteps, captions, return_dict=False)[0]
        torch.nn.functional.mse_loss(predicted.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    _wait(device)
    return time.monotonic() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
