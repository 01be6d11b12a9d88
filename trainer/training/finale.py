"""The end of a job: one look at the test split with the best checkpoint, the comparison, the files, the last word."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from torch import Tensor

from trainer.models.export import as_metadata, kohya_state, write_diffusers, write_kohya
from trainer.models.lora import lora_state
from trainer.protocol.events import BaseValidated, Exported, Finished, Phase, Tested
from trainer.protocol.report import Split
from trainer.report.gallery import draw_comparison
from trainer.tasks.verify import compare_exports
from trainer.training.epoch_end import base_losses, measure_losses, read_samples, summarize_losses
from trainer.training.metadata import kohya_metadata
from trainer.training.session import Session


def export_and_finish(session: Session) -> None:
    """Test, compare, export, finish, all with the best checkpoint's weights."""
    began = time.monotonic()
    session.load_weights(session.checkpoints.path(session.state.best_step))
    _test(session)
    comparison, alt = _draw_comparison(session)
    _export(session)
    memory = session.state.stop_memory
    best = next(point for point in session.state.curve if point.epoch == memory.best_epoch)
    base = next(event for event in session.reporter.history if isinstance(event, BaseValidated))
    session.reporter.say(
        Finished,
        epochs=session.state.curve[-1].epoch,
        best_epoch=best.epoch,
        stopped_early=session.state.is_stopped_early,
        base_loss=base.validation.loss,
        best_loss=best.validation_loss,
        best_ratio=best.ratio,
        seconds=session.state.seconds + time.monotonic() - began,
        comparison=comparison,
        comparison_alt=alt,
    )


def _test(session: Session) -> None:
    if not session.examples[Split.TEST].images:
        return
    losses = measure_losses(session, Split.TEST)
    base = base_losses(session, Split.TEST)
    session.reporter.say(
        Tested,
        test=summarize_losses(session, Split.TEST, losses),
        base_loss=sum(base) / len(base),
    )


def _draw_comparison(session: Session) -> tuple[str, str]:
    """Base above, best below; the best epoch's samples are drawn again where that epoch had none."""
    plan = session.task.sample_plan(session.examples[Split.VALIDATION])
    best_epoch = session.state.stop_memory.best_epoch
    session.begin(Phase.SAMPLING)
    base = read_samples(session.job_dir, 0, plan)
    if base is None:
        with session.task.base_only():
            base = session.task.sample(plan, session.stop.check)
    best = read_samples(session.job_dir, best_epoch, plan) or session.task.sample(plan, session.stop.check)
    path = draw_comparison(
        session.job_dir / "output" / "comparison.png",
        base=base,
        best=best,
        captions=[sample.prompt for sample in plan],
        headings=("base model", f"{session.spec.name}, epoch {best_epoch}"),
    )
    prompts = "; ".join(dict.fromkeys(sample.prompt for sample in plan))
    alt = f"Above the base model, below {session.spec.name} after epoch {best_epoch}, same seeds. Prompts: {prompts}"
    return str(path.relative_to(session.job_dir)), alt


def _export(session: Session) -> None:
    """Both files, written, loaded back and compared before anyone hears of them."""
    session.begin(Phase.EXPORTING)
    weights = {name: lora_state(model) for name, model in session.task.trained_models.items()}
    files = {
        "diffusers": write_diffusers(session.job_dir / "output" / "diffusers", weights, session.task.lora_config),
        "kohya": _write_kohya(session, weights),
    }
    captions = session.examples[Split.VALIDATION].captions
    comparisons = compare_exports(
        session.spec.base,
        session.spec.adapter,
        weights,
        list(files.values()),
        caption=captions[0],
        device=session.task.device,
    )
    for (name, path), comparison in zip(files.items(), comparisons, strict=True):
        session.reporter.say(
            Exported,
            format=name,
            path=str(path.relative_to(session.job_dir)),
            bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            max_difference=comparison.max_difference,
        )


def _write_kohya(session: Session, weights: dict[str, dict[str, Tensor]]) -> Path:
    state = kohya_state(weights, session.spec.adapter.effective_alpha)
    metadata = as_metadata(kohya_metadata(session))
    return write_kohya(session.job_dir / "output" / f"{session.spec.name}.safetensors", state, metadata)
