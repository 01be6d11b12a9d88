"""Compares the trainer with a bare loop: images per second, CPU seconds per image, time to the first step, memory.

    python -m bench.train [--base tiny|small|FOLDER] [--rounds 8] [--steps 5] [--beside 1] [--diffusers CHECKOUT]

The bare loop (`bench/bare.py`) has the same UNet with the same LoRA, and one batch of latents and captions in memory.
The trainer takes the steps of its recipe and writes events; validation and samples are off. Each loop is a process of
its own, with the threads and the environment that it would have alone, and waits asleep while another one runs. Rounds
alternate, so that a machine whose speed drifts slows all loops alike; read the ratios (median over the rounds). An A/A
pair (the bare loop a second time) shows their noise. Each start-up is a separate process; the kinds take turns.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import bare
from bench.small_base import small_base
from recipes.tiny.demo_dataset import momo_files
from trainer.dataset.preparing.prepare import prepare
from trainer.exchange.job_dir import read_spec, write_spec
from trainer.models.base import tiny_folder
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split

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


class Contender:
    """A training loop in a process of its own, and the time of each of its rounds."""

    def __init__(self, kind: str, setting: Setting) -> None:
        job = [str(setting.folder / "job"), str(setting.batch_size)]
        argv = [sys.executable, "-m", "bench.loop", kind, str(setting.base), str(setting.batch), *job]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []
        self.cpu_s: list[float] = []
        #: What it says about itself, once it is warm.
        self.description: str = self._answer()["description"]

    def round(self, steps: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.cpu_s.append(answer["cpu_s"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def main() -> None:
    options = _options()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, _busy_processes(options.beside):
        setting = _setting(options.base, Path(folder))
        precision = _compare_loops(setting, rounds=options.rounds, steps=options.steps)
        _compare_starts(setting, precision, rounds=options.starts)
        if options.diffusers:
            _time_example(setting, options.diffusers, options.diffusers_python, steps=options.steps)


@contextmanager
def _busy_processes(number: int) -> Iterator[None]:
    """Keep other processes busy meanwhile, each on one core."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny", help="tiny (64 px, batch 4), small (256 px, batch 2) or a folder")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="in each round of each loop")
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="busy processes beside the loops")
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
    for path, content in list(momo_files().items())[:_FILES]:
        (images / Path(path).name).write_bytes(content)
    prepare([images], folder / "dataset", resolutions=(resolution,))
    setting = Setting(base=find(), resolution=resolution, batch_size=batch_size, folder=folder)
    setting.make_job("job")
    return setting


def _compare_loops(setting: Setting, *, rounds: int, steps: int) -> str:
    """Print the table of the loops; return the precision that the trainer has chosen."""
    # The first one writes the batch of the others.
    kinds = {"ours": "ours", "bare fp32": "fp32", "bare fp32 again": "fp32", "bare bf16": "bf16"}
    loops = {name: Contender(kind, setting) for name, kind in kinds.items()}
    ours, load = loops["ours"].description, os.getloadavg()[0]
    _print(f"{ours}, load {load:.1f}")
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
    for loop in loops.values():
        loop.close()
    return ours.split()[0]


def _ratios(baseline: Sequence[float], measured: Sequence[float]) -> str:
    ratios = [one / other for one, other in zip(baseline, measured, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f}–{max(ratios):.2f})"


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
