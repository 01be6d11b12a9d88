"""Each kind of captioning model is loaded from real files, and what is none is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.trainer.captioning.random_captioners import make_blip, make_blip2, make_florence, make_git, make_tagger
from trainer.captioning.captioner import Detail
from trainer.captioning.describing import Describer, Florence
from trainer.captioning.loading import load_captioner
from trainer.captioning.tagging import Tagger
from trainer.errors import MissingModelError

_PICTURES = [
    Image.new("RGB", (50, 40), "red"),
    Image.effect_noise((30, 70), 90).convert("RGB"),
    Image.new("RGB", (8, 8)),
]


_Make = Callable[[Path], Path]


@pytest.mark.parametrize("make", [make_blip, make_git])
def test_models_that_are_only_shown_the_picture_write_words_of_their_vocabulary(make: _Make, tmp_path: Path) -> None:
    captioner = load_captioner(str(make(tmp_path)))

    captions = captioner.write(_PICTURES)

    assert isinstance(captioner, Describer)
    assert captioner.name == str(tmp_path)
    assert len(captions) == 3
    assert {word for caption in captions for word in caption.split()} <= {
        "a",
        "photo",
        "of",
        "red",
        "cat",
        "dog",
        "tree",
    }
    assert any(captions)
    assert captioner.write(_PICTURES) == captions


def test_blip_2_writes_a_caption_for_each_picture(tmp_path: Path) -> None:
    captioner = load_captioner(str(make_blip2(tmp_path)))

    captions = captioner.write(_PICTURES)

    assert isinstance(captioner, Describer)
    assert len(captions) == 3
    assert not any("<" in caption for caption in captions)


@pytest.mark.parametrize(
    ("detail", "question"),
    [
        (Detail.SHORT, "What does the image describe?"),
        (Detail.DETAILED, "Describe in detail what is shown in the image."),
    ],
)
def test_florence_is_asked_for_as_much_as_is_wanted(
    detail: Detail, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = load_captioner(str(make_florence(tmp_path)), detail=detail)
    assert isinstance(captioner, Florence)
    asked: list[str] = []
    generate = captioner.model.generate

    def listen(**inputs: Any) -> Any:
        asked.extend(captioner.processor.batch_decode(inputs["input_ids"], skip_special_tokens=True))
        return generate(**inputs)

    monkeypatch.setattr(captioner.model, "generate", listen)

    captions = captioner.write(_PICTURES)

    assert asked == [question] * 3
    assert len(captions) == 3
    assert not any("<" in caption for caption in captions)


def test_a_tagger_gives_the_tags_that_it_is_sure_of_surest_first(tmp_path: Path) -> None:
    captioner = load_captioner(str(make_tagger(tmp_path)))

    assert isinstance(captioner, Tagger)
    assert captioner.write(_PICTURES) == ["long hair, cat"] * 3


def test_a_rating_is_no_tag(tmp_path: Path) -> None:
    captioner = load_captioner(str(make_tagger(tmp_path, labels=("cat", "rating:general", "tree"))))

    assert captioner.write(_PICTURES[:1]) == ["cat"]


def test_a_model_is_frozen_and_computes_in_fp32_on_a_cpu(tmp_path: Path) -> None:
    model = load_captioner(str(make_tagger(tmp_path))).model  # type: ignore[attr-defined]

    assert model.dtype is torch.float32
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def _refusal(source: Path | str) -> str:
    with pytest.raises(MissingModelError) as refused:
        load_captioner(str(source))
    return str(refused.value)


def _config(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "There is no captioning model at" in _refusal(tmp_path / "nothing")
    assert "There is no captioning model at blip" in _refusal("blip")
    assert "holds no config.json" in _refusal(tmp_path)


def test_a_hub_name_without_a_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    assert "is not on this machine and the hub cannot be reached" in _refusal("nobody/no-such-captioner")


def test_other_kinds_of_model_are_refused_by_name(tmp_path: Path) -> None:
    assert "is a gpt2 model" in _refusal(_config(tmp_path / "text", model_type="gpt2"))
    assert "timm model, such as the WD14 taggers" in _refusal(
        _config(tmp_path / "timm", architecture="swin_base", num_classes=3, pretrained_cfg={})
    )
    assert "cannot be loaded" in _refusal(_config(tmp_path / "unknown", model_type="no-such-thing"))


def test_code_that_a_model_brings_is_not_run_and_nobody_is_asked(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    _config(tmp_path, model_type="evil", auto_map={"AutoConfig": "evil.Config"})

    assert "brings code of its own" in _refusal(tmp_path)


def test_a_classifier_that_gives_no_tags_is_refused(tmp_path: Path) -> None:
    one_of_many = make_tagger(tmp_path / "one", problem_type="single_label_classification")
    undeclared = make_tagger(tmp_path / "undeclared", problem_type=None)
    nameless = make_tagger(tmp_path / "nameless", labels=("LABEL_0", "LABEL_1"))

    assert "tells one class from another" in _refusal(one_of_many)
    assert "multi_label_classification" in _refusal(undeclared)
    assert "have no names" in _refusal(nameless)


def test_weights_under_other_names_are_refused_and_not_left_random(tmp_path: Path) -> None:
    weights = make_florence(tmp_path) / "model.safetensors"
    tensors = {name.replace("vision_tower", "davit"): tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})

    assert "florence-community" in _refusal(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (make_blip(tmp_path) / "model.safetensors").write_bytes(b"\0" * 100)

    assert "cannot be loaded" in _refusal(tmp_path)
