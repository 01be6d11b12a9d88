"""What happens around epochs: the base model's measure before the first, and after each the validation, the samples,
the chart, the decision to stop, and the checkpoint. An epoch is said only once its checkpoint is safe."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Phase,
    Sampled,
    StoppedEarly,
    ValidationLoss,
)
from trainer.protocol.report import Split
from trainer.report.charts import draw_loss_chart
from trainer.report.gallery import draw_gallery
from trainer.tasks.samples import SamplePlan
from trainer.training.checkpoints import EpochPoint, TrainingState
from trainer.training.early_stopping import StopMemory
from trainer.training.session import Session
from trainer.training.validation import Triple, freeze_triples, keep_triples, measure, summarize

_EVENTS: dict[str, type[Event]] = {
    kind.model_fields["type"].default: kind for kind in (Sampled, EpochEnded, StoppedEarly)
}


def measure_base(session: Session) -> None:
    """The base model's validation loss and samples, before the first step; a resumed run has them already."""
    base = base_losses(session, Split.VALIDATION)
    if not any(event.type == "sampled" for event in session.reporter.history):
        with session.task.base_only():
            name, fields = draw_epoch_samples(session, epoch=0)
        session.reporter.say(_EVENTS[name], **fields)
    session.reporter.say(BaseValidated, validation=summarize_losses(session, Split.VALIDATION, base))


def end_epoch(session: Session) -> None:
    """Validate, draw, decide, keep, say."""
    began = time.monotonic()
    state, settings = session.state, session.spec.early_stopping
    losses = measure_losses(session, Split.VALIDATION)
    validation = summarize_losses(session, Split.VALIDATION, losses)
    memory = state.stop_memory.after(state.epoch, validation.ratio, settings)
    point = EpochPoint(
        epoch=state.epoch,
        train_loss=state.loss_sum / state.loss_count,
        validation_loss=validation.loss,
        ratio=validation.ratio,
    )
    curve = (*state.curve, point)
    is_last = state.epoch >= session.spec.training.epochs
    is_stopped_early = not is_last and not session.is_finishing and memory.should_stop(state.epoch, settings)
    pending = []
    if state.epoch % session.spec.samples.every_epochs == 0 or is_last or is_stopped_early:
        pending.append(draw_epoch_samples(session, state.epoch))
    chart = _draw_chart(session, curve, memory.best_epoch)
    epoch_end_seconds = time.monotonic() - began
    seconds = state.epoch_seconds + epoch_end_seconds
    pending.append(_epoch_ended(session, point, validation, memory, seconds, chart))
    if is_stopped_early:
        pending.append(_stopped_early(session, validation.ratio, memory, (state.seconds + seconds) / state.epoch))
    session.state = TrainingState(
        epoch=state.epoch + 1,
        step=state.step,
        seconds=state.seconds + seconds,
        epoch_end_seconds=epoch_end_seconds,
        stop_memory=memory,
        curve=curve,
        best_step=state.step if memory.best_epoch == state.epoch else state.best_step,
        is_over=is_last or is_stopped_early or session.is_finishing,
        is_stopped_early=is_stopped_early,
        pending=tuple(pending),
    )
    session.save_checkpoint()
    say_pending(session)


def say_pending(session: Session) -> None:
    """Say what belongs to the state, unless it was said before the process died."""
    for name, fields in session.state.pending:
        session.reporter.say(_EVENTS[name], **fields)


def triples(session: Session, split: Split) -> tuple[Triple, ...]:
    """The frozen triples of a split, the same for the whole life of the job."""
    hashes = [image.pixels_sha256 or image.source for image in session.examples[split].images]
    fresh = freeze_triples(hashes, session.spec.validation, session.task.schedule_steps)
    return keep_triples(session.job_dir / "validation" / f"{split}-triples.json", fresh)


def measure_losses(session: Session, split: Split) -> list[float]:
    """The loss of each frozen triple with the model as it is now; dropout off."""
    session.begin(Phase.VALIDATING if split is Split.VALIDATION else Phase.TESTING)
    session.task.train_mode(False)
    examples = session.examples[split]

    def losses(chunk: Sequence[Triple]) -> list[float]:
        return session.task.frozen_losses(
            examples,
            [triple.image for triple in chunk],
            [triple.timestep for triple in chunk],
            [triple.noise_seed for triple in chunk],
        )

    return measure(
        triples(session, split),
        size_of=examples.sizes,
        batch_size=max(8, session.spec.training.effective_micro_batch_size),
        losses=losses,
        between_batches=session.stop.check,
    )


def base_losses(session: Session, split: Split) -> list[float]:
    """The base model's loss on each frozen triple, measured once for a job."""
    path = session.job_dir / "validation" / f"{split}-base.json"
    if path.exists():
        kept: list[float] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    with session.task.base_only():
        losses = measure_losses(session, split)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(losses), encoding="utf-8")
    part.replace(path)
    return losses


def summarize_losses(session: Session, split: Split, losses: Sequence[float]) -> ValidationLoss:
    """Per band and as a ratio to the base model."""
    return summarize(
        triples(session, split),
        losses,
        base_losses(session, split),
        bands=session.spec.validation.timesteps,
        schedule_steps=session.task.schedule_steps,
    )


def draw_epoch_samples(session: Session, epoch: int) -> tuple[str, dict[str, Any]]:
    """Draw the samples of an epoch into `samples/epoch-003/`; the event that tells of them."""
    session.begin(Phase.SAMPLING)
    plan = session.task.sample_plan(session.examples[Split.VALIDATION])
    pictures = session.task.sample(plan, between_steps=session.stop.check)
    folder = sample_folder(session.job_dir, epoch)
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}.png")
    sheet = draw_gallery(folder / "sheet.png", pictures, [sample.prompt for sample in plan])
    samples = [
        {
            "path": str((folder / f"{index}.png").relative_to(session.job_dir)),
            "prompt": sample.prompt,
            "seed": sample.seed,
        }
        for index, sample in enumerate(plan)
    ]
    return "sampled", {"epoch": epoch, "samples": samples, "sheet": str(sheet.relative_to(session.job_dir))}


def sample_folder(job_dir: Path, epoch: int) -> Path:
    return job_dir / "samples" / f"epoch-{epoch:03d}"


def read_samples(job_dir: Path, epoch: int, plan: Sequence[SamplePlan]) -> list[Image.Image] | None:
    """The samples that were drawn after an epoch, None if there are none."""
    paths = [sample_folder(job_dir, epoch) / f"{index}.png" for index in range(len(plan))]
    return [Image.open(path).convert("RGB") for path in paths] if all(path.exists() for path in paths) else None


def _draw_chart(session: Session, curve: Sequence[EpochPoint], best_epoch: int) -> str:
    path = draw_loss_chart(
        session.job_dir / "charts" / f"loss-{curve[-1].epoch:03d}.png",
        title=f"{session.spec.name}: epoch {curve[-1].epoch} of {session.spec.training.epochs}",
        epochs=[point.epoch for point in curve],
        train_losses=[point.train_loss for point in curve],
        ratios=[point.ratio for point in curve],
        best_epoch=best_epoch,
        total_epochs=session.spec.training.epochs,
    )
    return str(path.relative_to(session.job_dir))


def _epoch_ended(
    session: Session, point: EpochPoint, validation: ValidationLoss, memory: StopMemory, seconds: float, chart: str
) -> tuple[str, dict[str, Any]]:
    return "epoch_ended", {
        "epoch": point.epoch,
        "step": session.state.step,
        "train_loss": point.train_loss,
        "validation": validation.model_dump(),
        "learning_rate": session.schedule.get_last_lr()[0],
        "seconds": seconds,
        "is_best": memory.best_epoch == point.epoch,
        "best_epoch": memory.best_epoch,
        "chart": chart,
    }


def _stopped_early(
    session: Session, ratio: float, memory: StopMemory, seconds_per_epoch: float
) -> tuple[str, dict[str, Any]]:
    epochs_saved = session.spec.training.epochs - session.state.epoch
    return "stopped_early", {
        "epoch": session.state.epoch,
        "best_epoch": memory.best_epoch,
        "best_ratio": memory.best_ratio,
        "reason": memory.reason(ratio, session.spec.early_stopping),
        "epochs_saved": epochs_saved,
        "seconds_saved": epochs_saved * seconds_per_epoch,
    }
