"""Jobs and events for the layout tests, small enough to change in one argument."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from bot.queue.domain.job import Job, Progress, State
from trainer.protocol.events import (
    BandLoss,
    BaseValidated,
    EpochEnded,
    Phase,
    Sample,
    Sampled,
    StepDone,
    ValidationLoss,
)
from trainer.protocol.spec import make_spec

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OWNER = 555


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
        "seq": 1, "time": 0, "step": step, "epoch": epoch, "loss": 0.0841, "learning_rate": 1e-4,
        "steps_per_s": 2.4, "eta_s": 600, "peak_memory_bytes": 19 * 2**30,
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
        "epoch": done[-1] if done else None,
        "epochs": done,
        "heard_at": NOW,
    }
    return Progress(**{**known, **changes})


def job(**changes: Any) -> Job:
    spec = make_spec({"name": "fox-lora", "dataset": "x", "training": {"epochs": 10}})
    known = {
        "id": 42, "guild_id": 1, "channel_id": 2, "owner_id": OWNER, "dataset_id": 1, "dataset_name": "fox.zip",
        "spec": spec, "state": State.RUNNING, "stop_intent": None, "stopped_by": None, "attempt": 1,
        "created_at": NOW, "started_at": NOW, "ended_at": None, "progress": progress(), "last_word": None,
        "end_reason": None,
    }  # fmt: skip
    return Job(**{**known, **changes})
