"""A trainer with the whole command line that trains nothing: real files, simple images, a pace set by FAKE_STEP_S.

python tests/bot/cogs/simple_trainer.py prepare SOURCE --out DATASET_DIR [--edits FILE] [--earlier DATASET_DIR]
python tests/bot/cogs/simple_trainer.py caption DATASET_DIR --model MODEL --edits FILE
python tests/bot/cogs/simple_trainer.py devices
python tests/bot/cogs/simple_trainer.py study JOB_DIR
python tests/bot/cogs/simple_trainer.py run JOB_DIR [--finish]
python tests/bot/cogs/simple_trainer.py sample JOB_DIR
python tests/bot/cogs/simple_trainer.py adapter FILE
python tests/bot/cogs/simple_trainer.py memory JOB_DIR --keep FOLDER
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image as PillowImage
from PIL import ImageDraw

if sys.argv[1:] == ["devices"]:
    # No GPUs. Each bot asks at its start, and the imports below take half a second.
    sys.stdout.write("{}\n")
    sys.exit()
sys.path.insert(0, str(Path(__file__).parents[3]))

from trainer.exchange.dataset_dir import read_edits, read_report, write_edits, write_progress
from trainer.exchange.job_dir import read_sampling, read_spec, sample_folder, write_spec
from trainer.exchange.memory_predictions import keep_prediction
from trainer.exchange.process import PROCESS_FILE, identify
from trainer.exchange.study_dir import read_study_request
from trainer.protocol import events
from trainer.protocol.edits import Edits
from trainer.protocol.hub import Published
from trainer.protocol.progress import PreparePhase, PrepareProgress
from trainer.protocol.report import Counts, DatasetReport, Finding, FindingKind, Image, Split
from trainer.protocol.spec import Spec
from trainer.protocol.study import ChildGoal, ChildState, KfoldRequest, StudyRow, StudyStep

STEPS = 4
BEST = 3


def main(arguments: list[str]) -> int:
    match arguments:
        case ["devices"]:
            sys.stdout.write("{}\n")
            return 0
        case ["prepare", source, "--out", out, *rest]:
            options = dict(zip(rest[::2], rest[1::2], strict=True))
            return prepare(Path(source), Path(out), **{name.strip("-"): Path(path) for name, path in options.items()})
        case ["caption", *rest] if "--download-only" in rest:
            return 0
        case ["caption", dataset_dir, "--model", model, "--edits", edits, *_progress]:
            return caption(Path(dataset_dir), model, Path(edits))
        case [("study" | "sample" | "adapter") as name, path, *_rest]:
            return {"study": study, "sample": sample, "adapter": check_adapter}[name](Path(path))
        case [("compare-jobs" | "fetch-dataset" | "extract-rows"), *_rest]:
            # The real one: it reads what this trainer, or a hub, writes.
            from trainer.__main__ import main as real_main

            return real_main(arguments)
        case ["memory", job_dir, "--keep", folder]:
            return predict_memory(Path(job_dir), Path(folder))
        case ["publish", _job_dir, "--repository", repository]:
            is_allowed = os.environ["HF_TOKEN"] == "hf_secret"
            published = Published(url=f"https://huggingface.co/{repository}", is_private=True)
            sys.stdout.write(f"{published.model_dump_json()}\n")
            return 0 if is_allowed else refuse("Hugging Face does not accept the token.")
        case ["run", job_dir, *rest]:
            return Run(Path(job_dir), is_finishing="--finish" in rest, chosen=chosen_epoch(rest)).run()
    return events.EXIT_REFUSED


def predict_memory(job_dir: Path, folder: Path) -> int:
    """Predict 9 GiB once the test lets it: it makes the file `go` in the folder of predictions."""
    ends_at = time.monotonic() + 60
    while not (folder / "go").exists() and time.monotonic() < ends_at:
        time.sleep(0.02)
    keep_prediction(folder, read_spec(job_dir), 9 * 2**30)
    return 0


def sample(job_dir: Path) -> int:
    return Sampling(job_dir).draw_all()


def check_adapter(file: Path) -> int:
    """A LoRA begins with `lora`."""
    return 0 if file.read_bytes().startswith(b"lora") else refuse("it is no LoRA.")


def chosen_epoch(options: list[str]) -> int:
    return next((int(each.removeprefix("--epoch=")) for each in options if each.startswith("--epoch=")), 0)


def refuse(message: str) -> int:
    sys.stderr.write(message + "\n")
    return events.EXIT_REFUSED


def prepare(
    source: Path,
    out: Path,
    *,
    edits: Path | None = None,
    earlier: Path | None = None,
    limit: Path | None = None,
    progress: Path | None = None,
) -> int:
    """The name of an image decides its findings: `corrupt`, `blur` (kept), `twin` (dropped)."""
    if progress is not None:
        write_progress(progress, PrepareProgress(phase=PreparePhase.READING, done=2, total=6))
    time.sleep(float(os.environ.get("FAKE_PREPARE_S", "0")))
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for file in files:
        if file.suffix == ".zip" and not zipfile.is_zipfile(file):
            return refuse(f"{file.name} is not a zip archive. Nothing was queued.")
    read = dict(_read(files))
    if not any(name.endswith((".png", ".jpg")) for name in read):
        return refuse(f"{files[0].name} contains no images. Nothing was queued.")
    out.mkdir(parents=True)
    decided = Edits() if edits is None else read_edits(edits)
    splits_before = {} if earlier is None else {each.pixels_sha256: each.split for each in read_report(earlier).images}
    report = _report(out, read, decided, splits_before)
    (out / "report.json").write_text(report.model_dump_json())
    (out / "report.html").write_text(f"<p>{report.counts.kept} images</p>")
    return 0


def _read(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                yield from ((f"{file.name}!{name}", archive.read(name)) for name in archive.namelist())
        else:
            yield file.name, file.read_bytes()


def _report(
    out: Path, read: dict[str, bytes], edits: Edits, splits_before: dict[str | None, Split | None]
) -> DatasetReport:
    splits = itertools.chain([Split.VALIDATION, Split.TEST], itertools.repeat(Split.TRAIN))
    images = []
    for number, name in enumerate((name for name in read if name.endswith((".png", ".jpg"))), 1):
        image = _image(out, number, name, read, edits)
        if image.status == "kept":
            assigned = splits_before.get(image.pixels_sha256) or next(splits)
            image = replace(image, split=assigned, path=image.thumbnail)
        images.append(image)
    kept = [image for image in images if image.status == "kept"]
    split = {each: sum(image.split is each for image in kept) for each in Split}
    counts = Counts(
        images=len(images), kept=len(kept), dropped=len(images) - len(kept), refused=0, train=split[Split.TRAIN],
        validation=split[Split.VALIDATION], test=split[Split.TEST], captioned=sum(bool(each.caption) for each in kept),
        automatic=sum(each.is_caption_automatic for each in kept),
    )  # fmt: skip
    sheets = tuple(f"sheets/{title}.png" for title in ("kept", "dropped"))
    for sheet in sheets:
        draw(out / sheet, sheet)
    digest = hashlib.sha256(edits.model_dump_json().encode() + repr(sorted(read)).encode()).hexdigest()
    return DatasetReport(
        digest=digest, input_digest=digest, counts=counts, summary="Images.", images=tuple(images),
        sheets=sheets,
        pages=("report.md", "report.html"),
    )  # fmt: skip


def _image(out: Path, number: int, name: str, read: dict[str, bytes], edits: Edits) -> Image:
    if "corrupt" in name:
        return Image(source=name, status="dropped", findings=(corrupt(),))
    sha256 = hashlib.sha256(read[name]).hexdigest()
    decision = edits.decisions.get(sha256)
    is_dropped = decision == "drop" or ("twin" in name and decision != "keep")
    found = [finding(kind, is_dropped=is_dropped) for word, kind in FOUND.items() if word in name]
    thumbnail = f"thumbnails/{number}.png"
    draw(out / thumbnail, name)
    handed_in = read.get(name.rpartition(".")[0] + ".txt", b"" if "bare" in name else b"a fox").decode()
    automatic = "" if handed_in else edits.automatic.get(sha256, "")
    caption = edits.captions.get(sha256, handed_in or automatic)
    if edits.rules.trigger and edits.rules.trigger not in caption:
        caption = f"{edits.rules.trigger}, {caption}"
    return Image(
        source=name, status="dropped" if is_dropped else "kept", findings=tuple(found), caption=caption,
        is_caption_automatic=bool(automatic) and sha256 not in edits.captions and sha256 not in edits.reviewed,
        caption_source=edits.captioner if automatic else None, pixels_sha256=sha256, thumbnail=thumbnail,
        width=256, height=128, decision=decision,
    )  # fmt: skip


def caption(dataset_dir: Path, model: str, path: Path) -> int:
    """Write captions for images that have none."""
    bare = [image for image in read_report(dataset_dir).images if image.pixels_sha256 and not image.caption]
    automatic = {image.pixels_sha256: "an animal" for image in bare}
    write_edits(path, read_edits(path).model_copy(update={"automatic": automatic, "captioner": model}))
    return 0


FOUND = {"blur": FindingKind.BLUR, "twin": FindingKind.NEAR_DUPLICATE}


def finding(kind: FindingKind, *, is_dropped: bool) -> Finding:
    action: Literal["dropped", "kept"] = "dropped" if is_dropped else "kept"
    return Finding(kind=kind, action=action, message="the edges are wide", measure=1.5, threshold=1.0)


def corrupt() -> Finding:
    return Finding(kind=FindingKind.CORRUPT, action="dropped", message="it cannot be decoded")


def study(folder: Path) -> int:
    """Train each fold on the whole dataset; the study is over when all folds have finished."""
    request = read_study_request(folder)
    if not isinstance(request, KfoldRequest):
        return refuse("method.rank is no setting of this stand-in.")
    goals, rows = [], []
    for name in [f"fold {number}" for number in range(1, request.folds + 1)]:
        path = folder / name / "events.jsonl"
        emitted = [events.parse_event(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        is_over = any(isinstance(event, events.Finished) for event in emitted)
        if not is_over:
            write_spec(folder / name, read_spec(folder))
            goals.append(ChildGoal(name=name, folder=name))
        state = ChildState.FINISHED if is_over else ChildState.OPEN
        rows.append(StudyRow(name=name, folder=name, state=state, epochs=1, ratio=0.9))
    if not goals:
        draw(folder / "samples" / "runs.png", "fold 1 | base")
    step = StudyStep(
        samples=None if goals else "samples/runs.png", samples_alt="" if goals else "Fold 1 and the base model.",
        samples_notes=() if goals else ("Each row has the same prompt.",),
        goals=tuple(goals), is_over=not goals, table=tuple(rows), page="study.html",
        report="study.md", verdict=() if goals else ("All folds agree.",), result=None if goals else "fold 1",
    )  # fmt: skip
    sys.stdout.write(step.model_dump_json() + "\n")
    return 0


class _Run:
    """One run in a job folder: its events, and a stop on SIGTERM."""

    def __init__(self, job_dir: Path) -> None:
        self.job_dir = job_dir
        self.must_stop = False
        self.path = job_dir / "events.jsonl"
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        self.earlier = [events.parse_event(line) for line in lines]
        self.seq = self.earlier[-1].seq if self.earlier else 0
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: Any) -> None:
        self.must_stop = True

    def emit(self, event: Callable[..., Any], /, **values: Any) -> None:
        self.seq += 1
        with self.path.open("a") as file:
            file.write(event(seq=self.seq, time=time.time(), **values).model_dump_json() + "\n")

    def identify(self) -> None:
        identity = identify(os.getpid())
        assert identity is not None
        (self.job_dir / PROCESS_FILE).write_text(identity.model_dump_json())


class Run(_Run):
    """One run of a job folder; it continues after the last epoch in its event file."""

    def __init__(self, job_dir: Path, *, is_finishing: bool, chosen: int = 0) -> None:
        super().__init__(job_dir)
        self.spec: Spec = read_spec(job_dir)
        self.is_finishing = is_finishing
        self.chosen = chosen
        self.step_s = float(os.environ.get("FAKE_STEP_S", "0.02"))
        #: `oom:2`: it fails in epoch 2; `die:2`: its process dies there, the first time; `die_always:2`.
        self.failure, _, self.failure_epoch = os.environ.get("FAKE_TROUBLE", "").partition(":")

    def run(self) -> int:
        self.identify()
        epochs = self.spec.training.epochs
        last = sum(isinstance(event, events.EpochEnded) for event in self.earlier)
        self.emit(
            events.Started, pid=os.getpid(), device="cpu", precision="fp32", epochs=epochs, total_steps=epochs * STEPS,
            train_images=4, validation_images=1, test_images=1, resolution=64, trainable_parameters=1000,
            resumed_from_step=last * STEPS,
        )  # fmt: skip
        if not any(isinstance(event, events.BaseValidated) for event in self.earlier):
            self.emit(events.PhaseBegan, phase=events.Phase.SAMPLING)
            self.sample(0)
            self.emit(events.BaseValidated, validation=loss(1.0))
        if not self.is_finishing:
            self.emit(events.PhaseBegan, phase=events.Phase.TRAINING)
            while last < epochs:
                last += 1
                if (status := self.epoch(last)) is not None:
                    return status
                if self.spec.early_stopping.enabled and last >= BEST + self.spec.early_stopping.patience:
                    self.stop_early(last)
                    break
        return self.finish(last)

    def epoch(self, epoch: int) -> int | None:
        for step in range(1, STEPS + 1):
            time.sleep(self.step_s)
            if self.failure and epoch == int(self.failure_epoch) and (status := self.fail()) is not None:
                return status
            if self.must_stop:
                kept = f"checkpoints/e{epoch - 1}" if epoch > 1 else None
                self.emit(events.Stopped, epoch=epoch, step=(epoch - 1) * STEPS + step, checkpoint=kept)
                return events.EXIT_STOPPED
            self.emit(
                events.StepDone, step=(epoch - 1) * STEPS + step, epoch=epoch, loss=0.1 * 0.97**epoch,
                learning_rate=1e-4, steps_per_s=1 / self.step_s, peak_memory_bytes=2**30,
                eta_s=self.step_s * STEPS * (self.spec.training.epochs - epoch),
                elapsed_s=self.step_s * ((epoch - 1) * STEPS + step),
            )  # fmt: skip
        self.sample(epoch)
        best = min(epoch, BEST)
        self.draw("charts/loss.png", f"loss {epoch}")
        (self.job_dir / "checkpoints" / f"e{epoch}").mkdir(parents=True)
        state = self.job_dir / "checkpoints" / f"step-{epoch * STEPS:08}" / "state.json"
        state.parent.mkdir(exist_ok=True)
        state.write_text(json.dumps({"position": 0, "curve": [{"epoch": epoch}]}))
        self.emit(
            events.EpochEnded, epoch=epoch, step=epoch * STEPS, train_loss=0.1 * 0.97**epoch, learning_rate=1e-4,
            validation=loss(ratio(epoch)), seconds=self.step_s * STEPS, is_best=epoch == best, best_epoch=best,
            chart="charts/loss.png",
        )  # fmt: skip
        return None

    def fail(self) -> int | None:
        kinds = {
            "oom": events.FailureKind.OUT_OF_MEMORY,
            "diverged": events.FailureKind.DIVERGED,
            "missing_model": events.FailureKind.MISSING_MODEL,
        }
        if kind := kinds.get(self.failure):
            self.emit(events.Failed, kind=kind, message="It ran out of memory at step 9.", hint="Take rank 8.")
            return events.EXIT_FAILED
        mark = self.job_dir / "died"
        if self.failure == "die_always" or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    def stop_early(self, epoch: int) -> None:
        self.emit(
            events.StoppedEarly, epoch=epoch, best_epoch=BEST, best_ratio=ratio(BEST), seconds_saved=10,
            epochs_saved=self.spec.training.epochs - epoch, reason="The validation loss has not fallen since epoch 3.",
        )  # fmt: skip

    def finish(self, last: int) -> int:
        self.emit(events.PhaseBegan, phase=events.Phase.TESTING)
        self.emit(events.Tested, test=loss(0.9), base_loss=0.1)
        self.emit(events.PhaseBegan, phase=events.Phase.EXPORTING)
        for kind in ("diffusers", "kohya"):
            path = self.job_dir / "output" / f"{kind}.safetensors"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"weights" * 100)
            known = {"path": f"output/{kind}.safetensors", "bytes": 700, "sha256": "0" * 64, "max_difference": 0.0}
            self.emit(events.Exported, format=kind, **known)
        self.draw("output/comparison.png", "base | best")
        best = self.chosen or min(last, BEST) or 1
        self.emit(
            events.Finished, epochs=last, best_epoch=best, stopped_early=last < self.spec.training.epochs,
            base_loss=0.1, best_loss=0.1 * ratio(best), best_ratio=ratio(best), seconds=3,
            comparison="output/comparison.png", comparison_alt="Base on the left, best on the right.",
        )  # fmt: skip
        return events.EXIT_FINISHED

    def sample(self, epoch: int) -> None:
        prompts = self.spec.samples.prompts or ("a fox",)
        folder = sample_folder(Path(), epoch)
        samples = [
            events.Sample(path=str(folder / f"{n}.png"), prompt=prompt, seed=n) for n, prompt in enumerate(prompts)
        ]
        for each in samples:
            self.draw(each.path, f"epoch {epoch}")
        self.emit(events.Sampled, epoch=epoch, samples=samples, sheet=samples[0].path)

    def draw(self, path: str, text: str) -> None:
        draw(self.job_dir / path, text, 40 + 7 * self.seq % 200)


class Sampling(_Run):
    """One run of a sampling's folder; it draws what is missing, at the pace of FAKE_DRAW_S."""

    def __init__(self, job_dir: Path) -> None:
        super().__init__(job_dir)
        self.spec = read_sampling(job_dir)

    def draw_all(self) -> int:
        self.identify()
        missing = [cell for cell in self.spec.cells if not (self.job_dir / cell.path).exists()]
        number = self.spec.images
        self.emit(
            events.SamplingStarted, device="cpu", precision="fp32", width=64, height=64, images=number,
            already_drawn=number - len(missing),
        )  # fmt: skip
        if os.environ.get("FAKE_TROUBLE") == "no_drawing":
            self.emit(events.Failed, kind="missing_model", message="The base model is gone.", hint="Add it again.")
            return events.EXIT_FAILED
        for cell in missing:
            time.sleep(float(os.environ.get("FAKE_DRAW_S", "0.01")))
            if self.must_stop:
                self.emit(events.Stopped, epoch=0, step=0, checkpoint=None)
                return events.EXIT_STOPPED
            draw(self.job_dir / cell.path, f"{cell.index}")
            self.emit(events.ImageDrawn, cell=cell.index, path=cell.path)
        draw(self.job_dir / "grid-1.png", "grid")
        sheet = events.SamplingSheet(path="grid-1.png", alt="All images.")
        self.emit(events.SamplingFinished, images=number, sheets=(sheet,), seconds=1.0)
        return events.EXIT_FINISHED


def draw(path: Path, text: str, red: int = 40) -> None:
    canvas = PillowImage.new("RGB", (256, 128), (red, 90, 120))
    ImageDraw.Draw(canvas).text((20, 50), text, fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def loss(relative: float) -> events.ValidationLoss:
    band = events.BandLoss(first_timestep=0, last_timestep=999, loss=0.1 * relative, ratio=relative)
    return events.ValidationLoss(loss=0.1 * relative, ratio=relative, bands=(band,))


def ratio(epoch: int) -> float:
    """Falls until the best epoch, then rises."""
    return 1 - 0.04 * epoch if epoch <= BEST else 0.88 + 0.01 * (epoch - BEST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
