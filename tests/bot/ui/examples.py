"""Jobs, events, datasets and their surroundings for the tests of messages, each changeable in one argument."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bot.datasets import Dataset
from bot.queue.domain.job import Job, State
from bot.queue.domain.job_progress import Progress
from bot.ui.job_context import JobContext
from trainer.protocol.edits import Edits
from trainer.protocol.events import (
    BandLoss,
    BaseValidated,
    EpochEnded,
    Exported,
    Finished,
    Phase,
    Sample,
    Sampled,
    StepDone,
    ValidationLoss,
)
from trainer.protocol.report import Counts, DatasetReport, Finding, FindingKind, Image, Split
from trainer.protocol.spec import Spec, make_spec

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OWNER = 555
#: Largest file that the server accepts.
LIMIT = 10 * 1024 * 1024


def validation(ratio: float = 1.0) -> ValidationLoss:
    return ValidationLoss(
        loss=0.1 * ratio,
        ratio=ratio,
        bands=(BandLoss(first_timestep=0, last_timestep=999, loss=0.1 * ratio, ratio=ratio),),
    )


def epoch_ended(epoch: int, ratio: float = 0.9, *, best_epoch: int | None = None, loss: float = 0.09) -> EpochEnded:
    return EpochEnded(
        seq=epoch,
        time=0,
        epoch=epoch,
        step=epoch * 10,
        train_loss=loss,
        validation=validation(ratio),
        learning_rate=1e-4,
        seconds=291,
        is_best=best_epoch in {None, epoch},
        best_epoch=best_epoch or epoch,
        chart="charts/loss.png",
    )


def step_done(step: int = 35, epoch: int = 4, **changes: Any) -> StepDone:
    known = {
        "seq": 1, "time": NOW.timestamp(), "step": step, "epoch": epoch, "loss": 0.0841, "learning_rate": 1e-4,
        "steps_per_s": 2.4, "eta_s": 600, "elapsed_s": 300, "peak_memory_bytes": 19 * 2**30,
    }  # fmt: skip
    return StepDone(**{**known, **changes})


def sampled(epoch: int, prompts: tuple[str, ...] = ("a fox",)) -> Sampled:
    samples = tuple(Sample(path=f"samples/{n}.png", prompt=prompt, seed=1234 + n) for n, prompt in enumerate(prompts))
    return Sampled(seq=1, time=0, epoch=epoch, samples=samples, sheet=f"samples/e{epoch}/sheet.png")


def progress(count: int = 3, total: int = 10, phase: Phase | None = Phase.TRAINING, **changes: Any) -> Progress:
    done = tuple(epoch_ended(n, 1 - n / (2 * total)) for n in range(1, count + 1))
    known = {
        "phase": phase,
        "total_steps": total * 10,
        "base": BaseValidated(seq=1, time=0, validation=validation()),
        "step": step_done(count * 10 + 5, count + 1),
        "epochs": done,
    }
    return Progress(**{**known, **changes})


def job(spec: Spec | None = None, **changes: Any) -> Job:
    spec = spec or make_spec({"name": "fox-lora", "dataset": "x", "training": {"epochs": 10}})
    known = {
        "id": 42, "guild_id": 1, "channel_id": 2, "owner_id": OWNER, "dataset_id": 1, "dataset_name": "fox.zip",
        "name": spec.name, "spec_json": spec.model_dump_json(), "state": State.RUNNING, "stop_intent": None,
        "stopped_by": None, "attempt": 1,
        "created_at": NOW, "started_at": NOW, "progress": progress(), "last_event_at": NOW,
    }  # fmt: skip
    return Job(**{**known, **changes})


def context(folder: Path, **changes: Any) -> JobContext:
    return JobContext(**{"job_dir": folder, "now": NOW, "file_limit": LIMIT, **changes})


def finished(**changes: object) -> Finished:
    known = {
        "seq": 9, "time": 0, "epochs": 7, "best_epoch": 5, "stopped_early": True, "base_loss": 0.1, "best_loss": 0.088,
        "best_ratio": 0.88, "seconds": 720, "comparison": "output/cmp.png", "comparison_alt": "base left, best right",
    }  # fmt: skip
    return Finished.model_validate({**known, **changes})


def exported(kind: str = "kohya", path: str = "output/a.safetensors", **changes: object) -> Exported:
    known = {
        "seq": 8, "time": 0, "format": kind, "path": path, "bytes": 100, "sha256": "0", "max_difference": 0.0,
        "readers": ["A1111", "Forge", "ComfyUI", "diffusers"], "modules": ["unet"],
    }  # fmt: skip
    return Exported.model_validate({**known, **changes})


def finding(kind: FindingKind = FindingKind.BLUR, action: Any = "kept", **changes: Any) -> Finding:
    return Finding(**{"kind": kind, "action": action, "message": "the edges are wide", **changes})


def image(number: int, *findings: Finding, **changes: Any) -> Image:
    known: dict[str, Any] = {
        "source": f"fox.zip!{number}.png", "status": "kept", "split": Split.TRAIN, "caption": "a fox",
        "pixels_sha256": f"{number:04x}" * 16, "thumbnail": f"thumbnails/{number}.jpg", "findings": findings,
    }  # fmt: skip
    return Image(**{**known, **changes})


def report(*images: Image, **changes: Any) -> DatasetReport:
    kept = sum(each.status == "kept" for each in images)
    counts = Counts(
        images=len(images), kept=kept, dropped=len(images) - kept, refused=len(changes.get("refused", ())), train=kept,
        validation=0, test=0, captioned=kept, automatic=sum(each.is_caption_automatic for each in images),
    )  # fmt: skip
    known: dict[str, Any] = {
        "digest": "d", "counts": counts, "summary": "Foxes.", "images": images,
        "sheets": ("sheets/1.png", "sheets/2.png", "sheets/3.png"),
    }  # fmt: skip
    return DatasetReport(**{**known, **changes})


def dataset(folder: Path, found: DatasetReport, **changes: Any) -> Dataset:
    known: dict[str, Any] = {
        "id": 12, "guild_id": 1, "owner_id": OWNER, "name": "fox", "sha256": "ab" * 32, "bytes": 10**6,
        "folder": folder, "earlier": "", "edits": Edits(), "is_pending": False, "digest": found.digest,
        "report_version": found.version, "counts": found.counts, "summary": found.summary, "created_at": NOW,
    }  # fmt: skip
    return Dataset(**{**known, **changes})
