"""Loads a captioning model by what its `config.json` says it is, and never runs code that it brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.utils import logging as transformers_logging

from trainer.captioning.captioner import Captioner, Detail
from trainer.captioning.describing import Describer, Florence
from trainer.captioning.tagging import Tagger
from trainer.errors import MissingModelError, first_line, hub_problem

#: Kinds (`model_type`) that caption a picture without being told anything.
_DESCRIBERS = frozenset({"blip", "blip-2", "git"})
_KNOWN = "Choose a BLIP, BLIP-2, GIT or Florence-2 model, or a multi-label image classifier, in transformers layout."


def load_captioner(source: str, *, device: str = "cpu", detail: Detail = Detail.SHORT) -> Captioner:
    """The captioning model in a folder or of a hub name, in eval mode on `device`: fp32 on a CPU, fp16 on a GPU.

    Raises:
        MissingModelError: it is not there, cannot be reached, is damaged, or is of a kind that is not known here.
    """
    transformers_logging.disable_progress_bar()
    location = _location(source)
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        if _is_classifier(config):
            _check_labels(source, config)
            model = _load_model(AutoModelForImageClassification, source, location, device)
            return Tagger(name=source, model=model, processor=_load_processor(AutoImageProcessor, location))
        if config.model_type not in {*_DESCRIBERS, "florence2"}:
            raise MissingModelError(f"{source} is a {config.model_type} model, which does not caption here.", _KNOWN)
        model = _load_model(AutoModelForImageTextToText, source, location, device)
        processor = _load_processor(AutoProcessor, location)
    except MissingModelError:
        raise
    except Exception as error:
        # The loaders raise anything from KeyError to httpx errors.
        raise _explain(source, error) from error
    kind = Florence if config.model_type == "florence2" else Describer
    return kind(name=source, model=model, processor=processor, detail=detail)


def _location(source: str) -> str:
    """What the loaders are to be given: a folder that exists, else a hub name."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MissingModelError(f"{source} holds no config.json and is no transformers model.", _KNOWN)
        return str(path)
    if path.is_file() or path.is_absolute() or source.count("/") != 1 or source.startswith((".", "~")):
        raise MissingModelError(
            f"There is no captioning model at {source}.", "Give a folder in transformers layout, or a hub name."
        )
    return source


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("ForImageClassification") for name in config.architectures or ())


def _check_labels(source: str, config: Any) -> None:
    """A classifier of one class in many names no tags, and one whose labels have no names tells nothing."""
    if config.problem_type != "multi_label_classification":
        raise MissingModelError(
            f"{source} tells one class from another and gives no tags.",
            'If it was trained to give tags, write "problem_type": "multi_label_classification" into its config.json.',
        )
    if all(label.startswith("LABEL_") for label in config.id2label.values()):
        raise MissingModelError(f"The labels in {source} have no names (id2label in config.json).", _KNOWN)


def _load_model(loader: Any, source: str, location: str, device: str) -> Any:
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    model, info = loader.from_pretrained(
        location, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    if info["missing_keys"]:
        # Such as Microsoft's own Florence-2 files, written before transformers knew it: the rest would be random.
        raise MissingModelError(
            f"{len(info['missing_keys'])} of the weights of {source} are missing or under other names.",
            "Take it in transformers layout; Florence-2 is at florence-community/Florence-2-base.",
        )
    return model.to(device).eval().requires_grad_(False)


def _load_processor(loader: Any, location: str) -> Any:
    # Pillow gives the same pixels with and without torchvision, which this project does without.
    return loader.from_pretrained(location, backend="pil", trust_remote_code=False)


def _explain(source: str, error: Exception) -> MissingModelError:
    if (known := hub_problem(source, error)) is not None:
        return known
    said = first_line(error)
    if "timm" in str(error).lower():
        return MissingModelError(f"{source} is a timm model, such as the WD14 taggers, and is not loaded here.", _KNOWN)
    if "custom code" in str(error).lower():
        return MissingModelError(f"{source} brings code of its own, which is never run here.", _KNOWN)
    return MissingModelError(f"{source} cannot be loaded ({said}).", _KNOWN)
