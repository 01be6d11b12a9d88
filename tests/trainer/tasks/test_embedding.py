"""A local CLIP or DINO tells how alike pictures are; whatever else lies in its folder is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.trainer.tasks.random_embedders import make_clip, make_dino
from tests.trainer.tasks.test_similarity import scene
from trainer.errors import MissingModelError
from trainer.tasks.embedding import load_embedder

CPU = torch.device("cpu")


@pytest.fixture
def drawings(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        scene(seed, (90, 60)).save(path)
    return [*paths, paths[0]]


def test_clip_sees_pictures_and_reads_prompts(tmp_path: Path, drawings: list[Path]) -> None:
    embedder = load_embedder(str(make_clip(tmp_path / "clip")), CPU)

    pictures_ND, prompts_ND = embedder.pictures(drawings), embedder.prompts(["a red star", "a bowl of fruit"])

    assert pictures_ND.shape == (4, 16)
    assert torch.allclose(pictures_ND.norm(dim=1), torch.ones(4))
    assert torch.allclose(pictures_ND[0], pictures_ND[3])
    assert not torch.allclose(pictures_ND[0], pictures_ND[1], atol=1e-3)
    assert prompts_ND is not None
    assert torch.allclose(prompts_ND.norm(dim=1), torch.ones(2))
    assert not torch.allclose(prompts_ND[0], prompts_ND[1], atol=1e-3)


def test_dino_sees_pictures_and_reads_nothing(tmp_path: Path, drawings: list[Path]) -> None:
    embedder = load_embedder(str(make_dino(tmp_path / "dino")), CPU)

    pictures_ND = embedder.pictures(drawings)

    assert embedder.prompts(["a red star"]) is None
    assert torch.allclose(pictures_ND[0], pictures_ND[3])
    assert not torch.allclose(pictures_ND[0], pictures_ND[1], atol=1e-3)


def test_a_grey_picture_is_a_picture(tmp_path: Path) -> None:
    Image.new("L", (40, 40), 90).save(tmp_path / "grey.png")

    embedder = load_embedder(str(make_dino(tmp_path / "dino")), CPU)

    assert embedder.pictures([tmp_path / "grey.png"]).shape == (1, 32)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match="There is no similarity model in /nowhere"):
        load_embedder("/nowhere", CPU)


def test_a_model_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")

    with pytest.raises(MissingModelError, match="is a bert model, neither CLIP nor DINO"):
        load_embedder(str(tmp_path), CPU)


def test_a_damaged_folder_is_told(tmp_path: Path) -> None:
    folder = make_dino(tmp_path / "dino")
    (folder / "model.safetensors").write_bytes(b"torn")

    with pytest.raises(MissingModelError, match="cannot be loaded"):
        load_embedder(str(folder), CPU)
