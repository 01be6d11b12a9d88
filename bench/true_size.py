"""Measures memory and speed on models of true size with random weights, one process per contender.

    python -m bench.true_size sd1|sd2|sdxl|sd3 [--method lora] [--resolution 512] [--steps 2] [--only ours,bare,loading]

The model is one fp16 `.safetensors` in the original layout (SD 3: a folder in diffusers layout), as model sites offer
it; the first call writes it. `loading` is diffusers' own `from_single_file` (or `from_pretrained`) in its default
dtype; `bare` takes steps as diffusers' LoRA examples do: parts loaded by `from_pretrained`, frozen weights cast to
bf16, encoders kept. `anonymous` is the memory that a process holds itself, at its peak; `resident` counts the pages of
memory-mapped files too, which the system takes back when it needs them. Of each step, the median: seconds on the clock,
of CPU in the process and in the kernel, and pages that the system cleared for it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from trainer.models.pipelines import pipeline_class
from trainer.models.random_models import write_random_file, write_random_folder
from trainer.models.released_configs import PIPELINES

_KINDS = {"sd1": "v1", "sd2": "v2", "sdxl": "xl_base", "sd3": "sd3"}
_IMAGES = 6
_SAMPLING_S = 0.02
_CONTENDERS = ("loading", "bare", "ours")
#: Peaks of memory by the name of a phase, GB.
Phases: TypeAlias = dict[str, dict[str, float]]


# -- the models -------------------------------------------------------------------------------------------------------


def true_size_model(family: str) -> Path:
    """Return the model of a family; the first call writes it (2 to 7 GB)."""
    folder = Path(tempfile.gettempdir()) / "darkroom-bench" / f"true-{family}-2"
    folder.mkdir(parents=True, exist_ok=True)
    if family == "sd3":
        return as_folder(family, folder)
    path = folder / "model.safetensors"
    return path if path.exists() else write_random_file(_KINDS[family], path)


def as_folder(family: str, path: Path) -> Path:
    """Return the model as a folder in diffusers layout; the first call writes it."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "folder").exists():
        write_random_folder(_KINDS[family], folder / "part").rename(folder / "folder")
    return folder / "folder"


# -- measuring --------------------------------------------------------------------------------------------------------


@contextmanager
def measured_memory(phases: Phases, name: str) -> Iterator[None]:
    """Add the peaks of anonymous and of resident memory while the body runs to `phases`, in GB."""
    peaks, stopped = {"anonymous": 0.0, "resident": 0.0}, threading.Event()

    def sample() -> None:
        while True:
            for key, field in (("anonymous", "RssAnon"), ("resident", "VmRSS")):
                peaks[key] = max(peaks[key], _status(field))
            if stopped.wait(_SAMPLING_S):
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        phases[name] = {key: round(peak, 2) for key, peak in peaks.items()}


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e9


class StepTimes:
    """The time and the work of the system that each step takes."""

    _NAMES = ("step_s", "user_s", "system_s", "cleared_pages")

    def __init__(self) -> None:
        self._rows: list[tuple[float, ...]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure one step: the body."""
        before = self._now()
        yield
        self._rows.append(tuple(after - each for after, each in zip(self._now(), before, strict=True)))

    def medians(self) -> dict[str, float]:
        """Return the medians of all steps but the first one."""
        columns = zip(*(self._rows[1:] or self._rows), strict=True)
        return {name: round(statistics.median(column), 2) for name, column in zip(self._NAMES, columns, strict=False)}

    def _now(self) -> tuple[float, ...]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), used.ru_utime, used.ru_stime, used.ru_minflt


def _print_result(phases: Phases, steps: StepTimes) -> None:
    result = {
        "anonymous_gb": max(each["anonymous"] for each in phases.values()),
        "resident_gb": max(each["resident"] for each in phases.values()),
        **steps.medians(),
        "phases_gb": phases,
    }
    sys.stdout.write(json.dumps(result) + "\n")


# -- contenders -------------------------------------------------------------------------------------------------------


def _loading(family: str, options: argparse.Namespace) -> None:
    """Load everything as diffusers' documentation says, without a dtype."""
    path, phases = true_size_model(family), Phases()
    cls = pipeline_class(PIPELINES[_KINDS[family]])
    with measured_memory(phases, "load"):
        if path.is_dir():
            pipeline = cls.from_pretrained(path, use_safetensors=True, **_no_t5(family))
        else:
            config = str(as_folder(family, path))
            pipeline = cls.from_single_file(str(path), config=config)
    del pipeline
    _print_result(phases, StepTimes())


def _no_t5(family: str) -> dict[str, Any]:
    return {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}


def _bare(family: str, options: argparse.Namespace) -> None:
    """Take steps as diffusers' LoRA examples do, on random latents and captions."""
    from peft import LoraConfig

    path, phases, steps = true_size_model(family), Phases(), StepTimes()
    folder = path if path.is_dir() else as_folder(family, path)
    kind = _KINDS[family]
    with measured_memory(phases, "load"):
        cls = pipeline_class(PIPELINES[kind])
        pipeline = cls.from_pretrained(folder, use_safetensors=True, **_no_t5(family))
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).to(torch.bfloat16)
    denoiser = pipeline.transformer if family == "sd3" else pipeline.unet
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    denoiser.add_adapter(LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=targets))
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    if options.checkpointing:
        denoiser.enable_gradient_checkpointing()
    denoiser.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    inputs = _random_inputs(family, denoiser, options.resolution // 8)
    with measured_memory(phases, "steps"):
        for _step in range(options.steps):
            with steps.measured():
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    predicted = denoiser(**inputs, return_dict=False)[0]
                torch.autograd.backward(predicted.float().square().mean())
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
    _print_result(phases, steps)


def _random_inputs(family: str, denoiser: Any, side: int) -> dict[str, Any]:
    latents = torch.randn(1, denoiser.config.in_channels, side, side)
    if family == "sd3":
        captions, pooled = torch.randn(1, 333, 4096), torch.randn(1, 2048)
        return {
            "hidden_states": latents,
            "timestep": torch.tensor([500.0]),
            "encoder_hidden_states": captions,
            "pooled_projections": pooled,
        }
    captions = torch.randn(1, 77, denoiser.config.cross_attention_dim)
    inputs = {"sample": latents, "timestep": torch.tensor([500]), "encoder_hidden_states": captions}
    if family == "sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.ones(1, 6)}  # type: ignore[assignment]
    return inputs


def _ours(family: str, options: argparse.Namespace) -> None:
    """Run a job to the end of its steps, then its test of an exported file."""
    from trainer.commands.terminal import quieten_libraries
    from trainer.reporter import Reporter
    from trainer.training.run import StopRequest, choose_openmp_spin

    logging.disable(logging.WARNING)
    quieten_libraries()
    choose_openmp_spin()
    with tempfile.TemporaryDirectory() as folder:
        job_dir = _make_job(family, options, Path(folder))
        with StopRequest() as stop, Reporter(job_dir) as reporter:
            _train(job_dir, reporter, stop, options)


def _train(job_dir: Path, reporter: Any, stop: Any, options: argparse.Namespace) -> None:
    from trainer.protocol.report import Split
    from trainer.protocol.run_options import RunOptions
    from trainer.training.recipe import prepare_session
    from trainer.training.step import take_step

    phases, steps = Phases(), StepTimes()
    with measured_memory(phases, "load, encode, place"):
        session = prepare_session(reporter, stop, RunOptions(job_dir=job_dir))
    session.task.train_mode(True)
    with measured_memory(phases, "steps"):
        for number in range(options.steps):
            with steps.measured():
                take_step(session, session.epoch_views(1)[number % 2], number)
    if options.finish:
        examples = session.examples[Split.TRAIN]
        with measured_memory(phases, "export"):
            files = session.task.trained.export(job_dir / "output", "bench", {})
        gc.collect()
        with measured_memory(phases, "verify"):
            session.task.verify(files, examples, lambda *_: None)
    _print_result(phases, steps)


def _make_job(family: str, options: argparse.Namespace, folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    from trainer.dataset.preparing.prepare import prepare
    from trainer.exchange.job_dir import write_spec
    from trainer.protocol.presets import spec_from_preset

    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for number in range(_IMAGES):
        pixels = noise.integers(0, 256, (options.resolution // 8, options.resolution // 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((options.resolution, options.resolution), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(f"pattern {number}")
    prepare([folder / "images"], folder / "dataset", resolutions=(options.resolution,))
    changes = {
        "training": {
            "resolution": options.resolution,
            "batch_size": 1,
            "learning_rate": 1e-4,
            "precision": options.precision,
            "gradient_checkpointing": options.checkpointing,
            "optimizer": "adamw" if options.method == "lora" else "adafactor",
            "fused_backward": options.fused,
            "bf16_weights": options.fused,
            # The average of `full` needs fp32.
            **({"ema_decay": None} if options.fused else {}),
        },
        "base": {"quantization": options.quantization},
        "method": {"rank": 8, "alpha": 8, "targets": "attention"} if options.method == "lora" else {},
    }
    dataset, base = str(folder / "dataset"), str(true_size_model(family))
    write_spec(folder / "job", spec_from_preset(options.method, dataset=dataset, base=base, changes=changes))
    return folder / "job"


def main() -> None:
    options = _options()
    if options.child:
        {"loading": _loading, "bare": _bare, "ours": _ours}[options.child](options.family, options)
        return
    true_size_model(options.family)
    for contender in options.only.split(","):
        command = [sys.executable, "-m", "bench.true_size", *sys.argv[1:], "--child", contender]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        last = finished.stdout.strip().splitlines()[-1:] or finished.stderr.strip().splitlines()[-1:]
        sys.stdout.write(f"{contender:8} {''.join(last)}\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=_KINDS)
    parser.add_argument("--method", default="lora", choices=("lora", "full"))
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", default="bf16", help="auto, bf16 or fp32 (ours)")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--quantization", choices=("int8", "fp8", "nf4"), help="of the frozen base (ours)")
    parser.add_argument("--fused", action="store_true", help="fused backward pass and weights in bf16 (ours, full)")
    parser.add_argument("--finish", action="store_true", help="export and load the files back (ours)")
    parser.add_argument("--only", default=",".join(_CONTENDERS))
    parser.add_argument("--child", choices=_CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
