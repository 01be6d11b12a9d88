"""Each kind of captioning model is loaded from real files, and other models are refused with a reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.golden import check_sentences
from tests.trainer.captioning.random_captioners import make_blip, make_blip2, make_florence, make_git, make_tagger
from trainer.captioning import Detail
from trainer.captioning.captioners import (
    MAX_CHARACTERS,
    BlipCaptioner,
    FlorenceCaptioner,
    TagCaptioner,
    clean_caption,
    load_captioner,
)
from trainer.errors import MissingModelError

_IMAGES = [
    Image.new("RGB", (50, 40), "red"),
    Image.effect_noise((30, 70), 90).convert("RGB"),
    Image.new("RGB", (8, 8)),
]


_Make = Callable[[Path], Path]


@pytest.mark.parametrize("make", [make_blip, make_git])
def test_blip_and_git_generate_words_of_their_vocabulary(make: _Make, tmp_path: Path) -> None:
    captioner = load_captioner(str(make(tmp_path)))

    captions = captioner.write(_IMAGES)

    assert isinstance(captioner, BlipCaptioner)
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
    assert captioner.write(_IMAGES) == captions


def test_blip_2_captions_each_image(tmp_path: Path) -> None:
    captioner = load_captioner(str(make_blip2(tmp_path)))

    captions = captioner.write(_IMAGES)

    assert isinstance(captioner, BlipCaptioner)
    assert len(captions) == 3
    assert not any("<" in caption for caption in captions)


@pytest.mark.parametrize(
    ("detail", "prompt"),
    [
        (Detail.SHORT, "What does the image describe?"),
        (Detail.DETAILED, "Describe in detail what is shown in the image."),
    ],
)
def test_the_prompt_of_florence_depends_on_the_detail(
    detail: Detail, prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = load_captioner(str(make_florence(tmp_path)), detail=detail)
    assert isinstance(captioner, FlorenceCaptioner)
    prompts: list[str] = []
    generate = captioner.model.generate

    def record(**inputs: Any) -> Any:
        prompts.extend(captioner.processor.batch_decode(inputs["input_ids"], skip_special_tokens=True))
        return generate(**inputs)

    monkeypatch.setattr(captioner.model, "generate", record)

    captions = captioner.write(_IMAGES)

    assert prompts == [prompt] * 3
    assert len(captions) == 3
    assert not any("<" in caption for caption in captions)


def test_a_tagger_gives_probable_tags_most_probable_first(tmp_path: Path) -> None:
    captioner = load_captioner(str(make_tagger(tmp_path)))

    assert isinstance(captioner, TagCaptioner)
    assert captioner.write(_IMAGES) == ["long hair, cat"] * 3


def test_a_rating_is_not_a_tag(tmp_path: Path) -> None:
    captioner = load_captioner(str(make_tagger(tmp_path, labels=("cat", "rating:general", "tree"))))

    assert captioner.write(_IMAGES[:1]) == ["cat"]


def test_a_model_is_frozen_and_in_fp32_on_a_cpu(tmp_path: Path) -> None:
    model = load_captioner(str(make_tagger(tmp_path))).model  # type: ignore[attr-defined]

    assert model.dtype is torch.float32
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def _config(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_models_that_cannot_caption_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    # Code of a model is never run, and no question about it is asked.
    evil = _config(tmp_path / "evil", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    (evil / "evil.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    # Tensors with other names would stay random.
    weights = make_florence(tmp_path / "renamed") / "model.safetensors"
    tensors = {name.replace("vision_tower", "davit"): tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    (make_blip(tmp_path / "damaged") / "model.safetensors").write_bytes(b"\0" * 100)
    _config(tmp_path / "gpt2", model_type="gpt2")
    _config(tmp_path / "timm", architecture="swin_base", num_classes=3, pretrained_cfg={})
    _config(tmp_path / "unknown", model_type="no-such-thing")
    make_tagger(tmp_path / "one of many", problem_type="single_label_classification")
    make_tagger(tmp_path / "undeclared", problem_type=None)
    make_tagger(tmp_path / "nameless", labels=("LABEL_0", "LABEL_1"))

    folders = [tmp_path / "missing", *sorted(folder for folder in tmp_path.iterdir() if folder.is_dir())]
    sentences = {}
    for source in ("blip", "owner/no-such-captioner", *map(str, folders)):
        with pytest.raises(MissingModelError) as refusal:
            load_captioner(source)
        # Without the error of the library, which differs between its versions.
        text = re.sub(r"cannot be loaded \(.*?\)\. ", "cannot be loaded (…). ", str(refusal.value))
        sentences[Path(source).name] = text.replace(str(tmp_path), "models")
    check_sentences(Path(__file__).parent / "golden" / "refused_models.txt", sentences)


@pytest.mark.parametrize(
    ("generated", "caption"),
    [
        ("a red cat", "a red cat"),
        ("</s><s>A red cat sitting on a mat.</s><pad><pad>", "A red cat sitting on a mat"),
        ("a cat <loc_12><loc_345> and a dog [SEP]", "a cat and a dog"),
        ("a cat cat cat on a mat", "a cat on a mat"),
        ("a dog and a dog and a dog and a dog", "a dog and a dog"),
        ("red, red, red, blue", "red, blue"),
        ("an arafed cat on a mat", "cat on a mat"),
        ("The image shows a cat on a mat.", "a cat on a mat"),
        ("In this image we can see a cat. There is a mat.", "a cat. There is a mat."),
        ("a cat , on a mat ,", "a cat, on a mat"),
        ("  ", ""),
        ("</s>", ""),
    ],
)
def test_special_tokens_repetitions_and_openings_are_removed(generated: str, caption: str) -> None:
    assert clean_caption(generated) == caption


def test_a_long_caption_is_cut_after_a_sentence_or_a_word() -> None:
    sentences = " ".join(f"Sentence number {index} says it." for index in range(40))
    words = " ".join(f"word{index}" for index in range(200))

    assert len(clean_caption(sentences)) <= MAX_CHARACTERS
    assert clean_caption(sentences).endswith("says it.")
    assert len(clean_caption(words)) <= MAX_CHARACTERS
    assert clean_caption(words).rsplit(" ", 1)[1] in words.split()


@given(st.text("ab ,.<>s/", max_size=600))
def test_any_caption_becomes_short_and_one_line(generated: str) -> None:
    caption = clean_caption(generated)

    assert len(caption) <= MAX_CHARACTERS
    assert caption == " ".join(caption.split())
