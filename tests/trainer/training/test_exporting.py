"""The files of a job: of the best epoch and of others, what their headers say, and what becomes of them on a resume."""

from __future__ import annotations

import base64
import hashlib
import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.trainer.conftest import MakeJob, job_maker
from tests.trainer.job_events import events_of
from trainer.models.methods.checkpoint_file import base_metadata
from trainer.protocol.events import EXIT_FINISHED, EpochEnded, Exported, ExportFormat, Finished
from trainer.protocol.run_options import RunOptions
from trainer.protocol.settings import MethodKind
from trainer.tasks.diffusion import architecture_metadata
from trainer.training.exporting import delete_oldest
from trainer.training.run import run

EPOCHS = 5


@pytest.fixture(scope="module")
def job(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job_dir = job_maker(dataset, random_base, tmp_path_factory.mktemp("exporting"))(
        training={"epochs": EPOCHS, "repeats": 1, "trigger": "egg", "learning_rate": 3e-3},
        early_stopping={"enabled": False},
        samples={"every_epochs": 1, "steps": 1},
        exports={"every_epochs": 2, "keep": 2, "author": "Ada"},
    )
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    return job_dir


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_a_file_of_every_nth_epoch_and_of_the_last_one_is_written(job: Path) -> None:
    (finished,) = events_of(job, Finished)
    files = [event for event in events_of(job, Exported) if event.epoch is not None]

    # The last epoch needs no file of its own if it is the best.
    expected = [2, 4] if finished.best_epoch == EPOCHS else [2, 4, 5]
    assert [event.epoch for event in files] == expected
    assert [event.path for event in files] == [f"output/epochs/lora-{epoch:06d}.safetensors" for epoch in expected]
    assert all(event.max_difference is None and event.readers for event in files)
    # Two are kept, the newest.
    left = sorted(path.name for path in (job / "output/epochs").iterdir())
    assert left == [f"lora-{epoch:06d}.safetensors" for epoch in expected[-2:]]
    # Each comes after its checkpoint and its epoch.
    order = [(e.type, e.epoch) for e in events_of(job) if isinstance(e, EpochEnded | Exported) and e.epoch]
    assert order.index(("exported", 4)) == order.index(("epoch_ended", 4)) + 1


@pytest.mark.parametrize(
    ("keep", "keep_bytes", "left"),
    [
        (20, 1500, [1, 2, 3, 4, 5]),
        (20, 1499, [2, 3, 4, 5]),
        (2, 1500, [4, 5]),
        # The newest one always stays.
        (20, 100, [5]),
    ],
)
def test_files_of_epochs_are_kept_up_to_a_number_and_a_size(
    tmp_path: Path, keep: int, keep_bytes: int, left: list[int]
) -> None:
    for epoch in range(1, 6):
        (tmp_path / f"fox-{epoch:06}.safetensors").write_bytes(b"x" * 300)

    delete_oldest(tmp_path, keep=keep, keep_bytes=keep_bytes)

    assert sorted(int(each.stem[-1]) for each in tmp_path.iterdir()) == left


def test_the_file_of_an_epoch_has_its_weights_and_says_which_epoch_it_is(job: Path) -> None:
    path = job / "output/epochs/lora-000004.safetensors"

    metadata = metadata_of(path)

    (ended,) = [event for event in events_of(job, EpochEnded) if event.epoch == 4]
    assert (metadata["ss_epoch"], metadata["ss_steps"]) == ("4", str(ended.step))
    best = load_file(job / "output/lora.safetensors")
    own = load_file(path)
    assert own.keys() == best.keys()
    is_best = events_of(job, Finished)[0].best_epoch == 4
    assert all(torch.equal(own[name], best[name]) for name in own) is is_best


def test_the_header_has_what_viewers_show(job: Path) -> None:
    metadata = metadata_of(job / "output/lora.safetensors")

    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.trigger_phrase"] == "egg"
    assert metadata["modelspec.author"] == "Ada"
    assert metadata["ss_epoch"] == str(events_of(job, Finished)[0].best_epoch)
    start, _, content = metadata["modelspec.thumbnail"].partition(",")
    assert start == "data:image/jpeg;base64"
    with Image.open(BytesIO(base64.b64decode(content))) as thumbnail:
        assert thumbnail.format == "JPEG"
        assert max(thumbnail.size) <= 256


def base_like(family: str, prediction: str, **config: Any) -> Any:
    return SimpleNamespace(
        family=family, prediction_type=prediction, denoiser=SimpleNamespace(config=SimpleNamespace(**config))
    )


SD3 = {"qk_norm": None, "dual_attention_layers": ()}
SD35_MEDIUM = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
SD35_LARGE = {"qk_norm": "rms_norm", "dual_attention_layers": ()}


@pytest.mark.parametrize(
    ("base", "version", "architecture", "prediction"),
    [
        (base_like("sd1", "epsilon"), "sd_v1", "stable-diffusion-v1", "epsilon"),
        (base_like("sd1", "v_prediction"), "sd_v1_v", "stable-diffusion-v1", "v"),
        (base_like("sd2", "epsilon"), "sd_v2", "stable-diffusion-v2-512", "epsilon"),
        (base_like("sd2", "v_prediction"), "sd_v2_v", "stable-diffusion-v2-768-v", "v"),
        (base_like("sdxl", "epsilon"), "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "epsilon"),
        (base_like("sdxl", "v_prediction"), "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "v"),
        (base_like("sd3", "flow", **SD3), "medium", "stable-diffusion-v3-medium", None),
        (base_like("sd3", "flow", **SD35_MEDIUM), "5-medium", "stable-diffusion-v3.5-medium", None),
        (base_like("sd3", "flow", **SD35_LARGE), "5-large", "stable-diffusion-v3.5-large", None),
    ],
)
def test_the_architecture_is_that_of_the_base_and_of_what_the_file_is(
    base: Any, version: str, architecture: str, prediction: str | None
) -> None:
    kinds = {MethodKind.LORA: "/lora", MethodKind.OFT: "/lora", MethodKind.TEXTUAL_INVERSION: "/textual-inversion"}
    for kind, suffix in {**kinds, MethodKind.FULL: ""}.items():
        metadata = architecture_metadata(base, kind)
        assert metadata["modelspec.architecture"] == architecture + suffix
        assert metadata["ss_base_model_version"] == version
        assert metadata.get("modelspec.prediction_type") == prediction


def test_a_single_file_is_named_by_its_hashes_and_its_license(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    save_file({"weight": torch.arange(400_000.0)}, path, {"modelspec.license": "CC0"})

    content = path.read_bytes()
    assert base_metadata(str(path)) == {
        "ss_sd_model_name": "base.safetensors",
        "ss_sd_model_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
        "ss_new_sd_model_hash": hashlib.sha256(content).hexdigest(),
        "modelspec.license": "CC0",
    }


@pytest.mark.parametrize(
    ("card", "license_name"),
    [("---\ntags: [a]\nlicense: openrail++\n---\n# X", "openrail++"), ("license: none", None), (None, None)],
)
def test_the_license_of_a_folder_is_that_of_its_model_card(
    tmp_path: Path, card: str | None, license_name: str | None
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)

    assert base_metadata(str(tmp_path)).get("modelspec.license") == license_name
    assert base_metadata("stabilityai/stable-diffusion-xl-base-1.0")["modelspec.license"] == "CreativeML Open RAIL++-M"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "formats"),
    [
        ({"kind": "dora", "rank": 4}, {ExportFormat.DIFFUSERS, ExportFormat.KOHYA, ExportFormat.DIFFERENCE}),
        ({"kind": "oft", "block_size": 8}, {ExportFormat.DIFFUSERS, ExportFormat.DIFFERENCE}),
    ],
)
def test_differences_are_exported_and_compared_unless_switched_off(
    make_job: MakeJob, method: dict[str, Any], formats: set[ExportFormat]
) -> None:
    for name, has_differences in (("with", True), ("without", False)):
        job_dir = make_job(
            name, method=method, training={"epochs": 1, "repeats": 1}, exports={"differences": has_differences}
        )
        assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
        found = {event.format: event for event in events_of(job_dir, Exported)}
        assert found.keys() == (formats if has_differences else formats - {ExportFormat.DIFFERENCE})
        assert all(event.max_difference is not None for event in found.values())
        if has_differences:
            metadata = metadata_of(job_dir / "output/lora-diff.safetensors")
            assert json.loads(metadata["ss_network_args"]) == {"algo": "full"}


@pytest.mark.slow
def test_a_word_that_captions_hold_only_within_other_words_is_no_reason_to_fail(make_job: MakeJob) -> None:
    """Public report F2: "hap" in "shapes" is read by diffusers and not by the training."""
    job_dir = make_job(
        method={"kind": "textual_inversion", "initial_word": "egg", "text_encoder": False, "dropout": 0.0},
        training={"epochs": 1, "repeats": 1, "trigger": "eg", "learning_rate": 0.01},
    )

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]

    assert metadata_of(job_dir / "output/eg.safetensors")["modelspec.architecture"].endswith("/textual-inversion")
