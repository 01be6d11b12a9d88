"""Loads captioning models (BLIP, BLIP-2, GIT, Florence-2, taggers) from transformers, and captions images with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.utils import logging as transformers_logging

from trainer.captioning import Detail
from trainer.errors import MissingModelError, first_line, hub_problem
from trainer.protocol.text import _

#: `model_type` of the models that caption an image without a prompt.
_BLIP_TYPES = frozenset({"blip", "blip-2", "git"})

#: Weights in formats that are never loaded here.
_NOT_LOADED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.tflite", "*.gguf")

#: Beams that the authors of Florence-2 and BLIP generate with.
_BEAMS = 3

#: Lowest probability of a tag, as the authors of WD14 and its successors recommend.
TAG_THRESHOLD = 0.35
#: Most tags of a caption: about what 75 tokens hold.
MAX_TAGS = 25

#: Longest caption, characters: about what 75 tokens hold.
MAX_CHARACTERS = 400

#: Special tokens: `<s>`, `</s>`, `<pad>`, `<loc_123>`, `<|endoftext|>`, `[SEP]`.
_SPECIAL_TOKENS = re.compile(r"<\|?/?[a-zA-Z_]+\d*\|?>|\[(?:CLS|SEP|PAD|MASK|UNK|DEC|ENC)\]|\ufffd")
#: The same one to eight words repeated, as small models generate them.
_REPETITION = re.compile(r"\b((?:[\w'’-]+[,;]?\s+){0,7}?[\w'’-]+)(?:[,;]?\s+\1\b)+", re.IGNORECASE)
#: BLIP writes `arafed` before many nouns: a meaningless word of its training data.
_BLIP_ARTIFACT = re.compile(r"\b(?:an? )?araf(?:ed|fe)\b\s*", re.IGNORECASE)
_OPENING = re.compile(
    r"^(?:the|this) (?:image|picture|photo|photograph) (?:shows|depicts|features|is of)\s+|"
    r"^(?:in|on) (?:the|this) (?:image|picture|photo) (?:we can see|there (?:is|are))\s+",
    re.IGNORECASE,
)


#: Limits in tokens of the captioning model, not of CLIP.
_MAX_NEW_TOKENS = {Detail.SHORT: 40, Detail.DETAILED: 100}
_FLORENCE_TASKS = {Detail.SHORT: "<CAPTION>", Detail.DETAILED: "<DETAILED_CAPTION>"}


class Captioner(Protocol):
    """A loaded captioning model; `name` is the folder or hub name that it was loaded from."""

    @property
    def name(self) -> str: ...

    def write(self, images: Sequence[Image.Image]) -> list[str]:
        """Caption RGB images as one batch; a caption is empty if the model generates nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class BlipCaptioner:
    """BLIP, BLIP-2 or GIT, which caption without a prompt."""

    name: str
    model: Any
    processor: Any
    detail: Detail

    def write(self, images: Sequence[Image.Image]) -> list[str]:
        inputs = self.processor(images=list(images), return_tensors="pt")
        return _generate(self.model, self.processor, inputs, self.detail)


@dataclass(frozen=True, kw_only=True)
class FlorenceCaptioner:
    """Florence-2, which captions on a task prompt."""

    name: str
    model: Any
    processor: Any
    detail: Detail

    def write(self, images: Sequence[Image.Image]) -> list[str]:
        tasks = [_FLORENCE_TASKS[self.detail]] * len(images)
        inputs = self.processor(images=list(images), text=tasks, padding=True, return_tensors="pt")
        return _generate(self.model, self.processor, inputs, self.detail)


def _generate(model: Any, processor: Any, inputs: Any, detail: Detail) -> list[str]:
    """Generate with beam search, which gives the same image the same caption each time."""
    inputs = inputs.to(model.device, model.dtype)
    with torch.inference_mode():
        tokens = model.generate(
            **inputs, do_sample=False, num_beams=_BEAMS, max_new_tokens=_MAX_NEW_TOKENS[detail], no_repeat_ngram_size=3
        )
    return [clean_caption(text) for text in processor.batch_decode(tokens, skip_special_tokens=True)]


@dataclass(frozen=True, kw_only=True)
class TagCaptioner:
    """A multi-label image classifier; its captions are lists of tags."""

    name: str
    model: Any
    processor: Any

    def write(self, images: Sequence[Image.Image]) -> list[str]:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            probabilities_BL = self.model(**inputs).logits.float().sigmoid()
        labels: dict[int, str] = self.model.config.id2label
        return [", ".join(_tags(row.tolist(), labels)) for row in probabilities_BL]


def _tags(probabilities: Sequence[float], labels: dict[int, str]) -> list[str]:
    """The tags above the threshold, most probable first, with spaces for underscores and without ratings."""
    ranked = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
    probable = [labels[index] for index in ranked if probabilities[index] >= TAG_THRESHOLD]
    return [label.replace("_", " ").strip() for label in probable if not label.startswith("rating:")][:MAX_TAGS]


def clean_caption(text: str) -> str:
    """Remove special tokens, repetitions and opening phrases; cut after `MAX_CHARACTERS`, at a sentence or a word."""
    text = _BLIP_ARTIFACT.sub("", _SPECIAL_TOKENS.sub(" ", text))
    text = _OPENING.sub("", " ".join(text.split()))
    before = ""
    while before != text:
        before, text = text, _REPETITION.sub(r"\1", text)
    text = _shortened(re.sub(r"\s+([,.;:!?])", r"\1", text).strip(" ,;:"))
    return text[:-1] if text.endswith(".") and text.count(".") == 1 else text


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    head = text[: MAX_CHARACTERS + 1]
    end = max(head.rfind(mark) for mark in (". ", "! ", "? "))
    if end > 0:
        return head[: end + 1]
    return head[: max(head.rfind(" "), 0) or MAX_CHARACTERS].rstrip(" ,;:")


def download_captioner(source: str) -> None:
    """Download a captioning model from the hub into its cache, without loading it; a folder is used where it is.

    Raises:
        MissingModelError: The model is missing or unreachable.
    """
    location = _location(source)
    if Path(location).is_dir():
        return
    try:
        huggingface_hub.snapshot_download(location, ignore_patterns=[*_NOT_LOADED])
    except Exception as error:
        raise _explain(source, error) from error


def load_captioner(source: str, *, device: str = "cpu", detail: Detail = Detail.SHORT) -> Captioner:
    """Load a captioning model from a folder or the hub, in eval mode: fp32 on a CPU, fp16 on a GPU.

    The `config.json` decides which class is used. Code that a model brings is never run.

    Raises:
        MissingModelError: The model is missing, unreachable, damaged, or of an unknown type.
    """
    transformers_logging.disable_progress_bar()
    location = _location(source)
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        if _is_classifier(config):
            _check_labels(source, config)
            model = _load_model(AutoModelForImageClassification, source, location, device)
            return TagCaptioner(name=source, model=model, processor=_load_processor(AutoImageProcessor, location))
        if config.model_type not in {*_BLIP_TYPES, "florence2"}:
            message = _("{source} is a {type} model, which cannot caption here.", source=source, type=config.model_type)
            raise MissingModelError(message, _supported())
        model = _load_model(AutoModelForImageTextToText, source, location, device)
        processor = _load_processor(AutoProcessor, location)
    except MissingModelError:
        raise
    except Exception as error:
        # The loaders raise anything from KeyError to httpx errors.
        raise _explain(source, error) from error
    captioner = FlorenceCaptioner if config.model_type == "florence2" else BlipCaptioner
    return captioner(name=source, model=model, processor=processor, detail=detail)


def _supported() -> str:
    return _(
        "Choose a BLIP, BLIP-2, GIT or Florence-2 model, or a multi-label image classifier, in transformers layout."
    )


def _location(source: str) -> str:
    """The argument for the loaders: an existing folder, else a hub name."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            message = _("{source} contains no config.json and is not a transformers model.", source=source)
            raise MissingModelError(message, _supported())
        return str(path)
    if path.is_file() or path.is_absolute() or source.count("/") != 1 or source.startswith((".", "~")):
        message = _("There is no captioning model at {source}.", source=source)
        raise MissingModelError(message, _("Give a folder in transformers layout, or a hub name."))
    return source


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("ForImageClassification") for name in config.architectures or ())


def _check_labels(source: str, config: Any) -> None:
    """Refuse classifiers that give one class instead of tags, and those whose labels have no names."""
    if config.problem_type != "multi_label_classification":
        raise MissingModelError(
            _("{source} gives one class to each image instead of tags.", source=source),
            _('If it was trained to give tags, set "problem_type": "multi_label_classification" in its config.json.'),
        )
    if all(label.startswith("LABEL_") for label in config.id2label.values()):
        message = _("The labels in {source} have no names (id2label in config.json).", source=source)
        raise MissingModelError(message, _supported())


def _load_model(loader: Any, source: str, location: str, device: str) -> Any:
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    model, info = loader.from_pretrained(
        location, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    if missing := len(info["missing_keys"]):
        # As in Microsoft's own Florence-2 files, which predate its support in transformers: the rest would be random.
        raise MissingModelError(
            _("{n} of the weights of {source} are missing or have other names.", n=missing, source=source),
            _("Use a model in transformers layout; for Florence-2, florence-community/Florence-2-base."),
        )
    return model.to(device).eval().requires_grad_(False)


def _load_processor(loader: Any, location: str) -> Any:
    # Pillow gives the same pixels with and without torchvision, which this project does not install.
    return loader.from_pretrained(location, backend="pil", trust_remote_code=False)


def _explain(source: str, error: Exception) -> MissingModelError:
    if (known := hub_problem(source, error)) is not None:
        return known
    if "timm" in str(error).lower():
        message = _("{source} is a timm model (as the WD14 taggers are), which cannot be loaded here.", source=source)
    elif "custom code" in str(error).lower():
        message = _("{source} needs code of its own, which is never run here.", source=source)
    else:
        message = _("{source} cannot be loaded ({error}).", source=source, error=first_line(error))
    return MissingModelError(message, _supported())
