"""The files of a job: which epochs have one, how many are kept, and what their headers say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.conftest import MakeJob
from tests.trainer.job_events import events_of, metadata_of
from trainer.errors import ExportError
from trainer.models.base import load_base
from trainer.models.methods import attach
from trainer.models.methods.checkpoint_file import base_metadata
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.protocol.events import EXIT_FINISHED, ExportFormat
from trainer.protocol.run_options import RunOptions
from trainer.protocol.settings import MethodKind
from trainer.protocol.spec import Spec, make_spec
from trainer.tasks import verify
from trainer.tasks.diffusion import architecture_metadata
from trainer.tasks.verify import verify_exports
from trainer.training import exporting
from trainer.training.exporting import delete_oldest, export_epoch
from trainer.training.run import run


@pytest.mark.parametrize(
    ("every", "epoch", "is_best", "is_last", "is_written"),
    [
        (2, 1, True, False, False),
        (2, 2, True, False, True),
        (2, 3, False, True, True),
        # It would equal that of the best epoch.
        (2, 3, True, True, False),
        (None, 2, True, False, False),
        (None, 2, False, True, True),
    ],
)
def test_a_file_of_every_nth_epoch_and_of_the_last_one_is_written(
    monkeypatch: pytest.MonkeyPatch, every: int | None, epoch: int, is_best: bool, is_last: bool, is_written: bool
) -> None:
    monkeypatch.setattr(exporting, "_write_epoch", lambda _session, _sample: {"epoch": epoch})
    session: Any = SimpleNamespace(
        spec=make_spec({"dataset": "d", "exports": {"every_epochs": every}}),
        state=SimpleNamespace(epoch=epoch),
        processes=SimpleNamespace(is_main=True, broadcast=lambda fields: fields),
    )

    written = export_epoch(session, is_best=is_best, is_last=is_last, sample=Path())

    assert (written is not None) is is_written


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


def exported(random_base: Path, folder: Path, **settings: Any) -> tuple[Spec, Trained, list[ExportedFile]]:
    """Write the files of a method whose weights have changed as by a training."""
    spec = make_spec({"dataset": "d", "base": {"source": str(random_base)}, **settings})
    trained = attach(load_base(spec.base, as_stored=True), spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _name, parameter in trained.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return spec, trained, trained.export(folder, "egg", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "formats"),
    [
        ({"kind": "dora", "rank": 4}, {ExportFormat.DIFFUSERS, ExportFormat.KOHYA}),
        ({"kind": "oft", "block_size": 8}, {ExportFormat.DIFFUSERS, ExportFormat.DIFFERENCE}),
    ],
)
def test_differences_are_exported_and_compared_unless_switched_off(
    random_base: Path, tmp_path: Path, method: dict[str, Any], formats: set[ExportFormat]
) -> None:
    """Those of a DoRA are in test_families_recipe.py."""
    has_differences = ExportFormat.DIFFERENCE in formats
    exports = {"differences": has_differences}
    spec, trained, files = exported(random_base, tmp_path, method=method, exports=exports)
    assert {file.format for file in files} == formats
    device = torch.device("cpu")
    assert len(verify_exports(spec, trained.state(), files, caption="an egg", device=device)) == len(files)
    if has_differences:
        metadata = metadata_of(tmp_path / "egg-diff.safetensors")
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


def test_the_base_that_files_are_loaded_into_has_nothing_of_the_training_left(
    random_base: Path, tmp_path: Path
) -> None:
    """A file without effect would pass if the trained weights were still in it."""
    spec, trained, files = exported(
        random_base, tmp_path, method={"rank": 4, "targets": "attention", "text_encoder": True}
    )
    device = torch.device("cpu")
    assert len(verify_exports(spec, trained.state(), files, caption="an egg", device=device)) == len(files) == 2

    empty = {name: torch.zeros_like(tensor) for name, tensor in load_file(files[1].path).items()}
    save_file(empty, files[1].path)
    with pytest.raises(ExportError, match="differs from the trained model"):
        verify_exports(spec, trained.state(), files, caption="an egg", device=device)

    *_predictions, left = verify._references(spec, trained.state(), "an egg", device)
    fresh = load_base(spec.base, as_stored=True)
    assert left is not None
    assert left.denoiser.state_dict().keys() == fresh.denoiser.state_dict().keys()
    assert left.text_encoder.state_dict().keys() == fresh.text_encoder.state_dict().keys()
