"""The same recipe trains every family: SDXL and SD 3 from a random base to files that load back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.conftest import MakeJob
from tests.trainer.random_base import make_random_sd3, make_random_sdxl
from trainer.protocol.events import EXIT_FAILED, EXIT_FINISHED, Exported, Failed, FailureKind, Finished, parse_event
from trainer.training.run import run

pytestmark = pytest.mark.timeout(300)

ONE_EPOCH = {
    "training": {"epochs": 1, "micro_batch_size": 4},
    "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": []},
}


def said(job_dir: Path, kind: type[object]) -> list[object]:
    lines = (job_dir / "events.jsonl").read_bytes().splitlines()
    return [event for event in map(parse_event, lines) if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("make_base", "method", "formats"),
    [
        (make_random_sdxl, {"kind": "lora"}, {"diffusers", "kohya"}),
        (
            make_random_sdxl,
            {"kind": "full", "text_encoder": False, "rank": 16, "alpha": None, "dropout": 0.0, "targets": None},
            {"diffusers", "checkpoint"},
        ),
        (make_random_sd3, {"kind": "lora", "targets": "attention"}, {"diffusers", "kohya"}),
    ],
    ids=["sdxl-lora", "sdxl-full", "sd3-lora"],
)
def test_a_family_is_trained_and_its_files_load_back(
    make_base: Callable[[Path], Path],
    method: dict[str, object],
    formats: set[str],
    make_job: MakeJob,
    tmp_path: Path,
) -> None:
    base = make_base(tmp_path / "base")
    job_dir = make_job(base=str(base), method=method, **ONE_EPOCH)

    assert run(job_dir) == EXIT_FINISHED, said(job_dir, Failed)

    (finished,) = said(job_dir, Finished)
    assert isinstance(finished, Finished)
    assert finished.best_ratio < 1
    assert {event.format for event in said(job_dir, Exported) if isinstance(event, Exported)} == formats


def test_what_a_family_cannot_do_is_refused_before_anything_is_trained(make_job: MakeJob, tmp_path: Path) -> None:
    base = make_random_sd3(tmp_path / "base")
    job_dir = make_job(base=str(base), objective={"snr_gamma": 5.0}, **ONE_EPOCH)

    assert run(job_dir) == EXIT_FAILED

    (failed,) = said(job_dir, Failed)
    assert isinstance(failed, Failed)
    assert failed.kind is FailureKind.BAD_SPEC
    assert "snr_gamma" in failed.message
