"""The resolution and the family of a base are read from its files alone, and are those that the loaded base has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.trainer.conftest import SharedFolder
from tests.trainer.random_base import make_random_base, make_random_sd3, make_random_sdxl, write_single_file
from tests.trainer.random_classifier import make_random_vit
from trainer.exchange.base_files import BaseFacts, base_facts, base_resolution, training_resolution
from trainer.models.base import load_base
from trainer.models.classifier import load_classifier
from trainer.protocol.settings import Base
from trainer.protocol.spec import make_spec

#: One tensor of each family's original layout, and the resolution of its usual configuration.
SINGLE_FILES = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids": 512,
    # 768 or 512 px: its weights tell.
    "cond_stage_model.model.transformer.resblocks.9.mlp.c_proj.bias": None,
    "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": 1024,
    "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias": 1024,
    "lora_unet_down_blocks_0_attentions_0_proj_in.alpha": None,
}


def test_the_base_that_ships_trains_at_64_px() -> None:
    assert base_resolution(Base()) == load_base(Base()).resolution == 64


@pytest.mark.parametrize("make", [make_random_base, make_random_sdxl, make_random_sd3])
def test_a_folder_tells_the_resolution_of_the_loaded_base(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    base = Base(source=str(make(tmp_path / "base")))
    assert base_resolution(base) == load_base(base).resolution


@pytest.mark.parametrize(("name", "side"), SINGLE_FILES.items())
def test_a_single_file_tells_its_family_by_the_names_of_its_tensors(
    tmp_path: Path, name: str, side: int | None
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(1)}, path)
    assert base_resolution(Base(source=str(path))) == side


def test_the_config_of_a_single_file_comes_first(random_base: Path, tmp_path: Path) -> None:
    file = write_single_file(random_base, tmp_path / "one.safetensors")
    assert base_resolution(Base(source=str(file))) == 512
    assert base_resolution(Base(source=str(file), config=str(random_base))) == 64


def test_a_hub_name_is_looked_up_in_the_cache(shared_folder: SharedFolder, tmp_path: Path) -> None:
    base = shared_folder("sdxl", make_random_sdxl)
    folder = tmp_path / "hub" / "models--someone--model"
    shutil.copytree(base, folder / "snapshots" / "c0ffee")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    known = base_resolution(Base(source=str(base)))
    named = Base(source="someone/model")
    assert known == base_resolution(named, {"HF_HOME": str(tmp_path)})
    assert known == base_resolution(named, {"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert known == base_resolution(Base(source="someone/model", revision="c0ffee"), {"HF_HOME": str(tmp_path)})
    assert base_resolution(named, {"HF_HOME": str(tmp_path / "elsewhere")}) is None


def test_a_classifier_tells_the_size_that_it_reads(tmp_path: Path) -> None:
    base = Base(source=str(make_random_vit(tmp_path / "vit")))
    assert base_resolution(base) == load_classifier(base, ["a", "b"], head_seed=0).resolution


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[}"])
def test_a_file_that_does_not_tell_is_not_guessed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert base_resolution(Base(source=str(path))) is None
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"sample_size": None}))
    assert base_resolution(Base(source=str(tmp_path))) is None


def test_the_job_s_own_resolution_comes_first() -> None:
    spec = make_spec({"name": "fox", "dataset": "x", "training": {"resolution": 128}})
    assert training_resolution(spec) == 128
    assert training_resolution(make_spec({"name": "fox", "dataset": "x"})) == 64


@pytest.mark.parametrize(
    ("mark", "family", "resolution"),
    [
        ("model.diffusion_model.joint_blocks.0.weight", "SD 3", 1024),
        ("conditioner.embedders.0.weight", "SDXL", 1024),
        ("cond_stage_model.transformer.weight", "SD 1.x", 512),
        ("cond_stage_model.model.weight", "SD 2.x", None),
        ("lora_unet.weight", "", None),
    ],
)
def test_the_family_of_a_single_file_is_told_by_its_tensors(
    tmp_path: Path, mark: str, family: str, resolution: int | None
) -> None:
    header = json.dumps({mark: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    facts = base_facts(Base(source=str(path)))
    assert facts == BaseFacts(family=family, resolution=resolution, bytes=path.stat().st_size)


@pytest.mark.parametrize(
    ("pipeline", "width", "family"),
    [
        ("StableDiffusionPipeline", 768, "SD 1.x"),
        ("StableDiffusionPipeline", 1024, "SD 2.x"),
        ("StableDiffusionXLPipeline", 2048, "SDXL"),
        ("StableDiffusion3Pipeline", 4096, "SD 3"),
        ("FluxPipeline", 4096, ""),
    ],
)
def test_the_family_of_a_folder_is_that_of_its_pipeline(tmp_path: Path, pipeline: str, width: int, family: str) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": width}))
    facts = base_facts(Base(source=str(tmp_path)))
    assert facts is not None
    assert facts.family == family


def test_nothing_is_told_of_a_base_that_is_not_here(tmp_path: Path) -> None:
    assert base_facts(Base(source=str(tmp_path / "gone"))) is None
    assert base_facts(Base(source="owner/name"), {"HF_HOME": str(tmp_path)}) is None
