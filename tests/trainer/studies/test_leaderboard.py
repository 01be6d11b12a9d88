"""Two runs are compared image by image, at their best epochs, and only if both were measured on the same triples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.protocol.events import BandLoss, BaseValidated, EpochEnded, ValidationLoss
from trainer.reporter import Reporter
from trainer.studies.leaderboard import compare_best
from trainer.studies.run_history import RunHistory, read_history

IMAGES = 8


def run(job_dir: Path, *epochs: list[float], timestep_shift: int = 0) -> RunHistory:
    """A run with two bands whose best epoch is the last; each epoch has two losses for each image."""
    bands = tuple(BandLoss(first_timestep=first, last_timestep=first + 499, loss=0.1, ratio=1.0) for first in (0, 500))
    validation = ValidationLoss(loss=0.1, ratio=1.0, bands=bands)
    with Reporter(job_dir) as reporter:
        reporter.emit(BaseValidated, validation=validation)
        for epoch in range(1, len(epochs) + 1):
            reporter.emit(
                EpochEnded,
                epoch=epoch,
                step=epoch,
                train_loss=0.1,
                validation=validation,
                learning_rate=1e-4,
                seconds=1.0,
                is_best=True,
                best_epoch=epoch,
                chart="charts/loss.png",
            )
    folder = job_dir / "validation"
    folder.mkdir()
    triples = [
        {"image": image, "pixels_sha256": f"p{image}", "timestep": timestep + timestep_shift, "noise_seed": 1}
        for image in range(IMAGES)
        for timestep in (100, 700)
    ]
    (folder / "validation-triples.json").write_text(json.dumps(triples), encoding="utf-8")
    for epoch, losses in enumerate(epochs, 1):
        (folder / f"epoch-{epoch:03d}.json").write_text(
            json.dumps({"validation": losses, "train": [1.0]}), encoding="utf-8"
        )
    return read_history(job_dir)


def losses(first_band: float, second_band: float) -> list[float]:
    return [loss * (1 + image / 10) for image in range(IMAGES) for loss in (first_band, second_band)]


def test_each_band_has_the_same_weight_however_large_its_loss(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", losses(0.5, 0.011)), run(tmp_path / "b", losses(0.5, 0.010))
    known = compare_best(a, b, {}, until_epoch=9)
    assert known is not None
    assert known.ratio == pytest.approx((1.0 + 1.1) / 2)
    assert known.low == pytest.approx(known.high), "the same for every image, so nothing is left to chance"


def test_both_are_compared_at_their_best_up_to_the_same_epoch(tmp_path: Path) -> None:
    a = run(tmp_path / "a", losses(0.5, 0.5))
    b = run(tmp_path / "b", losses(0.5, 0.5), losses(0.25, 0.25))
    early, late = (compare_best(a, b, {}, until_epoch=epoch) for epoch in (1, 2))
    assert early is not None
    assert late is not None
    assert (early.ratio, late.ratio) == pytest.approx((1.0, 2.0))


def test_near_duplicates_count_as_one_observation(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", losses(0.5, 0.4)), run(tmp_path / "b", losses(0.5, 0.5))
    assert compare_best(a, b, {}, until_epoch=1) is not None
    two_groups = {f"p{image}": image % 2 for image in range(IMAGES)}
    assert compare_best(a, b, two_groups, until_epoch=1) is None, "two observations are too few"


def test_runs_on_different_triples_are_not_compared(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", losses(0.5, 0.4)), run(tmp_path / "b", losses(0.5, 0.5), timestep_shift=1)
    assert compare_best(a, b, {}, until_epoch=1) is None
    (b.job_dir / "validation" / "validation-triples.json").unlink()
    assert compare_best(a, b, {}, until_epoch=1) is None


def test_runs_without_their_losses_are_not_compared(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", losses(0.5, 0.4)), run(tmp_path / "b", losses(0.5, 0.5))
    (b.job_dir / "validation" / "epoch-001.json").unlink()
    assert compare_best(a, b, {}, until_epoch=1) is None
