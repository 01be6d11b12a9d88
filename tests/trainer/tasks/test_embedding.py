"""Image embeddings of a local CLIP or DINO, and the refusal of other folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.trainer.tasks.random_embedders import make_clip, make_dino
from tests.trainer.tasks.test_similarity import scene
from trainer.errors import MissingModelError
from trainer.tasks.sample_similarity import load_embedder

CPU = torch.device("cpu")


@pytest.fixture
def drawings(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        scene(seed, (90, 60)).save(path)
    return [*paths, paths[0]]


def test_clip_embeds_images_and_prompts(tmp_path: Path, drawings: list[Path]) -> None:
    embedder = load_embedder(str(make_clip(tmp_path / "clip")), CPU)

    images_ND, prompts_ND = embedder.images(drawings), embedder.prompts(["a red star", "a bowl of fruit"])

    assert images_ND.shape == (4, 16)
    assert torch.allclose(images_ND.norm(dim=1), torch.ones(4))
    assert torch.allclose(images_ND[0], images_ND[3])
    assert not torch.allclose(images_ND[0], images_ND[1], atol=1e-3)
    assert prompts_ND is not None
    assert torch.allclose(prompts_ND.norm(dim=1), torch.ones(2))
    assert not torch.allclose(prompts_ND[0], prompts_ND[1], atol=1e-3)


def test_dino_embeds_images_only(tmp_path: Path, drawings: list[Path]) -> None:
    embedder = load_embedder(str(make_dino(tmp_path / "dino")), CPU)

    images_ND = embedder.images(drawings)

    assert embedder.prompts(["a red star"]) is None
    assert torch.allclose(images_ND[0], images_ND[3])
    assert not torch.allclose(images_ND[0], images_ND[1], atol=1e-3)


def test_a_grayscale_image_is_embedded(tmp_path: Path) -> None:
    Image.new("L", (40, 40), 90).save(tmp_path / "gray.png")

    embedder = load_embedder(str(make_dino(tmp_path / "dino")), CPU)

    assert embedder.images([tmp_path / "gray.png"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("missing", "no similarity model"), ("another kind", "is a bert model"), ("damaged", "cannot be loaded")],
)
def test_a_folder_without_a_usable_embedder_is_refused(tmp_path: Path, damage: str, reason: str) -> None:
    folder = tmp_path / "dino"
    if damage != "missing":
        make_dino(folder)
    if damage == "another kind":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    elif damage == "damaged":
        (folder / "model.safetensors").write_bytes(b"torn")

    with pytest.raises(MissingModelError, match=reason):
        load_embedder(str(folder), CPU)
