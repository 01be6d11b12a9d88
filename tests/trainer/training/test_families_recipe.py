"""The recipe trains SDXL and SD 3, from a random base to files that load back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.conftest import MakeJob, SharedFolder
from tests.trainer.job_events import events_of
from tests.trainer.random_base import make_random_base, make_random_sd3, make_random_sdxl, store_in_half
from trainer.protocol.events import EXIT_FAILED, EXIT_FINISHED, Exported, Failed, FailureKind, Finished
from trainer.protocol.run_options import RunOptions
from trainer.training.run import run

pytestmark = pytest.mark.timeout(300)

ONE_EPOCH = {
    "training": {"epochs": 1, "micro_batch_size": 4},
    "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": []},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_base", "method", "formats"),
    [
        (make_random_sdxl, {"kind": "lora", "targets": "attention"}, {"diffusers", "kohya"}),
        (
            make_random_sdxl,
            {"kind": "full", "text_encoder": False, "rank": 16, "alpha": None, "dropout": 0.0, "targets": None},
            {"diffusers", "checkpoint"},
        ),
        (make_random_sd3, {"kind": "lora", "targets": "attention"}, {"diffusers", "kohya"}),
        (make_random_base, {"kind": "dora", "targets": "attention"}, {"diffusers", "kohya", "difference"}),
        (make_random_base, {"kind": "loha", "targets": "attention"}, {"diffusers", "kohya"}),
    ],
    ids=["sdxl-lora", "sdxl-full", "sd3-lora", "sd1-dora", "sd1-loha"],
)
def test_a_family_is_trained_and_its_files_load_back(
    make_base: Callable[[Path], Path],
    method: dict[str, object],
    formats: set[str],
    make_job: MakeJob,
    shared_folder: SharedFolder,
) -> None:
    base = shared_folder(f"{make_base.__name__}-half", lambda folder: store_in_half(make_base(folder)))
    job_dir = make_job(base=str(base), method=method, **ONE_EPOCH)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir, Failed)

    (finished,) = events_of(job_dir, Finished)
    assert finished.best_ratio < 1
    assert {event.format for event in events_of(job_dir, Exported)} == formats
    assert all(event.max_difference is not None for event in events_of(job_dir, Exported))


def test_a_setting_that_a_family_does_not_support_is_refused_before_the_training(
    make_job: MakeJob, shared_folder: SharedFolder
) -> None:
    base = shared_folder("sd3", make_random_sd3)
    job_dir = make_job(base=str(base), objective={"snr_gamma": 5.0}, **ONE_EPOCH)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED

    (failed,) = events_of(job_dir, Failed)
    assert failed.kind is FailureKind.BAD_SPEC
    assert "snr_gamma" in failed.message
