"""The end of a job: one look at the test split with the best checkpoint, the comparison, the files, the last word."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from trainer.crashing import crash_point
from trainer.protocol.events import BaseValidated, Exported, Finished, Phase, Tested
from trainer.protocol.report import Split
from trainer.report.gallery import draw_comparison
from trainer.training.drawing import draw_epoch_samples, open_shown, sample_folder, shown_examples
from trainer.training.measuring import Measured, base_losses, measure_split, summarize_split
from trainer.training.metadata import file_metadata
from trainer.training.session import Session


def export_and_finish(session: Session) -> None:
    """Test, compare, export, finish, all with the best checkpoint's weights."""
    # OpenCV and the templates of the report: the first step need not wait for them.
    from trainer.training.insight import gain_insight, write_page

    began = time.monotonic()
    session.load_best()
    _test(session)
    comparison, alt = _compare(session)
    # Before the export, which takes the model off the device.
    gain_insight(session)
    if session.spec.validation.test:
        _export(session)
    memory = session.state.stop_memory
    best = next(point for point in session.state.curve if point.epoch == memory.best_epoch)
    base = next(event for event in session.reporter.history if isinstance(event, BaseValidated))
    last_word: dict[str, Any] = {
        "epochs": session.state.curve[-1].epoch,
        "best_epoch": best.epoch,
        "stopped_early": session.state.is_stopped_early,
        "base_loss": base.validation.loss,
        "best_loss": best.validation_loss,
        "best_ratio": best.ratio,
        "seconds": session.state.seconds + time.monotonic() - began,
        "comparison": comparison,
        "comparison_alt": alt,
    }
    session.reporter.say(Finished, **last_word, report=write_page(session, last_word))


def _test(session: Session) -> None:
    examples = session.examples[Split.TEST]
    if not examples.images or not session.spec.validation.test:
        return
    losses = measure_split(session, Measured.TEST)
    base = base_losses(session, Measured.TEST)
    chart = session.job_dir / "charts" / "test.png"
    is_drawn = session.processes.agree(
        session.processes.is_main and session.task.draw_chart(examples, chart, session.check) is not None
    )
    session.reporter.say(
        Tested,
        test=summarize_split(session, Measured.TEST, losses),
        base_loss=sum(loss.plain for loss in base) / len(base),
        metrics=dict(session.task.metrics(examples, session.check)),
        chart=str(chart.relative_to(session.job_dir)) if is_drawn else None,
    )


def _compare(session: Session) -> tuple[str, str]:
    """Base above, best below, same prompts and seeds; for a classifier what it takes for what."""
    path = session.job_dir / "output" / "comparison.png"
    path.parent.mkdir(exist_ok=True)
    examples = shown_examples(session)
    said = session.processes.agree(
        session.task.draw_chart(examples, path, session.check) if session.processes.is_main else None
    )
    if said is not None:
        return str(path.relative_to(session.job_dir)), said
    best_epoch = session.state.stop_memory.best_epoch
    shown = []
    for epoch in (0, best_epoch):
        folder = sample_folder(session.job_dir, epoch)
        if not session.processes.agree((folder / "sheet.png").exists()):
            if epoch == 0:
                with session.task.base_only():
                    draw_epoch_samples(session, epoch)
            else:
                draw_epoch_samples(session, epoch)
        shown.append(session.task.draw(examples, folder, shard=slice(0, 0), between_steps=session.check))
    prompts = [each.prompt for each in shown[0]]
    if session.processes.is_main:
        draw_comparison(
            path,
            base=open_shown(shown[0]),
            best=open_shown(shown[1]),
            captions=prompts,
            headings=("base model", f"{session.spec.name}, epoch {best_epoch}"),
        )
    listed = "; ".join(dict.fromkeys(prompts))
    alt = f"Above the base model, below {session.spec.name} after epoch {best_epoch}, same seeds. Prompts: {listed}"
    return str(path.relative_to(session.job_dir)), alt


def _export(session: Session) -> None:
    """Every file, written, loaded back and compared before anyone hears of it."""
    session.begin(Phase.EXPORTING)
    if session.processes.is_main:
        files = session.task.trained.export(session.job_dir / "output", session.spec.name, file_metadata(session))
        crash_point("export_written")
        for verified in session.task.verify(files, shown_examples(session), session.reporter.say_working):
            size, digest = _measure_file(verified.file.path)
            session.reporter.say(
                Exported,
                format=verified.file.format,
                path=str(verified.file.path.relative_to(session.job_dir)),
                bytes=size,
                sha256=digest,
                max_difference=verified.max_difference,
            )
    session.processes.wait()


def _measure_file(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file, or of the names and contents of all files of a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    size, whole = 0, hashlib.sha256()
    for each in sorted(each for each in path.rglob("*") if each.is_file()):
        bytes_of_each, digest = _measure_file(each)
        size += bytes_of_each
        whole.update(f"{each.relative_to(path)} {digest}\n".encode())
    return size, whole.hexdigest()
