"""Predictions of memory are kept by what they depend on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trainer.exchange.dataset_dir import write_report
from trainer.exchange.memory_predictions import caption_chunks, is_predictable, keep_prediction, read_prediction
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import CaptionStatistics, Counts, DatasetReport
from trainer.protocol.spec import Spec

COUNTS = Counts(images=1, kept=1, dropped=0, refused=0, train=1, validation=0, test=0, captioned=1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An SDXL, by its header."""
    header = json.dumps({"conditioner.embedders.0.a": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "base.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def spec_of(base: Path, changes: dict[str, Any] | None = None, *, dataset: str = "/data") -> Spec:
    return spec_from_preset("lora", dataset=dataset, base=str(base), changes=changes)


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"training": {"learning_rate": 3e-5, "epochs": 3, "seed": 9}}, True),
        ({"samples": {"prompts": ["a fox"]}, "method": {"dropout": 0.1}}, True),
        ({"training": {"resolution": 512}}, False),
        ({"training": {"optimizer": "lion"}}, False),
        ({"training": {"gradient_checkpointing": True}}, False),
        ({"training": {"batch_size": 1}}, False),
        ({"method": {"rank": 64}}, False),
        ({"base": {"quantization": "int8"}}, False),
    ],
)
def test_a_prediction_is_for_all_trainings_that_need_the_same(
    tmp_path: Path, base: Path, changes: dict[str, Any], is_same: bool
) -> None:
    assert read_prediction(tmp_path / "kept", spec_of(base)) is None
    keep_prediction(tmp_path / "kept", spec_of(base), 9_000_000_000)
    found = read_prediction(tmp_path / "kept", spec_of(base, changes, dataset="/other"))
    assert found == (9_000_000_000 if is_same else None)


def test_a_base_that_was_replaced_or_is_gone_has_no_prediction(tmp_path: Path, base: Path) -> None:
    keep_prediction(tmp_path, spec_of(base), 5)
    os.utime(base, (1, 1))
    assert read_prediction(tmp_path, spec_of(base)) is None
    base.unlink()
    assert read_prediction(tmp_path, spec_of(base)) is None


def test_a_base_with_a_replaced_file_in_its_folder_has_no_prediction(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    weights = base.rename(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = tmp_path / "vae.safetensors"
    vae.touch()
    specs = [
        spec_of(folder),
        spec_of(folder, {"base": {"vae": str(vae)}}),
        # Its configs lie elsewhere.
        spec_of(weights, {"base": {"config": str(tmp_path / "configs")}}),
    ]
    for spec in specs:
        keep_prediction(tmp_path, spec, 5)
        assert read_prediction(tmp_path, spec) == 5

    os.utime(vae, (1, 1))
    assert [read_prediction(tmp_path, spec) for spec in specs] == [5, None, 5]
    os.utime(weights, (1, 1))
    assert [read_prediction(tmp_path, spec) for spec in specs] == [None, None, None]


@pytest.mark.parametrize(
    ("tokens", "changes", "chunks"),
    [
        (20, {}, 1),
        (75, {}, 1),
        # With the trigger word before it.
        (75, {"training": {"trigger": "zork"}}, 2),
        (160, {}, 3),
        (900, {}, 3),
        (900, {"base": {"max_token_length": 75}}, 1),
    ],
)
def test_the_chunks_of_the_longest_caption_count(
    tmp_path: Path, base: Path, tokens: int, changes: dict[str, Any], chunks: int
) -> None:
    captions = CaptionStatistics(distinct=1, median_tokens=1.0, longest_tokens=tokens, too_long=0)
    write_report(tmp_path, DatasetReport(digest="d", counts=COUNTS, summary="", images=(), captions=captions))
    spec = spec_of(base, changes, dataset=str(tmp_path))
    assert caption_chunks(spec) == chunks
    if "training" not in changes:
        assert caption_chunks(spec_of(base, {**changes, "mix": [{"dataset": str(tmp_path)}]})) == chunks
    keep_prediction(tmp_path / "kept", spec, 5)
    assert (read_prediction(tmp_path / "kept", spec_of(base, changes)) == 5) == (chunks == 1)


def test_only_a_large_diffusion_model_that_is_here_is_predicted(tmp_path: Path, base: Path) -> None:
    assert is_predictable(spec_of(base))
    assert not is_predictable(spec_of(tmp_path / "gone.safetensors"))
    assert not is_predictable(spec_from_preset("lora", dataset="/data", base="tiny"))
    assert not is_predictable(spec_from_preset("classifier", dataset="/data", base=str(base)))
