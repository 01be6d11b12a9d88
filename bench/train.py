"""Compares the trainer with a bare loop: images per second, CPU seconds per image, time to the first step, memory.

    python -m bench.train [--base tiny|small|FOLDER] [--rounds 8] [--steps 5] [--diffusers CHECKOUT]

The bare loop (`bench/bare.py`) has the same UNet with the same LoRA, and one batch of latents and captions in memory.
The trainer takes the steps of its recipe and writes events; validation and samples are off. Rounds alternate in one
run, so that a machine whose speed drifts slows all loops alike; read the ratios (median over the rounds). An A/A pair
(the bare loop a second time) shows their noise. Each start-up is a separate process; the kinds take turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file

from bench import bare
from bench.bare import BareLoop
from bench.small_base import small_base
from recipes.tiny.demo_dataset import demo_files
from trainer.commands.terminal import quieten_libraries
from trainer.dataset.preparing.prepare import prepare
from trainer.exchange.job_dir import read_spec, write_spec
from trainer.models.base import tiny_folder
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split
from trainer.protocol.run_options import RunOptions
from trainer.reporter import Reporter
from trainer.tasks.diffusion import DiffusionTask
from trainer.tasks.examples import ImageView
from trainer.training.recipe import prepare_session
from trainer.training.run import StopRequest, limit_openmp_spin
from trainer.training.session import Session
from trainer.training.step import EpochProgress, take_step

#: Number of files (images and captions) of the demo dataset to train on.
_FILES = 25


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The base and the job that are timed."""

    base: Path
    resolution: int
    batch_size: int
    folder: Path

    def make_job(self, name: str) -> Path:
        changes = {
            "training": {
                "resolution": self.resolution,
                "batch_size": self.batch_size,
                "repeats": 100,
                "learning_rate": 1e-6,
                "epochs": 1000,
            },
            "method": {"rank": bare.RANK, "alpha": bare.ALPHA, "targets": "attention"},
        }
        job_dir = self.folder / name
        spec = spec_from_preset("lora", dataset=str(self.folder / "dataset"), base=str(self.base), changes=changes)
        write_spec(job_dir, spec)
        return job_dir

    @property
    def batch(self) -> Path:
        """File with the latents and captions of one batch."""
        return self.folder / "batch.safetensors"


@dataclass(kw_only=True)
class Timed:
    """A training loop, and the time of each of its rounds."""

    run: Callable[[int], None]
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def round(self, steps: int) -> None:
        started, cpu_started = time.perf_counter(), time.process_time()
        self.run(steps)
        self.seconds.append(time.perf_counter() - started)
        self.cpu_s.append(time.process_time() - cpu_started)


def main() -> None:
    options = _options()
    logging.disable(logging.WARNING)
    quieten_libraries()
    limit_openmp_spin()
    with tempfile.TemporaryDirectory() as folder:
        setting = _setting(options.base, Path(folder))
        job_dir = setting.make_job("job")
        with StopRequest() as stop, Reporter(job_dir) as reporter:
            session = prepare_session(reporter, stop, RunOptions(job_dir=job_dir))
            _save_batch(session, setting)
            _print(f"{session.task}, {session.memory_plan}, load {os.getloadavg()[0]:.1f}")
            _compare_loops(session, setting, rounds=options.rounds, steps=options.steps)
        precision = session.memory_plan.precision.value
        del session
        _compare_starts(setting, precision, rounds=options.starts)
        if options.diffusers:
            _time_example(setting, options.diffusers, options.diffusers_python, steps=options.steps)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny", help="tiny (64 px, batch 4), small (256 px, batch 2) or a folder")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="in each round of each loop")
    parser.add_argument("--starts", type=int, default=3, help="start-ups of each kind")
    parser.add_argument("--diffusers", type=Path, metavar="CHECKOUT", help="time its LoRA example too")
    parser.add_argument("--diffusers-python", default=sys.executable, help="has what that example imports")
    return parser.parse_args()


def _setting(base: str, folder: Path) -> Setting:
    known = {"tiny": (tiny_folder, 64, 4), "small": (small_base, 256, 2)}
    find, resolution, batch_size = known.get(base, (lambda: Path(base), 256, 1))
    # Few files: encoding them is not what is timed.
    images = folder / "images"
    images.mkdir()
    for path, content in list(demo_files().items())[:_FILES]:
        (images / Path(path).name).write_bytes(content)
    prepare([images], folder / "dataset", resolutions=(resolution,))
    return Setting(base=find(), resolution=resolution, batch_size=batch_size, folder=folder)


def _save_batch(session: Session, setting: Setting) -> None:
    """Save one batch of one size for the bare loops."""
    examples = session.examples[Split.TRAIN]
    size = max(set(examples.sizes), key=examples.sizes.count)
    indices = [place for place, each in enumerate(examples.sizes) if each == size][: setting.batch_size]
    assert isinstance(session.task, DiffusionTask)
    captions = session.task.captions.embed([examples.captions[place] for place in indices])["caption_BTD"]
    save_file(
        {"latents": examples.inputs([ImageView(index=place) for place in indices]), "captions": captions}, setting.batch
    )


def _compare_loops(session: Session, setting: Setting, *, rounds: int, steps: int) -> None:
    bare_fp32, bare_bf16 = (BareLoop(setting.base, setting.batch, precision) for precision in ("fp32", "bf16"))
    loops = {
        "ours": Timed(run=_ours(session)),
        "bare fp32": Timed(run=bare_fp32.steps),
        "bare fp32 again": Timed(run=bare_fp32.steps),
        "bare bf16": Timed(run=bare_bf16.steps),
    }
    for loop in loops.values():
        loop.run(2)
    names = list(loops)
    for number in range(rounds):
        # Rotate the order, so that no loop always follows the same one.
        for name in names[number % 4 :] + names[: number % 4]:
            loops[name].round(steps)
    images = steps * setting.batch_size
    _print(f"\n{'loop':18}{'images/s':>12}{'CPU s/image':>15}   beside bare fp32, bare bf16; in CPU-seconds")
    for name, loop in loops.items():
        speed, cpu_s = images / statistics.median(loop.seconds), statistics.median(loop.cpu_s) / images
        others = [loops["bare fp32"], loops["bare bf16"]]
        ratios = [_ratios(other.seconds, loop.seconds) for other in others]
        # Other processes on the machine disturb these less.
        ratios += [_ratios(other.cpu_s, loop.cpu_s) for other in others]
        _print(f"{name:18}{speed:12.2f}{cpu_s:15.3f}   {'  '.join(ratios)}")
    _print(f"({rounds} rounds of {steps} steps of {setting.batch_size} images; median, lowest and highest ratio)")


def _ratios(baseline: Sequence[float], measured: Sequence[float]) -> str:
    ratios = [one / other for one, other in zip(baseline, measured, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _ours(session: Session) -> Callable[[int], None]:
    """Return a loop over the steps of the recipe, like `_train_epoch`."""
    session.task.train_mode(True)
    order = session.epoch_views(1)
    progress = EpochProgress(session)
    number = 0

    def run(steps: int) -> None:
        nonlocal number
        for _ in range(steps):
            step = order[number % len(order)]
            session.stop.check()
            progress.add(take_step(session, step, number), images=len(step))
            number += 1

    return run


def _compare_starts(setting: Setting, precision: str, *, rounds: int) -> None:
    """Time processes up to their first step; the trainer reads latents and captions from the cache."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for number in range(rounds):
        job_dir = setting.make_job(f"start-{number}")
        # The first run of a job also tests precision and micro-batch size.
        for name, arguments in {
            "bare": ("bench.bare", str(setting.base), str(setting.batch), precision),
            "ours, first run": ("bench.first_step", str(job_dir), "cold"),
            "ours, second run": ("bench.first_step", str(job_dir), "cold"),
            "ours, warm": ("bench.first_step", str(setting.make_job(f"warm-{number}")), "warm"),
        }.items():
            argv = [sys.executable, "-m", *arguments, str(time.time())]
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
            found.setdefault(name, []).append(json.loads(done.stdout))
    _print(f"\n{'to the first step':18}{'seconds':>12}{'CPU s':>12}{'peak MiB':>12}")
    for name, runs in found.items():
        row = [statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_s", "memory_mib")]
        _print(f"{name:18}{row[0]:12.2f}{row[1]:12.2f}{row[2]:12.0f}")
    _print(f"({rounds} of each; `warm` counts from the end of its imports; its CPU seconds include them)")


def _time_example(setting: Setting, checkout: Path, python: str, *, steps: int) -> None:
    """Time the LoRA example of diffusers; a run of one step is subtracted to exclude the start-up."""
    images = setting.folder / "example"
    _write_folder(setting, images)
    seconds = []
    for number in (1, 1 + steps):
        started = time.perf_counter()
        argv = [
            python,
            str(checkout / "examples/text_to_image/train_text_to_image_lora.py"),
            f"--pretrained_model_name_or_path={setting.base}",
            f"--train_data_dir={images}",
            f"--output_dir={setting.folder / 'example-output'}",
            f"--resolution={setting.resolution}",
            f"--train_batch_size={setting.batch_size}",
            f"--rank={bare.RANK}",
            f"--max_train_steps={number}",
        ]
        subprocess.run(argv, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    speed = steps * setting.batch_size / (seconds[1] - seconds[0])
    _print(f"\ndiffusers' LoRA example: {speed:.2f} images/s, {seconds[0]:.1f} s for a run of one step")


def _write_folder(setting: Setting, folder: Path) -> None:
    """Write the dataset in the layout of `datasets`: images and metadata.jsonl."""
    spec = read_spec(setting.folder / "job")
    source = Path(spec.dataset)
    report = json.loads((source / "report.json").read_bytes())
    folder.mkdir()
    rows = []
    for image in report["images"]:
        if image["path"] and image["split"] == Split.TRAIN.value:
            name = Path(image["path"]).name
            (folder / name).write_bytes((source / image["path"]).read_bytes())
            rows.append(json.dumps({"file_name": name, "text": image["caption"]}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
