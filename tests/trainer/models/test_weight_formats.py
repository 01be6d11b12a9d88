"""No weights are loaded from files that can run code when they are opened, wherever a model comes from."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.captioning.random_captioners import make_blip
from tests.trainer.random_classifier import make_random_vit
from trainer.captioning.captioners import load_captioner
from trainer.errors import MissingModelError
from trainer.models.base import load_base, tiny_folder
from trainer.models.classifier import load_classifier
from trainer.protocol.settings import Base
from trainer.tasks.sample_similarity import load_embedder

ROOT = Path(__file__).parents[3]
#: Loaders of what has no weights.
WITHOUT_WEIGHTS = ("Config", "Processor", "Tokenizer", "loader")


def pickle_weights(folder: Path) -> Path:
    """Replace every `.safetensors` file by the `.bin` file that the libraries would load in its place."""
    for path in folder.rglob("*.safetensors"):
        name = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{name}.bin"))
        path.unlink()
    return folder


def copy_of_tiny(folder: Path) -> Path:
    shutil.copytree(tiny_folder(), folder)
    return folder


def make_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(text_config=small, vision_config=small, projection_dim=8)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "load"),
    [
        (copy_of_tiny, lambda folder: load_base(Base(source=folder))),
        (make_random_vit, lambda folder: load_classifier(Base(source=folder), ("fox", "owl"), head_seed=0)),
        (make_blip, load_captioner),
        (make_clip, lambda folder: load_embedder(folder, torch.device("cpu"))),
    ],
    ids=["base", "classifier", "captioner", "similarity"],
)
def test_pickled_weights_are_refused_in_one_sentence(
    tmp_path: Path, make: Callable[[Path], Path], load: Callable[[str], object]
) -> None:
    folder = pickle_weights(make(tmp_path / "model"))

    with pytest.raises(MissingModelError, match=r"has no weights in \.safetensors files"):
        load(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_one_pickled_part_of_a_base_is_enough(tmp_path: Path, part: str) -> None:
    folder = copy_of_tiny(tmp_path / "model")
    pickle_weights(folder / part)

    with pytest.raises(MissingModelError, match=r"has no weights in \.safetensors files"):
        load_base(Base(source=str(folder)))


def test_every_loader_of_weights_asks_for_safetensors() -> None:
    unsafe = []
    for path in [*(ROOT / "trainer").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        source = path.read_text(encoding="utf-8")
        if not any(name in source for name in ("from_pretrained", "torch.load")):
            continue
        for call in ast.walk(ast.parse(source)):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            owner, name = ast.unparse(call.func.value), call.func.attr
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "from_pretrained" and not owner.endswith(WITHOUT_WEIGHTS) and owner != "PeftModel":
                unsafe += [] if arguments.get("use_safetensors") == "True" else [f"{path.name}:{call.lineno}"]
            if ast.unparse(call.func) == "torch.load":
                unsafe += [] if arguments.get("weights_only") == "True" else [f"{path.name}:{call.lineno}"]
    assert unsafe == []
