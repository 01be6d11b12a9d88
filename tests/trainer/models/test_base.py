"""Bases load by diffusers' own loaders, whatever form they come in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer.random_base import make_random_base, write_single_file
from trainer.errors import MissingModelError
from trainer.models.base import fingerprint, load_base
from trainer.protocol.spec import Base


def test_the_tiny_base_that_ships_is_a_whole_stable_diffusion_1() -> None:
    base = load_base(Base(source="tiny"))

    assert (base.resolution, base.family, base.prediction_type) == (64, "sd1", "epsilon")
    assert all(p.dtype is torch.float32 and not p.requires_grad for p in base.unet.parameters())


def test_a_folder_and_the_single_file_made_of_it_are_the_same_model(random_base: Path, tmp_path: Path) -> None:
    path = write_single_file(random_base, tmp_path / "model.safetensors")

    folder = load_base(Base(source=str(random_base)))
    single = load_base(Base(source=str(path), config=str(random_base)))

    assert fingerprint(single.unet, single.vae, single.text_encoder) == fingerprint(
        folder.unet, folder.vae, folder.text_encoder
    )
    assert single.prediction_type == "epsilon"


def test_a_velocity_model_is_known_as_one(tmp_path: Path) -> None:
    folder = make_random_base(tmp_path / "velocity", prediction_type="v_prediction")

    assert load_base(Base(source=str(folder))).prediction_type == "v_prediction"


@pytest.mark.parametrize("damage", ["no index", "another pipeline", "no weights", "cut weights"])
def test_a_damaged_folder_is_one_sentence(random_base: Path, tmp_path: Path, damage: str) -> None:
    folder = make_random_base(tmp_path / "base")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "no index":
        (folder / "model_index.json").unlink()
    elif damage == "another pipeline":
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(MissingModelError) as refusal:
        load_base(Base(source=str(folder)))

    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_a_fingerprint_changes_with_one_weight(random_base: Path) -> None:
    vae = load_base(Base(source=str(random_base))).vae
    before = fingerprint(vae)

    next(vae.parameters()).data.view(-1)[0] += 1

    assert fingerprint(vae) != before
